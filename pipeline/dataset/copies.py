"""Images that occur several times."""

import numpy as np

from pipeline.shapes import Int64, UInt8


def first_of_equal(images: UInt8[np.ndarray, "n 28 28"]) -> dict[bytes, int]:
    """The index of the first of all equal images, by content."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(images):
        first.setdefault(image.tobytes(), index)
    return first


def find_copies(
    images: UInt8[np.ndarray, "n 28 28"], others: UInt8[np.ndarray, "m 28 28"] | None = None
) -> Int64[np.ndarray, "copies 2"]:
    """Index pairs of equal images: of `images` and `others`, or within `images`: the first and a later one."""
    first = first_of_equal(images)
    candidates = enumerate(images if others is None else others)
    pairs = [(first.get(image.tobytes()), index) for index, image in candidates]
    copies = [(original, index) for original, index in pairs if original is not None]
    if others is None:
        copies = [(original, index) for original, index in copies if original != index]
    return np.array(copies, np.int64).reshape(-1, 2)
