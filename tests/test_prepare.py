"""prepare: reading against Python's csv module, every mistake by file, row and column, the split, the leak guard."""

import csv
import gzip
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import digits
from pipeline.settings import Split
from tests.conftest import as_zip, competition_tables, write_tables


def table(path, content):
    path.write_bytes(content)
    return digits.Table(path)


def row_of(content, number):
    return content.split(b"\n")[number]


class TestReading:
    """What the CSVs hold, by Python's csv module."""

    @staticmethod
    def plain(content):
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
        return np.array([[int(cell) for cell in row] for row in rows[1:] if row])

    def check(self, tmp_path, content):
        values = self.plain(content)
        images, labels = digits.read_train(table(tmp_path / "train.csv", content))
        assert images.dtype == labels.dtype == np.uint8
        assert np.array_equal(labels, values[:, 0])
        assert np.array_equal(images.reshape(len(images), -1), values[:, 1:])

    @pytest.mark.parametrize(
        "form",
        [
            lambda content: content,
            lambda content: content.replace(b"\n", b"\r\n"),
            lambda content: b"\xef\xbb\xbf" + content,
            lambda content: content.rstrip(b"\n"),
            lambda content: content.replace(b"\n", b"\r\n").rstrip(b"\r\n"),
            lambda content: content + b"\n\n",
            lambda content: b'"' + content.replace(b"\n", b'"\n', 1).replace(b",", b'","', 784),
        ],
        ids=["plain", "crlf", "bom", "no newline", "crlf, no newline", "blank end", "quoted header"],
    )
    def test_forms_people_have(self, tmp_path, tables, form):
        self.check(tmp_path, form(tables["train.csv"]))

    @pytest.mark.parametrize("piece", [1, 3000, 4096, 1 << 16])
    def test_pieces_of_any_size(self, tmp_path, tables, monkeypatch, piece):
        monkeypatch.setattr(digits, "PIECE", piece)
        short = b"".join(line + b"\n" for line in tables["train.csv"].split(b"\n")[:4])
        self.check(tmp_path, short if piece == 1 else tables["train.csv"])

    def test_packed(self, tmp_path, tables):
        packed = digits.Table(tmp_path / "train.csv.gz")
        packed.path.write_bytes(gzip.compress(tables["train.csv"]))
        zipped = digits.Table(tmp_path / "all.zip", "train.csv")
        zipped.path.write_bytes(as_zip(tables))
        plain = digits.read_train(table(tmp_path / "train.csv", tables["train.csv"]))
        for other in (packed, zipped):
            for one, two in zip(plain, digits.read_train(other), strict=True):
                assert np.array_equal(one, two)

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 30), crlf=st.booleans(), end=st.booleans())
    def test_any_table(self, tmp_path, seed, rows, crlf, end):
        random = np.random.default_rng(seed)
        values = random.integers(0, 256, (rows, 785)) * random.integers(0, 2, (rows, 785))
        values[:, 0] %= 10
        lines = [",".join(digits.COLUMNS["train"]), *(",".join(map(str, row)) for row in values.tolist())]
        newline = "\r\n" if crlf else "\n"
        self.check(tmp_path, (newline.join(lines) + newline * end).encode())


def edited(content, row, column, cell):
    """The table with one cell replaced; rows from 1, columns from 0."""
    lines = content.split(b"\n")
    cells = lines[row].split(b",")
    cells[column] = cell
    lines[row] = b",".join(cells)
    return b"\n".join(lines)


def header_edit(change):
    def apply(content):
        lines = content.split(b"\n")
        return b"\n".join([b",".join(change(lines[0].split(b","))), *lines[1:]])

    return apply


