"""Read MNIST's original distribution: four idx files."""

import math
import struct
from collections.abc import Mapping

import numpy as np

from pipeline.dataset.files import IDX_FILES, MAX_BYTES, SourceError, TableFile
from pipeline.shapes import UInt8

HEADERS = {"images": bytes((0, 0, 8, 3)), "labels": bytes((0, 0, 8, 1))}  # zeros, type uint8, number of dimensions


def read_mnist(files: Mapping[str, TableFile]) -> dict[str, UInt8[np.ndarray, "..."]]:
    """The four arrays, uint8, by their names in IDX_FILES: images (n, 28, 28) and labels (n,). Raises SourceError."""
    arrays = {name: read_idx_file(files[name], "images" if "images" in name else "labels") for name in IDX_FILES}
    for images, labels in (IDX_FILES[:2], IDX_FILES[2:]):
        if len(arrays[images]) != len(arrays[labels]):
            raise SourceError(
                f"{files[images]} has {len(arrays[images])} images, but "
                f"{files[labels].name} has {len(arrays[labels])} labels"
            )
    return arrays


def read_idx_file(file: TableFile, content: str) -> UInt8[np.ndarray, "..."]:
    """The array in an idx file of "images" (n, 28, 28) or "labels" (n,), uint8. Raises SourceError.

    Format: magic number, big-endian uint32 sizes, values. Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database
    of handwritten digits.
    """
    magic = HEADERS[content]
    n_dimensions = magic[3]
    start = 4 + 4 * n_dimensions
    with file.open() as stream:
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) < start or raw[:4] != magic:
        raise SourceError(f"{file}: not an idx file of {content}: it begins {raw[:4].hex()!r}")
    shape = struct.unpack(f">{n_dimensions}I", raw[4:start])
    size = math.prod(shape)
    if len(raw) - start != size:
        raise SourceError(f"{file}: {len(raw) - start} bytes of data, expected {size} for {shape}; get it again")
    if content == "images" and shape[1:] != (28, 28):
        raise SourceError(f"{file}: images of {shape[1]}x{shape[2]} pixels, expected 28x28")
    values = np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
    if content == "labels" and size and values.max() > 9:
        raise SourceError(f"{file}: label {values.max()} at row {values.argmax() + 1}, expected 0-9")
    return values
