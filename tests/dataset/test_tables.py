"""Reading and writing CSVs, against Python's csv module; every error names file, row, column and expected value."""

import csv
import gzip
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset import tables
from pipeline.dataset.files import TableFile
from pipeline.errors import UserError
from tests.conftest import as_zip, competition_tables, digits_28

TABLES, IMAGES, LABELS = competition_tables()
READERS = {
    "train.csv": tables.read_train_table,
    "test.csv": tables.read_test_table,
    "sample_submission.csv": lambda file: tables.read_submission_table(file, 100),
}


def read(folder, name, content):
    (folder / name).write_bytes(content)
    return READERS[name](TableFile(folder / name))


def require_equal_to_csv_module(folder, content):
    images, labels = read(folder, "train.csv", content)
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
    values = np.array([[int(cell) for cell in row] for row in rows[1:] if row])
    assert images.dtype == labels.dtype == np.uint8
    assert np.array_equal(labels, values[:, 0])
    assert np.array_equal(images.reshape(len(images), -1), values[:, 1:])


@pytest.mark.parametrize(
    "convert",
    [
        lambda content: content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.rstrip(b"\n"),
        lambda content: content.replace(b"\n", b"\r\n").rstrip(b"\r\n"),
        lambda content: content + b"\n\n",
        lambda content: b'"' + content.replace(b"\n", b'"\n', 1).replace(b",", b'","', 784),
    ],
    ids=["plain", "CRLF", "byte order mark", "no newline", "CRLF, no newline", "blank end", "quoted header"],
)
def test_forms_of_csv_files(tmp_path, convert):
    require_equal_to_csv_module(tmp_path, convert(TABLES["train.csv"]))


@pytest.mark.parametrize("size", [1, 3000, 4096, 1 << 16])
def test_result_does_not_depend_on_the_size_of_chunks(tmp_path, monkeypatch, size):
    monkeypatch.setattr(tables, "CHUNK_BYTES", size)
    lines = TABLES["train.csv"].splitlines(keepends=True)
    require_equal_to_csv_module(tmp_path, b"".join(lines[:4] if size == 1 else lines))


def test_compressed_tables(tmp_path):
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(TABLES["train.csv"]))
    (tmp_path / "all.zip").write_bytes(as_zip(TABLES))
    for file in (TableFile(tmp_path / "train.csv.gz"), TableFile(tmp_path / "all.zip", "train.csv")):
        images, labels = tables.read_train_table(file)
        assert np.array_equal(images, IMAGES[:400]) and np.array_equal(labels, LABELS[:400])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 30), crlf=st.booleans(), end=st.booleans())
def test_any_values(tmp_path, seed, rows, crlf, end):
    random = np.random.default_rng(seed)
    values = random.integers(0, 256, (rows, 785)) * random.integers(0, 2, (rows, 785))
    values[:, 0] %= 10
    lines = [",".join(tables.COLUMNS["train"]), *(",".join(map(str, row)) for row in values.tolist())]
    newline = "\r\n" if crlf else "\n"
    require_equal_to_csv_module(tmp_path, (newline.join(lines) + newline * end).encode())


SMALL = b"".join(TABLES["train.csv"].splitlines(keepends=True)[:3])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(SMALL) - 1), byte=st.sampled_from(b'0123456789,\n\r" ;-+.eE\0\xff\t'))
def test_one_changed_byte_is_read_correctly_or_refused(tmp_path, at, byte):
    content = SMALL[:at] + bytes([byte]) + SMALL[at + 1 :]
    try:
        images, labels = read(tmp_path, "train.csv", content)
    except UserError as error:
        assert str(tmp_path / "train.csv") in str(error) and "\n" not in str(error)
        return
    rows = [line.rstrip("\r").split(",") for line in content.decode().rstrip("\r\n").split("\n")][1:]
    values = np.column_stack([labels, images.reshape(len(images), -1)])
    assert [[int(cell) for cell in row] for row in rows] == values.tolist()


def replace_cell(content, row, column, cell):
    """The table with another cell; rows from 1, columns from 0."""
    lines = content.split(b"\n")
    cells = lines[row].split(b",")
    cells[column] = cell
    lines[row] = b",".join(cells)
    return b"\n".join(lines)


def replace_header(content, change):
    header, rest = content.split(b"\n", 1)
    return b",".join(change(header.split(b","))) + b"\n" + rest