MISTAKES = {
    "empty": ("train.csv", lambda c: b"", "the file is empty"),
    "header only": ("train.csv", lambda c: c.split(b"\n")[0] + b"\n", "a header and no rows"),
    "no header": ("test.csv", lambda c: c.split(b"\n", 1)[1], "expected the header pixel0,pixel1,...,pixel783"),
    "renamed column": ("train.csv", header_edit(lambda n: [b"digit", *n[1:]]), "column 'label' is missing"),
    "missing column": ("test.csv", header_edit(lambda n: n[:-1]), "column 'pixel783' is missing"),
    "extra column": ("train.csv", header_edit(lambda n: [*n, b"id"]), "column 'id' is not known"),
    "doubled column": ("train.csv", header_edit(lambda n: [*n[:-1], b"pixel5"]), "column pixel5 stands twice"),
    "other order": ("train.csv", header_edit(lambda n: [n[0], n[2], n[1], *n[3:]]), "column 2 is pixel1"),
    "a fraction": ("train.csv", lambda c: edited(c, 17, 301, b"1.5"), "row 17 (line 18), column pixel300 is '1.5'"),
    "a word": ("test.csv", lambda c: edited(c, 100, 783, b"nan"), "row 100 (line 101), column pixel783 is 'nan'"),
    "256": ("train.csv", lambda c: edited(c, 3, 1, b"256"), "row 3 (line 4), column pixel0 is '256', expected"),
    "negative": ("train.csv", lambda c: edited(c, 400, 784, b"-1"), "row 400 (line 401), column pixel783 is '-1'"),
    "blank": ("test.csv", lambda c: edited(c, 9, 0, b""), "row 9 (line 10), column pixel0 is blank"),
    "spaces": ("test.csv", lambda c: edited(c, 9, 0, b"  "), "row 9 (line 10), column pixel0 is blank"),
    "plus": ("train.csv", lambda c: edited(c, 1, 9, b"+7"), "row 1 (line 2), column pixel8 is '+7'"),
    "exponent": ("train.csv", lambda c: edited(c, 1, 9, b"1e2"), "row 1 (line 2), column pixel8 is '1e2'"),
    "label 10": ("train.csv", lambda c: edited(c, 5, 0, b"10"), "row 5 (line 6), column label is '10', expected a w"),
    "a huge number": ("train.csv", lambda c: edited(c, 5, 7, b"9" * 50), "row 5 (line 6), column pixel6"),
    "NUL": ("train.csv", lambda c: edited(c, 5, 7, b"\0"), "row 5 (line 6), column pixel6"),
    "a short row": ("train.csv", lambda c: edited(c, 7, 784, b"0\n1"), "row 8 (line 9) has 1 values, expected 785"),
    "a long row": ("test.csv", lambda c: edited(c, 7, 783, b"0,0"), "row 7 (line 8) has 785 values, expected 784"),
    "blank line": ("test.csv", lambda c: edited(c, 7, 783, b"0\n"), "row 8 (line 9) is blank"),
    "cut short": ("train.csv", lambda c: c[:-700], "row 400 (line 401) has"),
    "cut behind a comma": ("train.csv", lambda c: c[: c.rindex(b",") + 1], "row 400 (line 401)"),
    "no rows end": ("train.csv", lambda c: c.split(b"\n")[0] + b"\n" + b"1," * 200_000, "row 1 (line 2)"),
    "semicolons": ("train.csv", lambda c: c.replace(b",", b";"), "expected the header"),
    "utf-16": ("train.csv", lambda c: c.decode().encode("utf-16"), "expected the header"),
    "old mac lines": ("train.csv", lambda c: c.replace(b"\n", b"\r"), "expected the header"),
    "ids from 0": ("sample_submission.csv", lambda c: c.replace(b"\n1,", b"\n0,", 1), "row 1 (line 2), column ImageId"),
    "ids too few": ("sample_submission.csv", lambda c: b"\n".join(c.split(b"\n")[:-2]), "99 rows, expected 100"),
    "ids doubled": ("sample_submission.csv", lambda c: edited(c, 50, 0, b"49"), "row 50 (line 51), column ImageId"),
    "labels wrong": ("sample_submission.csv", lambda c: edited(c, 50, 1, b"x"), "row 50 (line 51) is '50,x'"),
}  # fmt: skip


@pytest.fixture
def prepare(command, tmp_path):
    """`--stage all` up to prepare, on tables of a person's; what it said."""

    def run(tables, *more):
        write_tables(tmp_path / "work/data/raw", tables)
        place = ("--recipe", "quick", "--workspace", tmp_path / "work")
        assert command("--stage", "download", *place).code == 0
        return command("--stage", "prepare", *place, *more)

    return run


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_file_row_and_column(prepare, tables, tmp_path, name):
    file, spoil, words = MISTAKES[name]
    run = prepare({**tables, file: spoil(tables[file])})
    assert run.code == 2
    assert run.err.startswith("error: ") and run.err.count("\n") == 1
    assert words in run.err and file in run.err
    assert not (tmp_path / "work/data/prepared/splits").exists() or not any(
        path.name == "manifest.json" for path in (tmp_path / "work/data/prepared/splits").rglob("*")
    )


def test_a_missing_file(command, tables, tmp_path):
    write_tables(tmp_path / "data/raw", {name: tables[name] for name in ("train.csv", "sample_submission.csv")})
    run = command("--stage", "download", "--recipe", "quick", "--workspace", tmp_path)
    assert run.code == 2 and "test.csv not found" in run.err and run.err.count("\n") == 1


def test_swapped_and_labelled(prepare, tables):
    run = prepare({**tables, "train.csv": tables["test.csv"], "test.csv": tables["train.csv"]})
    assert run.code == 2 and "seem to be swapped" in run.err
    run = prepare({**tables, "test.csv": tables["train.csv"]})
    assert run.code == 2 and "there is a column label, which test.csv has not" in run.err


