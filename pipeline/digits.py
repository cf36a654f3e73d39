"""Reading and checking the competition's CSVs, and the train/validation split.

The tables are read as bytes, some hundred rows at a time: where every byte of a piece is a digit, a comma or the end
of a row, and they fall in a regular grid, its values are computed by numpy at once, a piece on each core; anywhere
else the piece is searched cell by cell for what is wrong. So nothing is accepted that is not exactly a table of small
integers, and every complaint names file, row and column.
"""

import gzip
import itertools
import lzma
import math
import os
import re
import zipfile
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.memory import keep_freed_memory
from pipeline.settings import Split

SIDE = 28
PIXELS = [f"pixel{i}" for i in range(SIDE * SIDE)]
COLUMNS = {"train": ["label", *PIXELS], "test": PIXELS, "sample_submission": ["ImageId", "Label"]}
PIECE = 1 << 19  # bytes parsed at a time, so that what numpy makes of them stays in a core's cache
WORKERS = min(os.cpu_count() or 1, 8)  # threads: numpy works outside Python's lock
MOST = 1 << 29  # bytes of a table, unpacked; MNIST as one CSV has 130 MB
LONGEST_ROW = 1 << 16  # bytes; a row of 785 values takes at most 3,140


class DataError(ValueError):
    """What is wrong with the data: file, row, column, and what was expected, in one line."""


@dataclass(frozen=True)
class Table:
    """Where a table lies: a CSV, a CSV in gzip, or a member of a zip."""

    path: Path
    member: str | None = None

    def __str__(self):
        return f"{self.path}" + (f" ({self.member})" if self.member else "")

    def size(self):
        """Its bytes, unpacked, about; 0 where that cannot be told."""
        try:
            if self.member:
                with zipfile.ZipFile(self.path) as archive:
                    return archive.getinfo(self.member).file_size
            return self.path.stat().st_size * (16 if self.path.suffix == ".gz" else 1)  # gzip makes digits 8x smaller
        except (OSError, zipfile.BadZipFile, KeyError, NotImplementedError):  # `open` says what is wrong, in one line
            return 0

    @contextmanager
    def open(self):
        """The table's bytes, uncompressed, as a stream; what is wrong with the file becomes a DataError."""
        try:
            if self.member:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                    yield stream
            elif self.path.suffix == ".gz":
                with gzip.open(self.path) as stream:
                    yield stream
            else:
                with open(self.path, "rb", buffering=0) as stream:
                    yield stream
        except FileNotFoundError:
            raise DataError(f"{self}: there is no such file") from None
        except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise DataError(f"{self}: the file is damaged ({error}); get it again") from None
        except (RuntimeError, NotImplementedError) as error:  # zipfile: encrypted, or a method it does not know
            raise DataError(f"{self}: cannot be unpacked ({error})") from None
        except OSError as error:
            raise DataError(f"{self}: cannot be read ({error.strerror or error})") from None


def read_train(table):
    """Images (n, 28, 28) and labels (n,), both uint8, of `train.csv`. Raises DataError."""
    parts = _read_pixels(table, "train")
    images = np.concatenate([part[:, 1:] for part in parts])
    return images.reshape(-1, SIDE, SIDE), np.concatenate([part[:, 0] for part in parts])


def read_test(table):
    """Images (n, 28, 28), uint8, of `test.csv`. Raises DataError."""
    return np.concatenate(_read_pixels(table, "test")).reshape(-1, SIDE, SIDE)


def read_submission(table, rows):
    """Labels (rows,), uint8, of a file in the form of `sample_submission.csv`, whose ids must be 1 to `rows`."""
    most = LONGEST_ROW + 16 * rows  # bytes: "28000,0\r\n" has nine
    with table.open() as stream:
        text = stream.read(most + 1)
    lines = text.replace(b"\r\n", b"\n").rstrip(b"\r\n").split(b"\n")
    _check_header(table, "sample_submission", lines[0])
    labels = np.zeros(len(lines) - 1, np.uint8)
    for row, line in enumerate(lines[1:], 1):
        match = re.fullmatch(rb"([0-9]{1,9}),([0-9])", line)
        if not match:
            raise DataError(f"{table}: row {row} (line {row + 1}) is {_shown(line)}, expected an id and a label 0-9")
        if int(match[1]) != row:
            raise DataError(
                f"{table}: row {row} (line {row + 1}), column ImageId is {int(match[1])}, expected {row}: "
                f"the ids must be those of the test rows, 1 to {rows}"
            )
        labels[row - 1] = int(match[2])
    if len(labels) != rows or len(text) > most:
        raise DataError(f"{table}: {len(labels)} rows, expected {rows}, one for each row of test.csv")
    return labels


