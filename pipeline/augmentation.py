"""Offline shifts, rotations and zooms with scipy's values, and random affine maps on the device.

The published pipeline calls `scipy.ndimage.shift` and `rotate` once an image. Both are linear in the pixels: a shift
by whole pixels is a slice, and any other fixed map is one 784x784 matrix, found by sending the 784 unit images
through scipy, so a batch of images is one matrix product.
"""

import math

import numpy as np
import scipy.ndimage

from pipeline.settings import Affine, Augment

BATCH = 512  # images a matrix product: 1.6 MB of float32 in, and out


def variants(settings: Augment):
    """What is made of each image, in order: ("original", 0), ("shift", (right, down)), ("rotate", degrees), ..."""
    return [
        ("original", 0),
        *(("shift", shift) for shift in settings.shifts),
        *(("rotate", angle) for angle in settings.angles),
        *(("zoom", factor) for factor in settings.zooms),
    ]


def reference(image, variant):
    """One image (28, 28), float64, through scipy: spline of order 3, constant 0 outside, not clipped.

    Sources: scipy.ndimage.shift, .rotate(reshape=False) and, for a zoom about the centre, .affine_transform.
    """
    kind, amount = variant
    if kind == "shift":
        return scipy.ndimage.shift(image, (amount[1], amount[0]), order=3, mode="constant", cval=0)
    if kind == "rotate":
        return scipy.ndimage.rotate(image, amount, reshape=False, order=3, mode="constant", cval=0)
    if kind == "zoom":
        centre = (np.array(image.shape) - 1) / 2
        offset = centre - centre / amount
        return scipy.ndimage.affine_transform(image, np.full(2, 1 / amount), offset, order=3, mode="constant", cval=0)
    return image


def batches(images, variant):
    """Yield the variant of all images (n, 28, 28), uint8, in order and in pieces of at most BATCH images.

    The values are scipy's, clipped to 0-255 (splines overshoot) and rounded.
    """
    kind, amount = variant
    whole = kind == "original" or (kind == "shift" and all(float(pixels).is_integer() for pixels in amount))
    product = None if whole else _product(_operator(variant, images.shape[1:]))
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        if kind == "original":
            yield batch
        elif whole:
            yield _slide(batch, int(amount[0]), int(amount[1]))
        else:
            mapped = product(batch.reshape(len(batch), -1))
            np.rint(mapped, out=mapped)
            np.clip(mapped, 0, 255, out=mapped)
            yield mapped.astype(np.uint8).reshape(batch.shape)


def _product(operator):
    """A function of uint8 pixels (n, 784), n <= BATCH, to `pixels @ operator`, float32, in a buffer used again."""
    size = len(operator)
    made = np.empty((BATCH, size), np.float32)
    if size % 2 or not np.allclose(operator, operator[::-1, ::-1], atol=1e-6):
        return lambda pixels: np.matmul(pixels.astype(np.float32), operator, out=made[: len(pixels)])

    # With a and b the first half of the pixels and the second in reverse, S and O the operator's parts from a to a and
    # to b: the result's halves are aS + bO and bS + aO, half the sum and difference of (a+b)(S+O) and (a-b)(S-O).
    half = size // 2
    same, opposite = operator[:half, :half], operator[:half, : half - 1 : -1]
    for_sums, for_differences = (same + opposite) / 2, (same - opposite) / 2
    sums, differences, even, odd = (np.empty((BATCH, half), np.float32) for _ in range(4))

    def product(pixels):
        rows = slice(len(pixels))
        first, last = pixels[:, :half], pixels[:, : half - 1 : -1]
        np.add(first, last, out=sums[rows], dtype=np.float32)
        np.subtract(first, last, out=differences[rows], dtype=np.float32)
        np.matmul(sums[rows], for_sums, out=even[rows])
        np.matmul(differences[rows], for_differences, out=odd[rows])
        np.add(even[rows], odd[rows], out=made[rows, :half])
        np.subtract(even[rows], odd[rows], out=made[rows, : half - 1 : -1])
        return made[rows]

    return product


def _operator(variant, shape):
    """The matrix (784, 784), float32, whose row i is what scipy makes of the image that is 1 at pixel i."""
    units = np.eye(math.prod(shape)).reshape(-1, *shape)
    return np.stack([reference(unit, variant).ravel() for unit in units]).astype(np.float32)


def _slide(images, right, down):
    """Images shifted by whole pixels, 0 where nothing moves in."""
    height, width = images.shape[1:]
    shifted = np.zeros_like(images)
    if abs(right) < width and abs(down) < height:
        to_rows, from_rows = slice(max(down, 0), height + min(down, 0)), slice(max(-down, 0), height - max(down, 0))
        to_cols, from_cols = slice(max(right, 0), width + min(right, 0)), slice(max(-right, 0), width - max(right, 0))
        shifted[:, to_rows, to_cols] = images[:, from_rows, from_cols]
    return shifted


def random_affine(images, settings: Affine):
    """A map drawn for each image of a float batch (n, 1, 28, 28), bilinear, 0 outside: all that `Affine` names.

    Draws from torch's generator of the images' device. Returns the batch itself where all limits are 0.
    """
    if not any(vars(settings).values()):
        return images
    import torch  # not above: the augment stage needs none of it
    from torch.nn.functional import grid_sample

    count, (height, width) = len(images), images.shape[-2:]
    draws = torch.rand(5, count, device=images.device) * 2 - 1
    angle = draws[0] * math.radians(settings.rotation)
    zoom = 1 / (1 + draws[1] * settings.zoom)
    shear = torch.tan(draws[2] * math.radians(settings.shear))
    right, down = draws[3:] * (settings.shift * 2 / width)  # in grid_sample's units: the image is 2 wide
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    maps = torch.stack([cos, shear * cos - sin, -right, sin, shear * sin + cos, -down], 1)
    if settings.flip:
        maps[:, :3] *= torch.where(torch.rand(count, 1, device=images.device) < 0.5, -1, 1)
    maps = maps.view(2 * count, 3)
    # What affine_grid gives, in one product for all images: half the time.
    y, x = torch.meshgrid(*(centres(size, images.device) for size in (height, width)), indexing="ij")
    grid = (maps @ torch.stack([x, y, torch.ones_like(x)]).view(3, -1)).view(count, 2, height, width)
    return grid_sample(images, grid.permute(0, 2, 3, 1), align_corners=False)


def centres(size, device):
    """Where pixels' centres lie along a side of `size` pixels from -1 to 1."""
    import torch

    return (torch.arange(size, device=device) * 2 + 1) / size - 1