def test_damaged_gzip(prepare, tables):
    packed = gzip.compress(tables["train.csv"])
    others = {name: tables[name] for name in ("test.csv", "sample_submission.csv")}
    run = prepare({**others, "train.csv.gz": packed[: len(packed) // 2]})
    assert run.code == 2 and "train.csv.gz" in run.err and "damaged" in run.err


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutant_is_misread(tmp_path, data):
    """A table with one byte changed reads as Python's csv module reads it, or is refused by name."""
    content = MUTANT_BASE
    at = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.sampled_from(b'0123456789,\n\r" ;-+.eE\0\xff\t'))
    content = content[:at] + bytes([byte]) + content[at + 1 :]
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    try:
        images, labels = digits.read_train(digits.Table(path))
    except digits.DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    rows = [line.rstrip("\r").split(",") for line in content.decode().rstrip("\r\n").split("\n")][1:]
    assert [[int(cell) for cell in row] for row in rows] == np.column_stack(
        [labels, images.reshape(len(images), -1)]
    ).tolist()


MUTANT_BASE = b"\n".join(competition_tables(3, 1)[0]["train.csv"].split(b"\n")[:3]) + b"\n"


class TestSplit:
    labels = np.random.default_rng(0).integers(0, 10, 2000).astype(np.uint8)

    def test_is_a_stratified_partition(self):
        train, validation = digits.split(self.labels, Split())
        assert sorted([*train, *validation]) == list(range(2000))
        assert len(validation) == 500
        shares = np.bincount(self.labels[validation], minlength=10) / np.bincount(self.labels, minlength=10)
        assert np.abs(shares - 0.25).max() < 0.006
        assert (np.diff(train) > 0).all() and (np.diff(validation) > 0).all()

    def test_seed_and_fraction_count(self):
        one, two = (digits.split(self.labels, Split(seed=seed))[1] for seed in (0, 1))
        assert np.array_equal(one, digits.split(self.labels, Split(seed=0))[1])
        assert not np.array_equal(one, two)
        assert len(digits.split(self.labels, Split(fraction=0.1))[1]) == 200

    @pytest.mark.parametrize(
        ("labels", "fraction", "words"),
        [
            ([0, 0, 1, 1, 2], 0.25, "label 2 stands in one row only"),
            ([5], 0.25, "label 5 stands in one row only"),
            ([0, 0, 1, 1], 0.25, r"split\.fraction 0\.25 holds out 1"),
            ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2, 0.51, r"split\.fraction 0\.51 holds out 11"),
            ([0, 1] * 200, 0.0001, r"split\.fraction 0\.0001 holds out 1"),
        ],
    )
    def test_too_few_rows(self, labels, fraction, words):
        with pytest.raises(digits.DataError, match=words):
            digits.split(np.array(labels, np.uint8), Split(fraction))


def test_leak_guard(prepare, tables):
    lines = tables["train.csv"].split(b"\n")
    test = tables["test.csv"].split(b"\n")
    leaked = [line.split(b",", 1)[1] for line in lines[1:3]]
    spoiled = {**tables, "test.csv": b"\n".join([test[0], *leaked, *test[3:]])}
    run = prepare(spoiled)
    assert run.code == 2 and run.err.count("\n") == 1
    assert "2 of the 100 images of test.csv also stand in train.csv (2.0%)" in run.err
    assert prepare(spoiled, "--set", "prepare.allow_overlap=true").code == 0


def test_overlap_counts_every_test_row():
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28)).astype(np.uint8)
    test = np.concatenate([images[:3], images[:1], 255 - images[:7]])
    plain = sum(any((one == other).all() for other in images) for one in test)
    assert digits.overlap(images, test) == plain == 4


def test_one_percent_is_let_pass(prepare, tables):
    lines = tables["test.csv"].split(b"\n")
    lines[1] = tables["train.csv"].split(b"\n")[1].split(b",", 1)[1]
    assert prepare({**tables, "test.csv": b"\n".join(lines)}).code == 0


def test_arrays_are_read_once_for_all_splits(prepare, tables, tmp_path):
    assert prepare(tables).code == 0
    arrays = tmp_path / "work/data/prepared/arrays"
    stamp = (arrays / "train_images.npy").stat().st_mtime_ns
    assert prepare(tables, "--set", "split.seed=1").code == 0
    assert (arrays / "train_images.npy").stat().st_mtime_ns == stamp
    assert len(list((tmp_path / "work/data/prepared/splits").iterdir())) == 2
    (arrays / "train_images.npy").write_bytes(b"")
    assert prepare(tables).code == 0
    assert np.load(arrays / "train_images.npy").shape == (400, 28, 28)