def split(labels, settings: Split):
    """Row numbers (from 0, ascending) of the training and of the validation part, stratified by label.

    With folds, every row is of both parts: `folds` says when it is of which.
    """
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    if settings.folds:
        return rows, rows
    counts = np.bincount(labels, minlength=10)
    held = math.ceil(len(labels) * settings.fraction)
    few = [str(digit) for digit in range(10) if counts[digit] == 1]
    classes = np.count_nonzero(counts)
    if few:
        raise DataError(f"train.csv: label {few[0]} stands in one row only, and the split needs two of each label")
    if held < classes or len(labels) - held < classes:
        raise DataError(
            f"train.csv: of {len(labels)} rows, split.fraction {settings.fraction} holds out {held}: "
            f"each part needs {classes} or more, one of each label"
        )
    parts = train_test_split(rows, test_size=settings.fraction, stratify=labels, random_state=settings.seed)
    return tuple(np.sort(part) for part in parts)


def folds(labels, settings: Split):
    """The fold of each row, uint8 (n,), from 0: the one of the `settings.folds` trainings that holds it out."""
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(labels, minlength=10)
    few = [digit for digit in range(10) if 0 < counts[digit] < settings.folds]
    if few:
        raise DataError(
            f"train.csv: label {few[0]} stands in {counts[few[0]]} rows only, and split.folds {settings.folds} needs "
            "one for each fold"
        )
    parts = StratifiedKFold(settings.folds, shuffle=True, random_state=settings.seed)
    made = np.empty(len(labels), np.uint8)
    for fold, (_, held) in enumerate(parts.split(labels, labels)):
        made[held] = fold
    return made


def overlap(train_images, test_images):
    """How many of the test images also stand, pixel for pixel, in train."""
    known = {image.tobytes() for image in train_images}
    return sum(image.tobytes() in known for image in test_images)


def _read_pixels(table, kind):
    """All rows, in parts (rows, columns), uint8."""
    keep_freed_memory()
    columns = len(COLUMNS[kind])
    parts, rows, waiting = [], 0, deque()

    def take_oldest():
        nonlocal rows
        body, parsed = waiting.popleft()
        values = parsed.result()
        if values is None or (kind == "train" and values[:, 0].max() > 9):
            _find_fault(table, kind, body, rows)
        parts.append(values)
        rows += len(values)
        if 2 * columns * rows > MOST:  # a cell and its comma
            raise DataError(f"{table}: more than {rows - 1:,} rows, which is more than any such table has")

    with table.open() as stream, ThreadPoolExecutor(WORKERS) as pool:
        for body in _pieces(stream, _read_header(table, kind, stream)):
            waiting.append((body, pool.submit(_parse, body, columns)))
            if len(waiting) > 2 * WORKERS:
                take_oldest()
        while waiting:
            take_oldest()
    if not parts:
        raise DataError(f"{table}: there is a header and no rows")
    return parts


def _pieces(stream, rest):
    """Yield the bytes of whole rows, some at a time; `rest` was read before. The last row may come without its end."""
    while new := stream.read(PIECE):
        body = rest + new
        # The last row stays behind until the next piece, and so do empty lines, which only the end may have.
        cut = body.rstrip(b"\r\n").rfind(b"\n") + 1
        if cut:
            yield body[:cut]
        rest = body[cut:]
        if len(rest) > LONGEST_ROW:
            yield rest[:LONGEST_ROW]  # no row of the table, and refused as such
            return
    rest = rest.rstrip(b"\r\n")
    if rest:
        yield rest + b"\n"


