"""Photos and drawings of a digit, brought to the form of MNIST's images: 28x28, white on black, size and centre fixed.

`pipeline/reports/demo/prepare.js` has the same procedure in JavaScript; a test compares the two.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from scipy import ndimage

from pipeline.errors import UserError
from pipeline.shapes import Bool, Float64, Integer, UInt8

FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")  # of the files in a folder
ROTATIONS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PIXELS = 120_000_000  # of an image file: 108 megapixels is the largest camera of a phone
SIDE, BOX = 28, 20  # pixels of MNIST's images, and of the box that the digit fits
CENTRE = 14.0  # the pixel that MNIST's centres of mass are in: 14.0 +- 0.3 in the competition's training rows
WORK_SIZE = 200  # longest side in pixels of the image in which the digit is searched: ten per pixel of the box
COARSE = 4  # factor by which the image is reduced for the local background, a median over WINDOW pixels
WINDOW = 25
FLAT_FRAME = 0.95  # the background is flat if this share of the pixels at the frame is on one side of the threshold
DARKNESS = 16  # added to gray levels before their ratio is taken, so that noise in the dark is not contrast
MIN_CONTRAST = 25  # of the ink, in levels of 255: below, the image contains no digit
BORDER_CONTACT = 0.05  # a part that covers more of the frame than this is not ink but an edge or a shadow,
MIN_AREA = 0.004  # if there is another part of at least this share of the image
MIN_PART = 0.04  # smaller parts than this share of the largest one are dust
# Pens are thinner than MNIST's strokes: in pixels of the box, those have a width of 2.5 in the median and of 1.6 at the
# fifth percentile (competition's training rows, by `_stroke_width`).
STROKE_WIDTH = 2.0


class NoDigit(UserError):
    """An image file cannot be read, or contains nothing that could be a digit."""


def list_image_files(path: Path) -> list[Path]:
    """A file itself; of a folder, its PNG and JPEG files in order. Raises NoDigit if there are none."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise NoDigit(f"{path}: the folder contains no {' or '.join(FORMATS)} file")
    return files


def read_digit(path: Path) -> UInt8[np.ndarray, "28 28"]:
    """The digit in an image file in MNIST's form. Raises NoDigit."""
    try:
        return prepare_digit(_read_image(path))
    except NoDigit as error:
        raise NoDigit(f"{path}: {error}") from None


def _read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a file, rotated as its EXIF tag says, without transparency, and reduced if they are many."""
    if not path.exists():
        raise NoDigit("no such file")
    if not path.is_file():
        raise NoDigit("not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, for which MAX_PIXELS is the limit, and of damaged tags
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise NoDigit(f"has {file.width * file.height:,} pixels, more than {MAX_PIXELS:,}")
                file.verify()  # the checksums of a PNG file, after which it must be opened again
            with Image.open(path, formats=FORMATS) as file:
                rotation = _exif_rotation(file)
                image = _to_rgb(_reduce(file))
                return np.asarray(image if rotation is None else image.transpose(rotation))
    except UnidentifiedImageError:
        raise NoDigit(f"not a {' or '.join(FORMATS)} image") from None
    except NoDigit:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise NoDigit(f"the image cannot be read ({error})") from None


def _exif_rotation(file: Image.Image) -> Image.Transpose | None:
    """What makes the image upright. `ImageOps.exif_transpose` would fail if any other EXIF tag is damaged."""
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many kinds
        return None
    return ROTATIONS.get(orientation) if isinstance(orientation, int) else None


def _reduce(image: Image.Image) -> Image.Image:
    """The image in a mode that can be averaged, reduced if it is large; the exact reduction follows."""
    if image.mode.startswith("I"):  # 16 bits per pixel
        image = image.convert("I")
    elif image.mode != "F":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    factor = max(image.size) // (4 * WORK_SIZE)
    return image.reduce(factor) if factor > 1 else image


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; what is transparent becomes white, or black below bright ink."""
    if image.mode in ("I", "F"):
        levels = np.asarray(image, np.float64)
        return Image.fromarray(np.uint8(levels * (255 / max(levels.max(), 255)))).convert("RGB")
    if image.mode == "RGB":
        return image
    *colours, opacity = (np.asarray(band, np.float64) for band in image.split())
    brightness = sum((colour * opacity).sum() for colour in colours) / max(3 * opacity.sum(), 1)
    background = Image.new("RGBA", image.size, "black" if brightness > 127 else "white")
    return Image.alpha_composite(background, image).convert("RGB")


