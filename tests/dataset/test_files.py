"""Finding tables and idx files: every form that people have, precedence, duplicates, and unsafe zips."""

import gzip

import pytest

from pipeline.dataset import files
from pipeline.dataset.files import SourceError, TableFile
from tests import mutants
from tests.conftest import as_zip, write_tables

SMALL = {"train.csv": b"train", "test.csv": b"test", "sample_submission.csv": b"sample"}


def read_all(folder):
    """The content of each table in a folder."""
    contents = {}
    for name, table in files.find_tables(files.list_table_files(folder)).items():
        with table.open() as stream:
            contents[f"{name}.csv"] = stream.read(1000)
    return contents


@pytest.mark.parametrize("form", ["csv", "gz", "csv.zip", "zip", "zip with a folder", "a zip for each", "mixed"])
def test_forms_of_tables(tmp_path, form):
    contents = {
        "csv": SMALL,
        "gz": {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in SMALL.items()},
        "csv.zip": {f"{name}.zip": as_zip({name: content}) for name, content in SMALL.items()},
        "zip": {"any name.zip": as_zip(SMALL)},
        "zip with a folder": {"any name.zip": as_zip({f"digits/{name}": content for name, content in SMALL.items()})},
        "a zip for each": {f"{name[:-4]}.zip": as_zip({name: content}) for name, content in SMALL.items()},
        "mixed": {"train.csv": b"train", "all.zip": as_zip(SMALL | {"train.csv": b"older"}), "notes.txt": b""},
    }
    assert read_all(write_tables(tmp_path, contents[form])) == SMALL


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"train.csv": b"", "train.csv.gz": b""}, "both train.csv and train.csv.gz contain train.csv"),
        ({"a.zip": as_zip(SMALL), "b.zip": as_zip(SMALL)}, "both a.zip and b.zip contain train.csv"),
        ({"train.csv.zip": as_zip({"test.csv": b""})}, r"train\.csv\.zip: contains no train\.csv"),
        ({"a.zip": as_zip(SMALL)[:-50]}, "not a zip file, or damaged"),
        ({"a.zip": as_zip({**SMALL, "older/train.csv": b""})}, r"contains train\.csv more than once"),
        ({"a.zip": mutants.make_zip([*SMALL.items(), ("../x", b"")])}, "leads outside the zip"),
        ({"a.zip": mutants.make_zip(SMALL, links={"x": b"/etc"})}, "is a link"),
        ({"a.zip": as_zip({**SMALL, "train.csv": bytes(20_000_000)})}, "would grow from .* to 20,000,000 bytes"),
    ],
)
def test_ambiguous_damaged_and_unsafe_files_are_refused(tmp_path, contents, message):
    with pytest.raises(SourceError, match=message) as error:
        read_all(write_tables(tmp_path, contents))
    assert str(tmp_path) in str(error.value)


def test_a_zip_of_very_many_files_is_not_searched(tmp_path):
    many = {f"{'x' * 100}{number}.png": b"" for number in range(10_000)}
    write_tables(tmp_path / "more", {"all.zip": as_zip(SMALL | many)})
    assert files.list_table_files(tmp_path / "more") == []
    assert files.find_mnist([tmp_path / "more/all.zip"]) == {}
    with pytest.raises(SourceError, match=r"train\.csv and .* not found.*; all\.zip .* extract it first"):
        files.require_tables(tmp_path, [], [tmp_path / "more/all.zip"])
    write_tables(tmp_path / "beside", SMALL | {"all.zip": as_zip(SMALL | many)})
    assert read_all(tmp_path / "beside") == SMALL
    some = dict(list(many.items())[:5000])
    assert read_all(write_tables(tmp_path / "some", {"all.zip": as_zip(SMALL | some)})) == SMALL


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(SourceError, match=r"test\.csv and sample_submission\.csv not found"):
        files.require_tables(tmp_path, ["train"])


def test_file_larger_than_any_table_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 4)
    write_tables(tmp_path, SMALL)
    with pytest.raises(SourceError, match=r"sample_submission\.csv: 6 bytes, expected at most 4"):
        files.list_table_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", None, "does not exist"),
        ("train.csv.gz", b"no gzip", "damaged"),
        ("train.csv.gz", gzip.compress(b"x" * 1000, mtime=0)[:-10], "damaged"),
    ],
)
def test_error_while_a_table_is_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message), TableFile(tmp_path / name).open() as stream:
        stream.read()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("separator", ["-", "."])
def test_names_of_idx_files(tmp_path, separator, suffix):
    paths = [tmp_path / (name.replace("-idx", f"{separator}idx") + suffix) for name in files.IDX_FILES]
    expected = dict(zip(files.IDX_FILES, map(TableFile, paths), strict=True))
    assert files.find_mnist([*paths, tmp_path / "train.csv"]) == expected
    assert files.find_mnist([tmp_path / "train.csv"]) == {}
    with pytest.raises(SourceError, match=r"t10k-labels-idx1-ubyte \(or \.gz\) is missing"):
        files.find_mnist(paths[:3])
