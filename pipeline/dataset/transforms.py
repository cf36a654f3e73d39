"""Offline augmentation: shifted, rotated and zoomed copies of images, with the values that scipy.ndimage computes.

The published pipeline calls `scipy.ndimage.shift` and `rotate` once per image. Every such map is linear in the pixels:
a shift by whole pixels is a slice, and any other map is a 784x784 matrix, whose rows are scipy's results for the 784
unit images. A batch of images therefore takes one matrix product.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from pipeline.recipes.settings import Augment
from pipeline.shapes import Float32, Float64, UInt8

BATCH = 512  # images per matrix product: 1.6 MB of float32 in, and out


class Variant(NamedTuple):
    """A fixed transformation of every image."""

    kind: str  # "original", "shift", "rotate" or "zoom"
    amount: tuple[float, float] | float  # of a shift (right, down) in pixels, of a rotation degrees, of a zoom a factor


def list_variants(settings: Augment) -> list[Variant]:
    """The variants that are stored of every image, in order; the first is the original."""
    return [
        Variant("original", 0.0),
        *(Variant("shift", shift) for shift in settings.shifts),
        *(Variant("rotate", angle) for angle in settings.angles),
        *(Variant("zoom", factor) for factor in settings.zooms),
    ]


def transform_with_scipy(images: Float64[np.ndarray, "n 28 28"], variant: Variant) -> Float64[np.ndarray, "n 28 28"]:
    """Shift, rotate or zoom images one by one: spline of order 3, 0 outside the image, not clipped.

    Sources: scipy.ndimage.shift, .rotate(reshape=False) and, for a zoom about the centre, .affine_transform.
    """
    kind, amount = variant
    options = {"order": 3, "mode": "constant", "cval": 0}
    if isinstance(amount, tuple):
        right, down = amount
        transform = functools.partial(scipy.ndimage.shift, shift=(down, right), **options)
    elif kind == "rotate":
        transform = functools.partial(scipy.ndimage.rotate, angle=amount, reshape=False, **options)
    else:
        centre = (np.array(images.shape[1:]) - 1) / 2
        zoom = {"matrix": np.full(2, 1 / amount), "offset": centre - centre / amount}
        transform = functools.partial(scipy.ndimage.affine_transform, **zoom, **options)
    return np.stack([transform(image) for image in images])


def transform_images(
    images: UInt8[np.ndarray, "n 28 28"], variant: Variant
) -> Iterator[UInt8[np.ndarray, "batch 28 28"]]:
    """Yield the transformed images in order, at most BATCH at a time.

    The values are those of `transform_with_scipy`, rounded and clipped to 0-255, which splines can exceed.
    """
    transform = _make_transform(variant, images.shape[1:])
    for start in range(0, len(images), BATCH):
        yield transform(images[start : start + BATCH])


def _make_transform(variant: Variant, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of at most BATCH uint8 images to as many transformed ones."""
    kind, amount = variant
    if kind == "original":
        return lambda images: images
    if isinstance(amount, tuple) and all(float(pixels).is_integer() for pixels in amount):
        return functools.partial(_shift_whole_pixels, right=int(amount[0]), down=int(amount[1]))
    units = np.eye(math.prod(shape)).reshape(-1, *shape)
    matrix = transform_with_scipy(units, variant).reshape(len(units), -1).astype(np.float32)
    multiply = _make_product(matrix)

    def transform(images: np.ndarray) -> np.ndarray:
        values = multiply(images.reshape(len(images), -1))
        np.rint(values, out=values)
        np.clip(values, 0, 255, out=values)
        return values.astype(np.uint8).reshape(images.shape)

    return transform


def _make_product(matrix: Float32[np.ndarray, "pixels pixels"]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of uint8 pixels (n, 784), n <= BATCH, to `pixels @ matrix`, float32, in a buffer that it reuses."""
    size = len(matrix)
    result = np.empty((BATCH, size), np.float32)
    if size % 2 or not np.allclose(matrix, matrix[::-1, ::-1], atol=1e-6):
        return lambda pixels: np.matmul(pixels.astype(np.float32), matrix, out=result[: len(pixels)])

    # The map is symmetric under a rotation by 180 degrees. With a the first half of the pixels, b the second half in
    # reverse, and S and O the blocks of the matrix from a to a and from a to b, the halves of the result are aS + bO
    # and bS + aO: half the sum and half the difference of (a+b)(S+O) and (a-b)(S-O), at half the multiplications.
    half = size // 2
    same, opposite = matrix[:half, :half], matrix[:half, : half - 1 : -1]
    sum_matrix, difference_matrix = (same + opposite) / 2, (same - opposite) / 2
    sums, differences, even, odd = (np.empty((BATCH, half), np.float32) for _ in range(4))

    def multiply(pixels: np.ndarray) -> np.ndarray:
        rows = slice(len(pixels))
        first, last = pixels[:, :half], pixels[:, : half - 1 : -1]
        np.add(first, last, out=sums[rows], dtype=np.float32)
        np.subtract(first, last, out=differences[rows], dtype=np.float32)
        np.matmul(sums[rows], sum_matrix, out=even[rows])
        np.matmul(differences[rows], difference_matrix, out=odd[rows])
        np.add(even[rows], odd[rows], out=result[rows, :half])
        np.subtract(even[rows], odd[rows], out=result[rows, : half - 1 : -1])
        return result[rows]

    return multiply


def _shift_whole_pixels(
    images: UInt8[np.ndarray, "n height width"], right: int, down: int
) -> UInt8[np.ndarray, "n height width"]:
    """Shift images by whole pixels; vacated pixels become 0."""
    height, width = images.shape[1:]
    to_rows, from_rows = _overlap(height, down)
    to_columns, from_columns = _overlap(width, right)
    shifted = np.zeros_like(images)
    shifted[:, to_rows, to_columns] = images[:, from_rows, from_columns]
    return shifted


def _overlap(size: int, offset: int) -> tuple[slice, slice]:
    """The positions that a shift by `offset` fills, and where their values come from."""
    offset = max(-size, min(offset, size))
    return slice(max(offset, 0), size + min(offset, 0)), slice(max(-offset, 0), size - max(offset, 0))
