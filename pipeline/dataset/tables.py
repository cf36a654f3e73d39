"""Read, check and write the competition's CSVs.

The reader accepts exactly tables of small integers. It converts chunks of rows with numpy operations over all their
bytes, one chunk per core; only a chunk that is not a regular grid of integers is searched cell by cell, for an error
message with file, row and column. pyarrow takes 2.7 to 3.2 times as long, pandas with pyarrow 4.2 to 8.3 times.
"""

import itertools
import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np

from pipeline.dataset.files import MAX_BYTES, TEST_LABELS, ByteStream, TableFile
from pipeline.errors import UserError
from pipeline.machine.memory import keep_freed_memory
from pipeline.shapes import UInt8
from pipeline.workflow import store

SIDE = 28
PIXELS = [f"pixel{i}" for i in range(SIDE * SIDE)]
COLUMNS = {"train": ["label", *PIXELS], "test": PIXELS, "sample_submission": ["ImageId", "Label"]}
# The names of the pixels in CSVs of MNIST that have a header.
MNIST_PIXELS = (
    PIXELS,
    [f"pixel{i}" for i in range(1, SIDE * SIDE + 1)],
    [f"{row}x{column}" for row in range(1, SIDE + 1) for column in range(1, SIDE + 1)],
)
CHUNK_BYTES = 1 << 19  # parsed at a time, so that the intermediate arrays stay in a core's cache
N_THREADS = min(os.cpu_count() or 1, 8)  # numpy releases the interpreter lock
MAX_ROW_BYTES = 1 << 16  # a row of 785 values takes at most 3,140


class DataError(UserError):
    """The content of a table is wrong; the message names file, row, column and the expected value."""