ERRORS = {
    "empty": ("train.csv", lambda c: b"", "the file is empty or begins with an empty line"),
    "empty line": ("train.csv", lambda c: b"\n" + c, "begins with an empty line"),
    "header only": ("train.csv", lambda c: c.split(b"\n")[0] + b"\n", "a header and no rows"),
    "no header": ("test.csv", lambda c: c.split(b"\n", 1)[1], "expected the header pixel0,pixel1,...,pixel783"),
    "renamed column": (
        "train.csv",
        lambda c: replace_header(c, lambda names: [b"digit", *names[1:]]),
        "column 1 is 'digit', expected label; the 785 columns must be label,pixel0,...,pixel783",
    ),
    "missing column": (
        "test.csv",
        lambda c: replace_header(c, lambda names: names[:-1]),
        "column 784 is missing, expected pixel783",
    ),
    "extra column": (
        "train.csv",
        lambda c: replace_header(c, lambda names: [*names, b"id"]),
        "column 786 is 'id', expected no more columns",
    ),
    "repeated column": (
        "train.csv",
        lambda c: replace_header(c, lambda names: [*names[:-1], b"pixel5"]),
        "column 785 is 'pixel5', expected pixel783",
    ),
    "wrong order": (
        "train.csv",
        lambda c: replace_header(c, lambda names: [names[0], names[2], names[1], *names[3:]]),
        "column 2 is 'pixel1', expected pixel0",
    ),
    "swapped": ("train.csv", lambda c: TABLES["test.csv"], "train.csv and test.csv seem to be swapped"),
    "labelled": ("test.csv", lambda c: TABLES["train.csv"], "column label is not in test.csv"),
    "fraction": ("train.csv", lambda c: replace_cell(c, 17, 301, b"1.5"), "row 17 (line 18), column pixel300 is '1.5'"),
    "nan": ("test.csv", lambda c: replace_cell(c, 100, 783, b"nan"), "row 100 (line 101), column pixel783 is 'nan'"),
    "256": ("train.csv", lambda c: replace_cell(c, 3, 1, b"256"), "row 3 (line 4), column pixel0 is '256', expected"),
    "negative": (
        "train.csv",
        lambda c: replace_cell(c, 400, 784, b"-1"),
        "row 400 (line 401), column pixel783 is '-1'",
    ),
    "blank cell": ("test.csv", lambda c: replace_cell(c, 9, 0, b""), "row 9 (line 10), column pixel0 is blank"),
    "spaces": ("test.csv", lambda c: replace_cell(c, 9, 0, b"  "), "row 9 (line 10), column pixel0 is blank"),
    "plus sign": ("train.csv", lambda c: replace_cell(c, 1, 9, b"+7"), "row 1 (line 2), column pixel8 is '+7'"),
    "exponent": ("train.csv", lambda c: replace_cell(c, 1, 9, b"1e2"), "row 1 (line 2), column pixel8 is '1e2'"),
    "label 10": (
        "train.csv",
        lambda c: replace_cell(c, 5, 0, b"10"),
        "row 5 (line 6), column label is '10', expected a whole number 0-9",
    ),
    "huge number": ("train.csv", lambda c: replace_cell(c, 5, 7, b"9" * 50), "row 5 (line 6), column pixel6"),
    "NUL": ("train.csv", lambda c: replace_cell(c, 5, 7, b"\0"), "row 5 (line 6), column pixel6 is '\\x00'"),
    "short row": ("train.csv", lambda c: replace_cell(c, 7, 784, b"0\n1"), "row 8 (line 9) has 1 values, expected 785"),
    "long row": ("test.csv", lambda c: replace_cell(c, 7, 783, b"0,0"), "row 7 (line 8) has 785 values, expected 784"),
    "blank line": ("test.csv", lambda c: replace_cell(c, 7, 783, b"0\n"), "row 8 (line 9) is blank"),
    "truncated": ("train.csv", lambda c: c[:-700], "row 400 (line 401) has"),
    "truncated after a comma": (
        "train.csv",
        lambda c: c[: c.rindex(b",", 0, len(c) - 700) + 1],
        "values, expected 785; the file seems to be truncated",
    ),
    "endless row": ("train.csv", lambda c: c.split(b"\n")[0] + b"\n" + b"1," * 200_000, "row 1 (line 2)"),
    "two byte order marks": ("train.csv", lambda c: b"\xef\xbb\xbf" * 2 + c, "line 1: column 1 is "),
    "semicolons": ("train.csv", lambda c: c.replace(b",", b";"), "expected the header"),
    "UTF-16": ("train.csv", lambda c: c.decode().encode("utf-16"), "expected the header"),
    "CR line ends": ("train.csv", lambda c: c.replace(b"\n", b"\r"), "column 785 is 'pixel783\\r"),
    "ids from 0": ("sample_submission.csv", lambda c: c.replace(b"\n1,", b"\n0,", 1), "row 1 (line 2), column ImageId"),
    "too few ids": ("sample_submission.csv", lambda c: b"\n".join(c.split(b"\n")[:-2]), "99 rows, expected 100"),
    "repeated id": (
        "sample_submission.csv",
        lambda c: replace_cell(c, 50, 0, b"49"),
        "row 50 (line 51), column ImageId is 49, expected 50",
    ),
    "wrong label": ("sample_submission.csv", lambda c: replace_cell(c, 50, 1, b"x"), "row 50 (line 51) is '50,x'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(tmp_path, name):
    file, change, message = ERRORS[name]
    with pytest.raises(UserError) as error:
        read(tmp_path, file, change(TABLES[file]))
    assert str(error.value).startswith(str(tmp_path / file)) and message in str(error.value)
    assert str(error.value).isprintable()


def test_more_rows_than_any_table_has_are_refused(tmp_path, monkeypatch):
    """A gzip file does not tell its size: reading ends at the limit."""
    monkeypatch.setattr(tables, "MAX_BYTES", 2 * 785 * 300)
    monkeypatch.setattr(tables, "CHUNK_BYTES", 1 << 12)
    with pytest.raises(tables.DataError, match="more than 300 rows, more than any such table has"):
        read(tmp_path, "train.csv", TABLES["train.csv"])


def test_written_tables_are_read_back(tmp_path):
    images, labels = digits_28(60, seed=1)
    tables.write_tables(tmp_path, images[:50], labels[:50], images[50:], labels[50:])
    require_equal_to_csv_module(tmp_path, (tmp_path / "train.csv").read_bytes())
    read_images, read_labels = tables.read_train_table(TableFile(tmp_path / "train.csv"))
    assert np.array_equal(read_images, images[:50]) and np.array_equal(read_labels, labels[:50])
    assert np.array_equal(tables.read_test_table(TableFile(tmp_path / "test.csv")), images[50:])
    test_labels = tables.read_submission_table(TableFile(tmp_path / "test_labels.csv"), 10)
    assert np.array_equal(test_labels, labels[50:])
    assert not tables.read_submission_table(TableFile(tmp_path / "sample_submission.csv"), 10).any()


def test_every_value_above_255_is_refused_and_every_other_is_read(tmp_path):
    """Sums of hundreds, tens and ones above 255 wrap around in the reader's arrays."""
    header, row, _ = SMALL.split(b"\n", 2)
    for value in range(1000):
        content = b"%s\n%s\n" % (header, b",".join([b"7", b"%d" % value, *row.split(b",")[2:]]))
        if value <= 255:
            assert read(tmp_path, "train.csv", content)[0][0, 0, 0] == value
        else:
            with pytest.raises(tables.DataError, match=f"column pixel0 is '{value}', expected a whole number 0-255"):
                read(tmp_path, "train.csv", content)


@pytest.mark.parametrize("cell", [b"1005", b"0005", b"00000", b"12345678901234567890"])
def test_more_than_three_digits_are_refused(tmp_path, cell):
    """Only the last three are looked at, one after another."""
    with pytest.raises(tables.DataError, match=f"column pixel300 is '{cell.decode()}'"):
        read(tmp_path, "train.csv", replace_cell(SMALL, 1, 301, cell))


def test_reading_a_row_without_an_end_stops(tmp_path, monkeypatch):
    class Endless(io.RawIOBase):
        n_read = 0

        def read(self, size=-1):
            self.n_read += size
            assert self.n_read < 1 << 22, "so much of a row was read"
            return b"1," * (size // 2)

    monkeypatch.setattr(tables, "CHUNK_BYTES", 1 << 12)
    (text,) = tables._split_rows(Endless(), b"")
    assert tables._parse(text, 785) is None


def test_a_submission_with_much_behind_its_last_row_is_refused(tmp_path):
    """Only as much is read as such a file can have."""
    content = tables.encode_submission(LABELS[:100])
    assert len(read(tmp_path, "sample_submission.csv", content + b"\n" * 99)) == 100
    with pytest.raises(tables.DataError, match="expected 100"):
        read(tmp_path, "sample_submission.csv", content + b"\n" * (tables.MAX_ROW_BYTES + 16 * 100))


def test_the_reader_keeps_few_texts_in_memory(monkeypatch):
    monkeypatch.setattr(tables, "N_THREADS", 3)
    n_read = 0

    def texts():
        nonlocal n_read
        for number in range(50):
            n_read += 1
            yield b"%d\n" % number

    for number, (text, values) in enumerate(tables._parse_in_threads(texts(), 1)):
        assert text == b"%d\n" % number and values.tolist() == [[number]]
        assert n_read <= number + 1 + 2 * 3
