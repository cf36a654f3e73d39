"""Photos and drawings of a digit, brought to the form of MNIST's images: 28x28, white on black, size and centre fixed.

`prepare.js` and `search.js` in `pipeline/extras/export/demo/` have the same procedure in JavaScript; a test compares
the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from pipeline.extras.recognize.image_files import NoDigit, read_image
from pipeline.shapes import Bool, Float64, Integer, Shaped, UInt8

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
# A sheet, a canvas or a box fills a rectangle of any angle to this share, with a longer side of the image times
# MIN_SHEET at least. The image inside it begins at MARGIN of the shorter side.
MIN_FILL, MIN_SHEET, MARGIN, MAX_DEPTH = 0.88, 0.2, 0.03, 4
ANGLES = np.radians(np.arange(-45, 45))
# What is in a sheet covers more than MIN_CONTENT of it in one direction, and less than MAX_CONTENT in the other. It is
# no solid rectangle of more than MIN_BLOCK in both: that would be the sheet itself in a thick frame.
MIN_CONTENT, MAX_CONTENT, MIN_BLOCK = 0.15, 0.9, 0.25
# Ruling: at least two lines of one slope and at most MAX_LINE pixels that reach both sides of the image, and are ink to
# this share. Gaps of up to twice MAX_GAP pixels that they leave in strokes are closed.
SLOPES = np.arange(-24, 25) / 100
MAX_LINE, LINE_COVERAGE, MAX_GAP = 6, 0.7, 4
MAX_FILL = 0.85  # a digit that fills more of its rectangle, and is not a long stroke, is doubtful
# A digit is doubtful if fewer of its outline's pixels are as sharp as EDGE times the third quartile, or if its largest
# part is smaller than this share of it, in one direction.
MIN_SHARP, EDGE, MIN_EXTENT = 0.9, 0.4, 0.75
EIGHT = np.ones((3, 3))  # diagonal neighbours are connected


class PreparedDigit(NamedTuple):
    """A digit in MNIST's form; doubtful if it may be something else, or only a part of a digit."""

    image: UInt8[np.ndarray, "28 28"]
    is_doubtful: bool


class Rectangle(NamedTuple):
    """Center, size and angle, in pixels and radians, and the share of it that is filled."""

    x: float
    y: float
    width: float
    height: float
    angle: float
    fill: float


def read_digit(path: Path) -> PreparedDigit:
    """The digit in an image file. Raises NoDigit."""
    try:
        return prepare_digit(read_image(path))
    except NoDigit as error:
        raise NoDigit(f"{path}: {error}") from None


def prepare_digit(image: UInt8[np.ndarray, "height width 3"]) -> PreparedDigit:
    """Find the digit in an image of any size and colours, and bring it to MNIST's form. Raises NoDigit.

    As described for MNIST (Y. LeCun, C. Cortes, C. Burges): the digit is scaled to a box of 20x20 pixels without
    changing its proportions, and its centre of mass is moved to the centre of 28x28 pixels. Its gray levels are
    from the scaling of a black and white image.
    """
    ink, is_doubtful = _find_digit(image, depth=0)
    return PreparedDigit(_fit_box(_crop(_thicken(ink))), is_doubtful)


def _find_digit(
    image: UInt8[np.ndarray, "height width 3"], depth: int
) -> tuple[Bool[np.ndarray, "new_height new_width"], bool]:
    """The digit's ink in the innermost sheet, canvas or box that contains any, and whether it is doubtful."""
    gray = _to_gray(_resize_image(image))
    ink = find_ink(gray)
    without_lines = _remove_ruling(ink)
    is_ruled = without_lines is not ink
    for rectangle in () if is_ruled or depth == MAX_DEPTH else _find_rectangles(gray, ink):
        try:
            return _find_digit(_cut_out(image, rectangle), depth + 1)
        except NoDigit:  # nothing is in it: it may be the digit itself
            continue
    digit = _select_parts(without_lines)
    cropped = _crop(digit)
    rectangle = _fit_rectangle(ndimage.binary_fill_holes(cropped))
    shorter, longer = sorted((rectangle.width, rectangle.height))
    if depth:
        shares = np.divide(cropped.shape, gray.shape)
        is_solid = shares.min() > MIN_BLOCK and cropped.sum() > MIN_FILL * shorter * longer
        if shares.max() < MIN_CONTENT or shares.min() > MAX_CONTENT or is_solid:
            raise NoDigit("no digit is in the sheet")
    is_block = rectangle.fill > MAX_FILL and 2 * shorter > longer
    return cropped, is_block or _is_doubtful(digit, gray)


