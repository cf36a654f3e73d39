"""Reading MNIST's idx files, against arrays that were written with `struct`."""

import gzip
import struct

import numpy as np
import pytest

from pipeline.dataset import files, idx
from pipeline.dataset.files import SourceError
from tests.conftest import digits_28, write_tables

IMAGES, LABELS = digits_28(60)


def encode(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


FILES = {
    "train-images-idx3-ubyte": encode(IMAGES[:50]),
    "train-labels-idx1-ubyte": encode(LABELS[:50]),
    "t10k-images-idx3-ubyte": encode(IMAGES[50:]),
    "t10k-labels-idx1-ubyte": encode(LABELS[50:]),
}


def read(folder):
    return idx.read_mnist(files.find_mnist(files.list_folder(folder)))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_arrays(tmp_path, suffix):
    compress = gzip.compress if suffix else bytes
    arrays = read(write_tables(tmp_path, {f"{name}{suffix}": compress(content) for name, content in FILES.items()}))
    for array, expected in zip(arrays.values(), (IMAGES[:50], LABELS[:50], IMAGES[50:], LABELS[50:]), strict=True):
        assert array.dtype == np.uint8 and np.array_equal(array, expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"\0\0\x08\x03abc", "not an idx file of images"),
        ("train-images-idx3-ubyte", FILES["train-labels-idx1-ubyte"], "not an idx file of images"),
        ("t10k-images-idx3-ubyte", FILES["t10k-images-idx3-ubyte"][:-1], "7839 bytes of data, expected 7840"),
        ("train-images-idx3-ubyte", encode(IMAGES[:50, :, :27]), "28x27 pixels, expected 28x28"),
        ("train-labels-idx1-ubyte", encode(np.array([1, 12], np.uint8)), "label 12 at row 2, expected 0-9"),
        ("train-labels-idx1-ubyte", encode(LABELS[:2]), "has 50 images, but train-labels-idx1-ubyte has 2 labels"),
    ],
)
def test_errors(tmp_path, name, content, message):
    with pytest.raises(SourceError, match=message) as error:
        read(write_tables(tmp_path, FILES | {name: content}))
    assert name in str(error.value)