def prepare_digit(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "28 28"]:
    """Find the digit in an image of any size and colours, and bring it to MNIST's form. Raises NoDigit.

    As described for MNIST (Y. LeCun, C. Cortes, C. Burges): the digit is scaled to a box of 20x20 pixels without
    changing its proportions, and its centre of mass is moved to the centre of 28x28 pixels. Its gray levels are
    from the scaling of a black and white image.
    """
    ink = find_ink(_to_gray(_resize_image(image)))
    ink = _crop(_select_parts(ink))
    return _fit_box(_crop(_thicken(ink)))


def _resample_matrix(n_in: int, n_out: int) -> Float64[np.ndarray, "n_out n_in"]:
    """The matrix that resamples n_in values to n_out: means over areas, or linear interpolation to enlarge."""
    step = n_in / n_out
    if n_out > n_in:
        positions = np.clip((np.arange(n_out) + 0.5) * step - 0.5, 0, n_in - 1)
        weights: Float64[np.ndarray, "n_out n_in"] = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(n_in)))
        return weights
    return _overlaps(0, step, n_out, n_in) / step


def _overlaps(start: float, step: float, n_cells: int, n_in: int) -> Float64[np.ndarray, "n_cells n_in"]:
    """The fraction of each of n_in pixels that lies in each of n_cells cells of a size; the first begins at `start`."""
    low = start + step * np.arange(n_cells)[:, None]
    pixels = np.arange(n_in)
    overlaps = np.minimum(low + step, pixels + 1) - np.maximum(low, pixels)
    positive: Float64[np.ndarray, "n_cells n_in"] = np.maximum(overlaps, 0)
    return positive


def _resize_image(image: UInt8[np.ndarray, "height width 3"]) -> Float64[np.ndarray, "new_height new_width 3"]:
    """The image with a longest side of WORK_SIZE pixels."""
    scale = WORK_SIZE / max(image.shape[:2])
    rows, columns = (_resample_matrix(n, max(1, _round(n * scale))) for n in image.shape[:2])
    channels = np.ascontiguousarray(image.transpose(2, 0, 1), np.float64)
    resized: Float64[np.ndarray, "new_height new_width 3"] = (rows @ channels @ columns.T).transpose(1, 2, 0)
    return resized


def _round(value: float) -> int:
    return int(np.floor(value + 0.5))  # as JavaScript rounds


def _to_gray(image: Float64[np.ndarray, "height width 3"]) -> Integer[np.ndarray, "height width"]:
    """Gray levels from 0 to 255: the mixture of the channels in which the pixels differ most.

    It is the first principal component of the colours: red ink on green paper of the same brightness stays visible.
    """
    pixels = image.reshape(-1, 3)
    deviations = pixels - pixels.mean(0)
    covariance = deviations.T @ deviations / len(pixels)
    weights = covariance[covariance.diagonal().argmax()]
    if weights.max() < 1e-6:  # all pixels are equal
        weights = np.ones(3)
    for _ in range(30):
        weights = covariance @ weights if covariance.max() > 1e-6 else weights
        weights = weights / np.abs(weights).sum()
    levels = pixels @ weights - 255 * np.minimum(weights, 0).sum()
    gray: Integer[np.ndarray, "height width"] = np.clip(np.floor(levels + 0.5), 0, 255).astype(np.int64)
    return gray.reshape(image.shape[:2])