def _find_rectangles(
    gray: Integer[np.ndarray, "height width"], ink: Bool[np.ndarray, "height width"]
) -> list[Rectangle]:
    """The connected parts, dark or bright, that fill a rectangle if their holes are filled; the largest first."""
    is_bright = gray > _otsu_threshold(gray)
    rectangles = []
    for mask in (ink, is_bright, ~is_bright):
        parts, n_parts = ndimage.label(mask, EIGHT)
        contacts = np.bincount(_frame(parts), minlength=n_parts + 1)
        for label, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
            size = min(rows.stop - rows.start, columns.stop - columns.start)
            if size < MIN_SHEET * max(gray.shape) or contacts[label] > BORDER_CONTACT * len(_frame(gray)):
                continue
            fitted = _fit_rectangle(ndimage.binary_fill_holes(parts[rows, columns] == label))
            if fitted.fill >= MIN_FILL:
                rectangles.append(fitted._replace(x=fitted.x + columns.start, y=fitted.y + rows.start))
    return sorted(dict.fromkeys(rectangles), key=lambda rectangle: -rectangle.width * rectangle.height)


def _fit_rectangle(part: Bool[np.ndarray, "height width"]) -> Rectangle:
    """The smallest rectangle, of all angles, around a connected part."""
    y = np.repeat(np.arange(len(part)), 2)
    x = np.stack([part.argmax(1), part.shape[1] - 1 - part[:, ::-1].argmax(1)], 1).ravel()  # ends of each row
    cos, sin = np.cos(ANGLES), np.sin(ANGLES)
    along, across = x[:, None] * cos + y[:, None] * sin, y[:, None] * cos - x[:, None] * sin
    widths, heights = (np.ptp(values, 0) + np.abs(cos) + np.abs(sin) for values in (along, across))
    best = int(np.argmin(widths * heights))
    u, v = ((values[:, best].min() + values[:, best].max()) / 2 for values in (along, across))
    width, height, angle = float(widths[best]), float(heights[best]), float(ANGLES[best])
    x_center, y_center = u * cos[best] - v * sin[best] + 0.5, u * sin[best] + v * cos[best] + 0.5
    return Rectangle(float(x_center), float(y_center), width, height, angle, float(part.sum() / (width * height)))


