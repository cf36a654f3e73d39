"""What a reader may do with any bytes: take them as the oracle does, or refuse them in one line. For fuzzing."""

import dataclasses
import json
import re
import tomllib

import numpy as np

from pipeline import digits, recipe, sources
from pipeline.settings import SECTIONS, RecipeError

NAMES = ("label", "pixel0", "pixel1")  # a table as narrow as the reader allows: more of the fuzzer's bytes are cells
HEADER = ",".join(NAMES).encode() + b"\n"


def refused(error, path):
    """The line that a refusal is; it must name the file, and hold nothing that could disturb a terminal."""
    line = str(error)
    assert path.name in line and line.isprintable() and len(line) < 5000, repr(line)
    return line


def check_csv(content, folder):
    """The first byte says whether a right header stands before the others."""
    path = folder / "train.csv"
    text = (HEADER if content[:1] < b"\x80" else b"") + content[1:]
    path.write_bytes(text)
    digits.COLUMNS["narrow"] = list(NAMES)
    try:
        values = np.concatenate(digits._read_pixels(digits.Table(path), "narrow"))
    except digits.DataError as error:
        refused(error, path)
        return
    rows = re.sub(rb"\r?\n", b"\n", text.removeprefix(b"\xef\xbb\xbf")).rstrip(b"\r\n").split(b"\n")[1:]
    assert values.tolist() == [[int(cell) for cell in row.split(b",")] for row in rows]
    assert all(re.fullmatch(rb"[0-9]{1,3}(,[0-9]{1,3}){2}", row) for row in rows)


def check_idx(content, folder):
    """The first byte says whether images or labels are asked for, and whether the file is packed."""
    packed, images = content[:1] >= b"\x80", content[:1] < b"\x40" or content[:1] >= b"\xc0"
    path = folder / ("some-idx-ubyte" + (".gz" if packed else ""))
    path.write_bytes(content[1:])
    try:
        values = sources._read_idx(path, ("train", "images" if images else "labels"))
    except sources.SourceError as error:
        refused(error, path)
        return
    if not packed:
        start = 16 if images else 8
        assert list(content[1 + start :]) == values.ravel().tolist()
        assert [*values.shape] == [int.from_bytes(content[at : at + 4], "big") for at in range(5, 1 + start, 4)]


def check_recipe(content, folder):
    path = folder / "mine.toml"
    path.write_bytes(content)
    try:
        made = recipe.load(str(path))
    except RecipeError as error:
        refused(error, path)
        return
    table = tomllib.loads(content.decode("utf-8-sig"))
    known = {section: {f.name for f in dataclasses.fields(kind)} for section, kind in SECTIONS.items()}
    for section, values in table.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            found = json.loads(json.dumps(getattr(getattr(made, section), key)))  # lists for tuples
            assert key in known[section] and (found == value or found == float(value))


CHECKS = {"csv": check_csv, "idx": check_idx, "recipe": check_recipe}
SEEDS = {
    "csv": (b"\0" + b"5,0,255\n1,2,3\r\n9,99,100", b"\xff" + HEADER + b"5,0,255\n", b"\0\n\n", b"\0,,\n"),
    "idx": (
        b"\0\0\0\x08\3\0\0\0\2\0\0\0\x1c\0\0\0\x1c" + bytes(1568),
        b"\x50\0\0\x08\1\0\0\0\3\5\0\x09",
        b"\xc0\x1f\x8b\x08\0\0\0\0\0\0\3\3\0\0\0\0\0\0\0\0\0",
    ),
    "recipe": tuple((recipe.RECIPES / f"{name}.toml").read_bytes() for name in recipe.names()),
}
