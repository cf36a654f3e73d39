"""The image files that people have, as pixels: their formats, EXIF rotation and transparency."""

from __future__ import annotations

import importlib
import importlib.util
import os
import stat
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import UserError
from pipeline.shapes import UInt8

FORMATS = ("PNG", "JPEG", "WebP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # of files in a folder
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12
HEIC_HELP = "convert HEIC to JPEG, or `pip install pillow-heif`"
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
MAX_SIDE = 800  # pixels: larger images are reduced by a whole factor, to a longest side of at least this


class NoDigit(UserError):
    """An image file cannot be read, or contains nothing that could be a digit."""


def list_image_files(path: Path) -> tuple[list[Path], str]:
    """A file itself; of a folder, its image files in order, and a line about the others. Raises NoDigit."""
    try:
        if not path.is_dir():
            return [path], ""
        files = sorted(file for file in path.iterdir() if not os.path.isdir(file))
    except OSError as error:
        raise NoDigit(f"{path}: cannot be read ({error.strerror})") from None
    suffixes = SUFFIXES + (HEIC_SUFFIXES if _can_read_heic() else ())
    images = [file for file in files if file.suffix.lower() in suffixes]
    skipped = Counter(
        file.suffix.lower() for file in files if file.suffix.lower() not in suffixes and not file.name.startswith(".")
    )
    note = ", ".join(f"{count} {suffix or 'without an extension'}" for suffix, count in sorted(skipped.items()))
    if note:
        note = f"{path}: skipped {note}"
        if not skipped.keys().isdisjoint(HEIC_SUFFIXES):
            note += f" ({HEIC_HELP})"
    if not images:
        raise NoDigit(f"{note or path}: the folder contains no image file ({_formats()})")
    return images, note


def _formats() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _can_read_heic() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a file, rotated as its EXIF tag says, without transparency, and reduced if they are many.

    Of an animation or a document, the first image. Raises NoDigit.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise NoDigit("not a file")  # opening a pipe would block
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, for which MAX_PIXELS is the limit, and of damaged tags
            formats = _choose_formats(path)
            with Image.open(path, formats=formats) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise NoDigit(f"has {file.width * file.height:,} pixels, more than {MAX_PIXELS:,}")
                file.verify()  # the checksums of a PNG file, after which it must be opened again
            with Image.open(path, formats=formats) as file:
                rotation = _exif_rotation(file)
                image = _to_rgb(_reduce(file))
                return np.asarray(image if rotation is None else image.transpose(rotation))
    except UnidentifiedImageError:
        raise NoDigit(f"not a {_formats()} image") from None
    except (FileNotFoundError, NotADirectoryError):
        raise NoDigit("no such file") from None
    except NoDigit:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise NoDigit(f"the image cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _choose_formats(path: Path) -> tuple[str, ...]:
    """The formats that a file is tried as. Only a HEIC file, whatever its name, needs pillow-heif."""
    with path.open("rb") as file:
        header = file.read(12)
    if header[4:8] != b"ftyp" or header[8:] not in HEIC_BRANDS:
        return FORMATS
    if not _can_read_heic():
        raise NoDigit(f"a HEIC image: {HEIC_HELP}")
    importlib.import_module("pillow_heif").register_heif_opener()
    return ("HEIF",)


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
    factor = max(image.size) // MAX_SIDE
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