def find_ink(gray: Integer[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Which pixels are ink, dark or bright, on a background that may have gradients and shadows. Raises NoDigit."""
    frame = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    threshold = _otsu_threshold(gray)
    is_bright = float(np.mean(frame > threshold)) > 0.5
    if np.mean((frame > threshold) == is_bright) >= FLAT_FRAME:
        return _require_contrast((gray > threshold) != is_bright, gray)
    background = _local_background(gray)
    low, high = np.minimum(gray, background), np.maximum(gray, background)
    contrast = 1 - (low + DARKNESS) / (high + DARKNESS)
    contrast = np.where(gray < background, contrast, -contrast)
    sign = 1 if np.sum(contrast**3) >= 0 else -1  # dark ink, or bright ink
    levels = np.floor(np.maximum(0, 255 * sign * contrast) + 0.5).astype(np.int64)
    return _require_contrast(levels > _otsu_threshold(levels), levels)


def _require_contrast(
    ink: Bool[np.ndarray, "height width"], levels: Integer[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """The ink itself. Raises NoDigit if its mean level is too near to that of the other pixels."""
    if not ink.any() or abs(levels[ink].mean() - levels[~ink].mean()) < MIN_CONTRAST:
        raise NoDigit("no digit stands out from the background")
    return ink


def _otsu_threshold(levels: Integer[np.ndarray, "height width"]) -> int:
    """The level that separates two classes best: the higher one is above it.

    Source: N. Otsu, A threshold selection method from gray-level histograms (1979).
    """
    counts = np.bincount(levels.ravel(), minlength=256)
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * np.arange(256))
    above = levels.size - below
    valid = (below > 0) & (above > 0)
    difference = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return int(np.argmax(np.where(valid, below * above * difference**2, -1.0)))


def _local_background(gray: Integer[np.ndarray, "height width"]) -> Float64[np.ndarray, "height width"]:
    """The median of the surroundings of each pixel: it follows shadows, whose edges it keeps, and ignores strokes."""
    height, width = gray.shape
    sizes = [max(1, n // COARSE) for n in gray.shape]
    rows, columns = (_resample_matrix(n, size) for n, size in zip(gray.shape, sizes, strict=True))
    coarse = np.floor(rows @ gray @ columns.T + 0.5).astype(np.uint8)
    medians = ndimage.median_filter(coarse, size=WINDOW, mode="nearest").astype(np.float64)
    background: Float64[np.ndarray, "height width"] = (
        _resample_matrix(sizes[0], height) @ medians @ _resample_matrix(sizes[1], width).T
    )
    return background


def _select_parts(ink: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The connected parts of the ink that can belong to the digit, without dust and without what enters the image."""
    parts, n_parts = ndimage.label(ink, np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=n_parts + 1)[1:]
    frame = np.concatenate([parts[0], parts[-1], parts[1:-1, 0], parts[1:-1, -1]])
    contacts = np.bincount(frame, minlength=n_parts + 1)[1:]
    inside = contacts <= BORDER_CONTACT * len(frame)
    if (areas[inside] >= MIN_AREA * ink.size).any():
        areas = np.where(inside, areas, 0)
    if not contacts[areas.argmax()]:
        areas = np.where(contacts == 0, areas, 0)
    selected = areas >= max(1, MIN_PART * areas.max())
    is_selected: Bool[np.ndarray, "height width"] = np.concatenate([[False], selected])[parts]
    return is_selected


def _crop(ink: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "new_height new_width"]:
    """The smallest rectangle that contains the ink."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _stroke_width(ink: Bool[np.ndarray, "height width"]) -> float:
    """Width of the strokes in pixels: twice the area per length of the outline.

    The outline is counted in sides of pixels, which are 4 / pi times as long as a line of random direction.
    """
    padded = np.pad(ink, 1)
    outline = np.sum(padded[1:] != padded[:-1]) + np.sum(padded[:, 1:] != padded[:, :-1])
    return float(2 * ink.sum() / (outline * np.pi / 4))


def _thicken(ink: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "new_height new_width"]:
    """The ink with strokes of STROKE_WIDTH at least, in pixels of the box."""
    # The digit grows by twice the radius, and so does the size of a pixel of the box.
    missing = STROKE_WIDTH * max(ink.shape) / BOX - _stroke_width(ink)
    radius = missing / (2 - 2 * STROKE_WIDTH / BOX)
    if radius < 1:
        return ink
    margin = int(radius)
    distances = ndimage.distance_transform_edt(~np.pad(ink, margin))
    thick: Bool[np.ndarray, "new_height new_width"] = np.rint(distances**2) <= radius**2
    return thick


def _fit_box(ink: Bool[np.ndarray, "height width"]) -> UInt8[np.ndarray, "28 28"]:
    """Scale the ink to the box, and move its centre of mass to the centre."""
    step = max(ink.shape) / BOX
    n_cells = [max(1, int(np.ceil(n / step - 1e-9))) for n in ink.shape]
    rows, columns = (
        _overlaps((n - cells * step) / 2, step, cells, n) / step for n, cells in zip(ink.shape, n_cells, strict=True)
    )
    box = np.floor(255 * (rows @ ink.astype(np.float64) @ columns.T) + 0.5).astype(np.int64)
    image = np.zeros((SIDE, SIDE), np.uint8)
    corner = []
    for sums, cells in zip((box.sum(1), box.sum(0)), n_cells, strict=True):
        centre = float((sums * np.arange(cells)).sum() / sums.sum())
        corner.append(min(max(_round(CENTRE - centre), 0), SIDE - cells))
    image[corner[0] : corner[0] + n_cells[0], corner[1] : corner[1] + n_cells[1]] = box
    return image
