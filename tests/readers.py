"""Checks that a reader either accepts bytes as an independent oracle does, or refuses them in one line. For fuzzing."""

import json
import re
import tomllib

import numpy as np

from pipeline.dataset import idx, tables
from pipeline.dataset.files import SourceError, TableFile
from pipeline.recipes import config
from pipeline.recipes.config import ConfigError

NAMES = ("label", "pixel0", "pixel1")  # a narrow table: most of the fuzzer's bytes become cells
HEADER = ",".join(NAMES).encode() + b"\n"


def require_one_line(error, path):
    """A refusal must name the file and must be short."""
    message = str(error)
    assert path.name in message and len(message) < 5000, repr(message)


def check_csv(content, folder):
    """The first byte selects whether a valid header precedes the other bytes."""
    path = folder / "train.csv"
    text = (HEADER if content[:1] < b"\x80" else b"") + content[1:]
    path.write_bytes(text)
    tables.COLUMNS["narrow"] = list(NAMES)
    try:
        values = np.concatenate(tables.read_chunks(TableFile(path), "narrow"))
    except tables.DataError as error:
        require_one_line(error, path)
        return
    rows = re.sub(rb"\r?\n", b"\n", text.removeprefix(b"\xef\xbb\xbf")).rstrip(b"\r\n").split(b"\n")[1:]
    assert values.tolist() == [[int(cell) for cell in row.split(b",")] for row in rows]
    assert all(re.fullmatch(rb"[0-9]{1,3}(,[0-9]{1,3}){2}", row) for row in rows)


def check_idx(content, folder):
    """The first byte selects whether images or labels are expected, and whether the file is compressed."""
    compressed, images = content[:1] >= b"\x80", content[:1] < b"\x40" or content[:1] >= b"\xc0"
    path = folder / ("any-idx-ubyte" + (".gz" if compressed else ""))
    path.write_bytes(content[1:])
    try:
        values = idx.read_idx_file(TableFile(path), "images" if images else "labels")
    except SourceError as error:
        require_one_line(error, path)
        return
    if not compressed:
        start = 16 if images else 8
        assert list(content[1 + start :]) == values.ravel().tolist()
        assert [*values.shape] == [int.from_bytes(content[at : at + 4], "big") for at in range(5, 1 + start, 4)]


def check_recipe(content, folder):
    path = folder / "mine.toml"
    path.write_bytes(content)
    try:
        recipe = config.load_recipe(str(path))
    except ConfigError as error:
        require_one_line(error, path)
        return
    table = tomllib.loads(content.decode("utf-8-sig"))
    for section, values in table.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            loaded = json.loads(json.dumps(getattr(getattr(recipe, section), key)))  # lists for tuples
            assert loaded == value or loaded == float(value)


CHECKS = {"csv": check_csv, "idx": check_idx, "recipe": check_recipe}
SEEDS = {
    "csv": (b"\0" + b"5,0,255\n1,2,3\r\n9,99,100", b"\xff" + HEADER + b"5,0,255\n", b"\0\n\n", b"\0,,\n"),
    "idx": (
        b"\0\0\0\x08\3\0\0\0\2\0\0\0\x1c\0\0\0\x1c" + bytes(1568),
        b"\x50\0\0\x08\1\0\0\0\3\5\0\x09",
        b"\xc0\x1f\x8b\x08\0\0\0\0\0\0\3\3\0\0\0\0\0\0\0\0\0",
    ),
    "recipe": tuple((config.RECIPES / f"{name}.toml").read_bytes() for name in config.recipe_names()),
}