def _cut_out(
    image: UInt8[np.ndarray, "height width 3"], rectangle: Rectangle
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """The inside of a rectangle of the image at WORK_SIZE, upright, by linear interpolation."""
    x, y, width, height, angle, _ = rectangle
    scale = max(image.shape) / WORK_SIZE
    margin = MARGIN * min(width, height) + 1
    u, v = (
        (np.arange(max(1, _round((length - 2 * margin) * scale))) + 0.5) / scale + margin - length / 2
        for length in (width, height)
    )
    columns = (x + u * np.cos(angle) - v[:, None] * np.sin(angle)) * scale - 0.5
    rows = (y + u * np.sin(angle) + v[:, None] * np.cos(angle)) * scale - 0.5
    columns, rows = np.clip(columns, 0, image.shape[1] - 1), np.clip(rows, 0, image.shape[0] - 1)
    left, top = columns.astype(np.int64), rows.astype(np.int64)
    right, bottom = np.minimum(left + 1, image.shape[1] - 1), np.minimum(top + 1, image.shape[0] - 1)
    to_right, down = (columns - left)[:, :, None], (rows - top)[:, :, None]
    upper = image[top, left] * (1 - to_right) + image[top, right] * to_right
    lower = image[bottom, left] * (1 - to_right) + image[bottom, right] * to_right
    inside: UInt8[np.ndarray, "new_height new_width 3"] = np.floor(upper * (1 - down) + lower * down + 0.5).astype(
        np.uint8
    )
    return inside


def _remove_ruling(ink: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The ink without parallel lines across the image, in one direction or two; strokes that they cross are closed."""
    lines = _find_lines(ink) | _find_lines(ink.T).T
    rest: Bool[np.ndarray, "height width"] = ink & ~lines
    if not lines.any() or not rest.any():
        return ink
    padded = np.pad(rest, 2 * MAX_GAP)
    closed = ~_dilate(~_dilate(padded, MAX_GAP), MAX_GAP)
    rest |= closed[2 * MAX_GAP : -2 * MAX_GAP, 2 * MAX_GAP : -2 * MAX_GAP] & ink
    return rest


def _find_lines(ink: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Where parallel lines are that run from left to right; nowhere if there are fewer than two."""
    height, width = ink.shape
    y, x = np.nonzero(ink)
    sides = (x < width / 20, x >= width - width / 20)
    most, lines = 0, np.zeros_like(ink)
    for slope in SLOPES if sides[0].any() and sides[1].any() else ():
        # A line is a row after the columns are shifted.
        shifts = width - np.floor(slope * (np.arange(width) - width / 2) + 0.5).astype(np.int64)
        n_rows = height + 2 * width
        counts = np.bincount(y + shifts[x], minlength=n_rows)
        starts, ends = (np.bincount(shifts + n, minlength=n_rows) for n in (0, height))
        lengths = np.cumsum(starts - ends)
        is_line = (counts >= LINE_COVERAGE * lengths) & (lengths >= width / 2)
        is_line &= ~ndimage.binary_opening(is_line, np.ones(MAX_LINE + 1))
        n_covered = int(counts[is_line].sum())
        through = is_line
        for side in sides:
            ends = np.bincount((y + shifts[x])[side], minlength=n_rows)
            through = through & (ndimage.maximum_filter1d(ends, 5) > 0)
        if n_covered > most and np.sum(through[1:] & ~through[:-1]) >= 2:
            near = is_line | np.roll(is_line, 1) | np.roll(is_line, -1)
            most, lines = n_covered, near[np.arange(height)[:, None] + shifts]
    return lines


def _is_doubtful(digit: Bool[np.ndarray, "height width"], gray: Integer[np.ndarray, "height width"]) -> bool:
    """Whether the digit may be cut off, or have been put together, or have an outline that the image does not show."""
    parts, _ = ndimage.label(digit, EIGHT)
    largest = _crop(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
    extent = np.divide(largest.shape, _crop(digit).shape).min()
    padded = np.pad(gray, 1, mode="edge")
    steps = (padded[1:-1, 2:] - padded[1:-1, :-2]) ** 2 + (padded[2:, 1:-1] - padded[:-2, 1:-1]) ** 2
    outline = digit & ~ndimage.binary_erosion(digit, border_value=1)
    edges = np.sort(ndimage.maximum_filter(np.sqrt(steps), 3)[outline])
    sharp = np.mean(edges > EDGE * edges[3 * len(edges) // 4]) if len(edges) else 0
    return bool(_frame(digit).any() or extent < MIN_EXTENT or sharp < MIN_SHARP)


def _frame(values: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, " n"]:
    """The values at the border of the image, each once."""
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


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
    parts, n_parts = ndimage.label(ink, EIGHT)
    areas = np.bincount(parts.ravel(), minlength=n_parts + 1)[1:]
    frame = _frame(parts)
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
    return _dilate(np.pad(ink, int(radius)), radius)


def _dilate(ink: Bool[np.ndarray, "height width"], radius: float) -> Bool[np.ndarray, "height width"]:
    """The pixels that are not farther than the radius from ink."""
    distances = ndimage.distance_transform_edt(~ink)
    near: Bool[np.ndarray, "height width"] = np.rint(distances**2) <= radius**2
    return near


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
