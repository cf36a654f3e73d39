"""Images of digits that the tests draw: with strokes, with fonts, and photos of given digits. Deterministic by seed."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONT_NAMES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "cmr10", "cmss10", "STIXGeneral")

# Each digit as strokes: corners of curves in a box of 1x1, y downwards.
STROKES = {
    0: [[(0.5, 0.02), (0.15, 0.2), (0.1, 0.6), (0.35, 0.98), (0.7, 0.9), (0.88, 0.5), (0.75, 0.1), (0.5, 0.02)]],
    1: [[(0.55, 0.0), (0.5, 0.5), (0.45, 1.0)]],
    2: [[(0.15, 0.2), (0.4, 0.0), (0.75, 0.1), (0.75, 0.35), (0.45, 0.7), (0.12, 0.98)], [(0.12, 0.98), (0.9, 0.95)]],
    3: [[(0.15, 0.08), (0.55, 0.0), (0.8, 0.2), (0.65, 0.42), (0.4, 0.47)],
        [(0.4, 0.47), (0.8, 0.55), (0.85, 0.8), (0.55, 1.0), (0.12, 0.92)]],
    4: [[(0.35, 0.0), (0.2, 0.3), (0.1, 0.6)], [(0.1, 0.6), (0.9, 0.55)], [(0.7, 0.1), (0.68, 0.5), (0.62, 1.0)]],
    5: [[(0.85, 0.02), (0.3, 0.05)], [(0.3, 0.05), (0.22, 0.45)],
        [(0.22, 0.45), (0.6, 0.38), (0.85, 0.6), (0.75, 0.9), (0.4, 1.0), (0.12, 0.9)]],
    6: [[(0.7, 0.0), (0.35, 0.25), (0.18, 0.6), (0.25, 0.92), (0.55, 1.0), (0.8, 0.85), (0.78, 0.6), (0.5, 0.5),
         (0.2, 0.68)]],
    7: [[(0.1, 0.08), (0.88, 0.03)], [(0.88, 0.03), (0.6, 0.5), (0.42, 1.0)]],
    8: [[(0.78, 0.15), (0.5, 0.0), (0.22, 0.15), (0.3, 0.38), (0.7, 0.62), (0.8, 0.85), (0.5, 1.0), (0.2, 0.85),
         (0.3, 0.62), (0.7, 0.38), (0.78, 0.15)]],
    9: [[(0.8, 0.25), (0.55, 0.02), (0.25, 0.12), (0.2, 0.38), (0.45, 0.5), (0.75, 0.38), (0.8, 0.22)],
        [(0.8, 0.22), (0.75, 0.6), (0.62, 1.0)]],
}  # fmt: skip


def smooth(corners, n_points=24):
    """A curve through the corners (Catmull and Rom)."""
    points = np.array([corners[0], *corners, corners[-1]], float)
    curve = []
    for a, b, c, d in zip(points, points[1:], points[2:], points[3:], strict=False):
        for t in np.linspace(0, 1, n_points, endpoint=False):
            curve.append(
                0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
            )
    return [*curve, points[-1]]


def draw_strokes(digit, seed, size=240, colours=("black", "white"), width=None):
    """A digit as a hand might write it: jittered, slanted, somewhere in the image. colours: of ink and paper."""
    rng = np.random.default_rng([digit, seed])
    scale = size * rng.uniform(0.45, 0.7)
    slant, squeeze = rng.uniform(-0.15, 0.3), rng.uniform(0.6, 0.9)
    corner = np.array([rng.uniform(0.15, 0.25), rng.uniform(0.12, 0.2)]) * size
    pen = (width or rng.uniform(0.05, 0.16)) * scale
    image = Image.new("RGB", (size, size), colours[1])
    draw = ImageDraw.Draw(image)
    jitter = {}
    for stroke in STROKES[digit]:
        for corner_point in stroke:  # a corner that two strokes share stays shared
            jitter.setdefault(corner_point, rng.normal(0, 0.025, 2))
        for x, y in smooth([np.array(point) + jitter[point] for point in stroke]):
            x, y = corner + scale * np.array([squeeze * x + slant * (1 - y), y])
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=colours[0])
    return image


def draw_font(digit, font_name, size=200, colours=("black", "white"), margin=0.25):
    """A printed digit in the middle of an image."""
    font = ImageFont.truetype(str(FONTS / f"{font_name}.ttf"), int(size * (1 - 2 * margin)))
    image = Image.new("RGB", (size, size), colours[1])
    ImageDraw.Draw(image).text((size / 2, size / 2), str(digit), fill=colours[0], font=font, anchor="mm")
    return image


def photograph(digit_image, seed, size=(480, 360)):
    """A photo of a digit (28x28, white on black) that is written on paper, or in chalk on a board.

    With a gradient of light, a shadow with an edge, a rotation of up to 12 degrees, blur and noise.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    side = int(rng.uniform(0.45, 0.75) * min(size))
    pasted = Image.fromarray(digit_image).resize((side, side), Image.Resampling.BICUBIC)
    pasted = pasted.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    ink = Image.new("L", size)
    ink.paste(pasted, (int(rng.uniform(0.1, 0.9) * (width - side)), int(rng.uniform(0.1, 0.9) * (height - side))))
    opacity = np.asarray(ink, float)[:, :, None] / 255
    if rng.random() < 0.75:  # pencil, ball pen or marker on paper
        paper, pen = rng.uniform(190, 250, 3), rng.uniform(10, 90, 3)
    else:
        paper, pen = np.array([45, 65, 55]) + rng.uniform(-15, 15, 3), rng.uniform(180, 240, 3)
    scene = paper * (1 - opacity) + pen * opacity
    y, x = np.mgrid[:height, :width] / max(size)
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 - rng.uniform(0, 0.35) * (x * np.cos(angle) + y * np.sin(angle) + 0.5)
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.15, 0.15)
    distance = (x - 0.5) * np.cos(angle) + (y - 0.37) * np.sin(angle) - offset
    shadow = 1 - rng.uniform(0.2, 0.5) / (1 + np.exp(-distance / rng.uniform(0.003, 0.02)))
    scene = scene * (light * shadow)[:, :, None]
    image = Image.fromarray(np.uint8(np.clip(scene, 0, 255))).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    noisy = np.asarray(image, float) + rng.normal(0, rng.uniform(2, 10), (height, width, 3))
    return Image.fromarray(np.uint8(np.clip(noisy, 0, 255)))