def read_train_table(
    file: TableFile, kind: str = "train"
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """Images and labels in `train.csv`, or in a CSV of `kind` "mnist", with or without a header.

    Raises DataError or SourceError.
    """
    chunks = read_chunks(file, kind)
    images = np.concatenate([chunk[:, 1:] for chunk in chunks])
    return images.reshape(-1, SIDE, SIDE), np.concatenate([chunk[:, 0] for chunk in chunks])


def read_test_table(file: TableFile) -> UInt8[np.ndarray, "n 28 28"]:
    """Images in `test.csv`. Raises DataError or SourceError."""
    return np.concatenate(read_chunks(file, "test")).reshape(-1, SIDE, SIDE)


def read_submission_table(file: TableFile, n_rows: int) -> UInt8[np.ndarray, " n"]:
    """Labels in a file with the format of `sample_submission.csv`, whose ids must be 1 to `n_rows`.

    Raises DataError or SourceError.
    """
    max_bytes = MAX_ROW_BYTES + 16 * n_rows  # "28000,0\r\n" has nine
    with file.open() as stream:
        text = stream.read(max_bytes + 1)
    header, *lines = text.replace(b"\r\n", b"\n").rstrip(b"\r\n").split(b"\n")
    _check_header(file, "sample_submission", header)
    labels = np.zeros(len(lines), np.uint8)
    for row, line in enumerate(lines, 1):
        match = re.fullmatch(rb"([0-9]{1,9}),([0-9])", line)
        if not match:
            raise DataError(f"{_locate(file, row)} is {_quote(line)}, expected an id and a label 0-9")
        if int(match[1]) != row:
            raise DataError(
                f"{_locate(file, row)}, column ImageId is {int(match[1])}, expected {row}: "
                f"the ids must be those of the test rows, 1 to {n_rows}"
            )
        labels[row - 1] = int(match[2])
    if len(labels) != n_rows or len(text) > max_bytes:
        raise DataError(f"{file}: {len(labels)} rows, expected {n_rows}, one per row of test.csv")
    return labels


def write_tables(
    folder: Path,
    train_images: UInt8[np.ndarray, "n 28 28"],
    train_labels: UInt8[np.ndarray, " n"],
    test_images: UInt8[np.ndarray, "m 28 28"],
    test_labels: UInt8[np.ndarray, " m"],
) -> None:
    """Write arrays as the competition's CSVs, and the test labels as `test_labels.csv`."""
    train = np.column_stack([train_labels, train_images.reshape(len(train_images), -1)])
    test = test_images.reshape(len(test_images), -1)
    store.write(folder / "train.csv", _encode_rows(COLUMNS["train"], train))
    store.write(folder / "test.csv", _encode_rows(COLUMNS["test"], test))
    for name, labels in (("sample_submission.csv", np.zeros_like(test_labels)), (TEST_LABELS, test_labels)):
        store.write(folder / name, encode_submission(labels))


def encode_submission(labels: UInt8[np.ndarray, " n"]) -> bytes:
    """The content of a file with the format of `sample_submission.csv`, with ids from 1."""
    return b"ImageId,Label\n" + b"".join(b"%d,%d\n" % row for row in enumerate(labels.tolist(), 1))


def _encode_rows(columns: list[str], rows: UInt8[np.ndarray, "n columns"]) -> Iterator[bytes]:
    """A header and rows as CSV bytes, in pieces: values are looked up as text of four bytes, then compacted."""
    yield (",".join(columns) + "\n").encode()
    inner = np.array([f"{value},".encode() for value in range(256)], "S4")
    last = np.array([f"{value}\n".encode() for value in range(256)], "S4")
    for start in range(0, len(rows), 1000):
        batch = rows[start : start + 1000]
        text = inner[batch]
        text[:, -1] = last[batch[:, -1]]
        yield text.tobytes().replace(b"\0", b"")


def read_chunks(file: TableFile, kind: str) -> list[UInt8[np.ndarray, "rows columns"]]:
    """All values of a table with the columns COLUMNS[kind], or of a kind "mnist", as arrays of successive rows.

    Raises DataError or SourceError.
    """
    keep_freed_memory()
    columns = COLUMNS["train" if kind == "mnist" else kind]
    n_columns = len(columns)
    max_rows = MAX_BYTES // (2 * n_columns)  # a value and its comma take two bytes or more
    chunks: list[np.ndarray] = []
    n_rows = 0
    with file.open() as stream:
        n_header_lines, rest = _read_header(file, kind, stream)
        for text, values in _parse_in_threads(_split_rows(stream, rest), n_columns):
            if values is None or (columns[0] == "label" and values[:, 0].max() > 9):
                _raise_first_error(file, columns, text, n_rows, n_header_lines)
            chunks.append(values)
            n_rows += len(values)
            if n_rows > max_rows:
                raise DataError(f"{file}: more than {max_rows:,} rows, more than any such table has")
    if not chunks:
        raise DataError(f"{file}: contains a header and no rows")
    return chunks


def _parse_in_threads(
    texts: Iterator[bytes], n_columns: int
) -> Iterator[tuple[bytes, UInt8[np.ndarray, "rows columns"] | None]]:
    """Each text with the result of `_parse`, in order. At most two texts per thread are read in advance."""
    pending: deque[tuple[bytes, Future[np.ndarray | None]]] = deque()
    with ThreadPoolExecutor(N_THREADS) as pool:
        for text in texts:
            pending.append((text, pool.submit(_parse, text, n_columns)))
            if len(pending) > 2 * N_THREADS:
                text, future = pending.popleft()
                yield text, future.result()
        for text, future in pending:
            yield text, future.result()


def _split_rows(stream: ByteStream, rest: bytes) -> Iterator[bytes]:
    """Yield the bytes of whole rows, about CHUNK_BYTES at a time, from `rest` and then from the stream.

    The last row may lack its line end; blank lines at the end are dropped.
    """
    while new := stream.read(CHUNK_BYTES):
        text = rest + new
        # The last row waits for the next chunk, and so do blank lines, which only the end of a file may have.
        end = text.rstrip(b"\r\n").rfind(b"\n") + 1
        if end:
            yield text[:end]
        rest = text[end:]
        if len(rest) > MAX_ROW_BYTES:
            yield rest[:MAX_ROW_BYTES]  # too long for a row: rejected by the caller
            return
    rest = rest.rstrip(b"\r\n")
    if rest:
        yield rest + b"\n"


def _parse(text: bytes, n_columns: int) -> UInt8[np.ndarray, "rows columns"] | None:
    """The values of whole rows, or None if they are not a grid of integers 0-255.

    Computes, at every byte, the number formed by the up to three digits before it, then keeps those at cell ends.
    """
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    padded = np.frombuffer(b"\n\n\n\n" + text, np.uint8)  # the first cell, too, has four bytes before its end
    digits = padded - np.uint8(ord("0"))  # other bytes wrap around to 10 or more
    is_digit = digits <= 9
    ends, newlines = ~is_digit[4:], padded[4:] == ord("\n")
    n_rows, n_cells = np.count_nonzero(newlines), np.count_nonzero(ends)
    if n_cells != n_rows * n_columns or n_cells != n_rows + np.count_nonzero(padded[4:] == ord(",")):
        return None
    row_starts = [0, *(np.flatnonzero(newlines) + 1).tolist()]
    if any(np.count_nonzero(ends[start:stop]) != n_columns for start, stop in itertools.pairwise(row_starts)):
        return None
    last, second, third, fourth = (is_digit[4 - k : -k] for k in (1, 2, 3, 4))  # counted back from each byte
    if (ends & ~last).any() or (last & second & third & fourth).any():
        return None  # a cell without digits, or with more than three
    digits *= is_digit.view(np.uint8)
    low = digits[3:-1] + digits[2:-2] * np.uint8(10)
    hundreds = digits[1:-3] * second.view(np.uint8)
    values = low + hundreds * np.uint8(100)
    if (ends & ((hundreds > 2) | (values < low))).any():  # above 255: the sum wrapped around
        return None
    cells: np.ndarray = values.compress(ends)  # values[ends] is four times slower
    return cells.reshape(n_rows, n_columns)


def _raise_first_error(
    file: TableFile, names: list[str], text: bytes, n_rows_before: int, n_header_lines: int
) -> NoReturn:
    """Raise the DataError for the first error in rows that `_parse` rejected."""
    for row, line in enumerate(text.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n"), n_rows_before + 1):
        where = _locate(file, row, n_header_lines)
        if not line.strip():
            raise DataError(f"{where} is blank, expected {len(names)} values")
        cells = line.split(b",")
        cut = len(cells) < len(names)
        if cut and not cells[-1]:
            cells.pop()  # report the number of values instead of the blank cell at the cut
        for name, cell in zip(names, cells, strict=False):
            limit = 9 if name == "label" else 255
            if not re.fullmatch(rb"[0-9]{1,3}", cell) or int(cell) > limit:
                problem = f"is {_quote(cell)}" if cell.strip() else "is blank"
                raise DataError(f"{where}, column {name} {problem}, expected a whole number 0-{limit}")
        if len(cells) != len(names):
            advice = "; the file seems to be truncated, get it again" if cut else ""
            raise DataError(f"{where} has {len(cells)} values, expected {len(names)}{advice}")
    raise AssertionError(f"{file}: rows after {n_rows_before} were rejected without an error")


def _read_header(file: TableFile, kind: str, stream: ByteStream) -> tuple[int, bytes]:
    """Check the first line; returns the number of lines that are a header, and what was read beyond it."""
    start = b""
    while b"\n" not in start and len(start) <= MAX_ROW_BYTES and (new := stream.read(MAX_ROW_BYTES)):
        start += new
    header, _, rest = start.partition(b"\n")
    if kind != "mnist":
        _check_header(file, kind, header[:MAX_ROW_BYTES])
    elif re.fullmatch(rb"(\xef\xbb\xbf)?[0-9,]+\r?", header):
        return 0, start.removeprefix(b"\xef\xbb\xbf")
    elif _split_names(header[:MAX_ROW_BYTES].lower()) not in (["label", *pixels] for pixels in MNIST_PIXELS):
        raise DataError(
            f"{file}: the first line is {_quote(header)}, expected label,1x1,...,28x28 or label,pixel0,...,pixel783, "
            "or a row of 785 numbers"
        )
    return 1, rest


def _check_header(file: TableFile, kind: str, line: bytes) -> None:
    """Raise the DataError that names the first difference between a header and the competition's."""
    line = line.rstrip(b"\r")
    if not line.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(f"{file}: the file is empty or begins with an empty line, expected a header and rows")
    expected = COLUMNS[kind]
    header = ",".join(expected if len(expected) < 5 else [*expected[:2], "...", expected[-1]])
    names = _split_names(line)
    if kind == "train" and names == COLUMNS["test"]:
        raise DataError(f"{file}: column label is missing; train.csv and test.csv seem to be swapped")
    if kind == "test" and "label" in names:
        raise DataError(f"{file}: column label is not in test.csv; this seems to be train.csv")
    if not set(names) & set(expected):
        raise DataError(f"{file}: the first line is {_quote(line)}, expected the header {header}")
    for number, (name, column) in enumerate(itertools.zip_longest(names, expected), 1):
        if name != column:
            actual = "missing" if name is None else _quote(name.encode())
            raise DataError(
                f"{file}: line 1: column {number} is {actual}, expected {column or 'no more columns'}; "
                f"the {len(expected)} columns must be {header}"
            )


def _split_names(line: bytes) -> list[str]:
    text = line.removeprefix(b"\xef\xbb\xbf").decode("ascii", "backslashreplace")
    return [name.strip().strip('"') for name in text.split(",")]


def _locate(file: TableFile, row: int, n_header_lines: int = 1) -> str:
    return f"{file}: row {row} (line {row + n_header_lines})"


def _quote(raw: bytes) -> str:
    """Bytes from a file, shortened and escaped, so that they cannot disturb a terminal."""
    text = raw[:40].decode("latin-1").encode("unicode_escape").decode("ascii")
    return f"'{text}'" + ("..." if len(raw) > 40 else "")