def _parse(body, columns):
    """The values (rows, columns), uint8, of whole rows; None where they are not a grid of integers 0-255.

    Each byte is looked at together with the three before it; the values are those found where a cell ends.
    """
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n")
    text = np.frombuffer(b"\n\n\n\n" + body, np.uint8)  # the first cell, too, has three bytes before it
    digits = text - np.uint8(ord("0"))  # other bytes wrap round to 10 and more
    is_digit = digits <= 9
    ends, newlines = ~is_digit[4:], text[4:] == ord("\n")
    rows, cells = np.count_nonzero(newlines), np.count_nonzero(ends)
    if cells != rows * columns or cells != rows + np.count_nonzero(text[4:] == ord(",")):
        return None
    starts = [0, *(np.flatnonzero(newlines) + 1).tolist()]
    if any(np.count_nonzero(ends[start:end]) != columns for start, end in itertools.pairwise(starts)):
        return None
    one_before, two_before, three_before, four_before = (is_digit[4 - k : -k] for k in (1, 2, 3, 4))
    if (ends & ~one_before).any() or (one_before & two_before & three_before & four_before).any():
        return None  # a cell of no digits, or of more than three
    digits *= is_digit.view(np.uint8)
    low = digits[3:-1] + digits[2:-2] * np.uint8(10)
    hundreds = digits[1:-3] * two_before.view(np.uint8)
    values = low + hundreds * np.uint8(100)
    if (ends & ((hundreds > 2) | (values < low))).any():  # over 255: the sum wrapped round
        return None
    return values.compress(ends).reshape(rows, columns)  # values[ends] is four times slower


def _find_fault(table, kind, body, rows_before):
    """Raise the DataError that names the first fault among rows that `_parse` would not take."""
    names = COLUMNS[kind]
    lines = body.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    for row, line in enumerate(lines, rows_before + 1):
        where = f"{table}: row {row} (line {row + 1})"
        if not line.strip():
            raise DataError(f"{where} is blank, expected {len(names)} values")
        cells = line.split(b",")
        for name, cell in zip(names, cells, strict=False):
            high = 9 if name == "label" else 255
            if not re.fullmatch(rb"[0-9]{1,3}", cell) or int(cell) > high:
                if len(cells) < len(names) and name == names[len(cells) - 1] and not cell:
                    break  # cut short behind a comma: the count below says it better
                said = "is blank" if not cell.strip() else f"is {_shown(cell)}"
                raise DataError(f"{where}, column {name} {said}, expected a whole number 0-{high}")
        if len(cells) != len(names):
            cut = "; the file seems to be cut short, get it again" if len(cells) < len(names) else ""
            raise DataError(f"{where} has {len(cells)} values, expected {len(names)}{cut}")
    raise AssertionError(f"{table}: rows {rows_before + 1} and after were refused without a fault")


def _read_header(table, kind, stream):
    """Check the first line; returns the bytes read beyond it."""
    start = b""
    while b"\n" not in start and len(start) <= LONGEST_ROW:
        new = stream.read(LONGEST_ROW)
        if not new:
            break
        start += new
    header, _, rest = start.partition(b"\n")
    _check_header(table, kind, header[:LONGEST_ROW])
    return rest


def _check_header(table, kind, line):
    """Raise the DataError that says how the first line differs from the competition's."""
    expected = COLUMNS[kind]
    line = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")
    if not line.strip():
        raise DataError(f"{table}: the file is empty; expected a header and rows")
    try:
        names = [name.strip().strip('"') for name in line.decode("ascii").split(",")]
    except UnicodeDecodeError:
        names = []
    if names == expected:
        return
    if kind == "train" and names == COLUMNS["test"]:
        raise DataError(f"{table}: there is no column label; train.csv and test.csv seem to be swapped")
    if kind == "test" and "label" in names:
        raise DataError(f"{table}: there is a column label, which test.csv has not; it seems to be train.csv")
    if not set(names) & set(expected):
        raise DataError(f"{table}: the first line is {_shown(line)}, expected the header {_brief(expected)}")
    doubled = [name for name in names if names.count(name) > 1]
    missing = [name for name in expected if name not in names]
    extra = [name for name in names if name not in expected]
    if doubled:
        fault = f"column {doubled[0]} stands twice"
    elif missing or extra:
        fault = "; ".join(
            f"column {_shown(found[0].encode())} {word}" + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
            for found, word in ((missing, "is missing"), (extra, "is not known"))
            if found
        )
    else:
        at = next(i for i, name in enumerate(names) if name != expected[i])
        fault = f"column {at + 1} is {names[at]}, expected {expected[at]}"
    raise DataError(f"{table}: line 1: {fault}; expected the header {_brief(expected)}")


def _brief(names):
    return ",".join(names) if len(names) < 5 else f"{names[0]},{names[1]},...,{names[-1]}"


def _shown(raw):
    """Bytes from a file, cut to a readable length, with nothing that could disturb a terminal."""
    text = raw[:40].decode("latin-1").encode("unicode_escape").decode("ascii")
    return f"'{text}'" + ("..." if len(raw) > 40 else "")
