"""Locate and open the competition's tables and MNIST's files, and refuse damaged or malicious ones."""

import gzip
import io
import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pipeline.errors import UserError

TABLES = ("train", "test", "sample_submission")
TABLE_FILES = {f"{table}.csv{suffix}": table for table in TABLES for suffix in ("", ".gz", ".zip")}
TEST_LABELS = "test_labels.csv"  # next to the tables if the source knows the labels of the test rows
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MNIST_TABLES = ("mnist_train.csv", "mnist_test.csv")  # label first, with or without a header
# MNIST's files by the names under which they are distributed, in lower case.
MNIST_FILES = {
    **{
        name.replace("-idx", f"{separator}idx") + suffix: name
        for name in IDX_FILES
        for separator in "-."
        for suffix in ("", ".gz")
    },
    **{f"{name}{suffix}": name for name in MNIST_TABLES for suffix in ("", ".gz")},
    "mnist_train_small.csv": "mnist_train.csv",  # among the samples of Google Colab
}
# The names that browsers give to a second download, and the right ones.
SECOND_DOWNLOADS = {
    name.replace(".", f"{space}({number}).", 1): name
    for name in (*TABLE_FILES, *MNIST_FILES)
    for space in ("", " ")
    for number in range(1, 10)
}
OTHER_ARCHIVES = (".7z", ".bz2", ".lzma", ".rar", ".tar", ".tar.gz", ".tgz", ".xz", ".zip", ".zst")
MAX_BYTES = 1 << 29  # of a file, and of an uncompressed table; all of MNIST as one CSV has 130 MB
MAX_COMPRESSION = 100  # of a zipped table larger than MIN_SUSPECT_BYTES; the competition's tables shrink 10 times
MIN_SUSPECT_BYTES = 1 << 23
MAX_DIRECTORY = 1 << 20  # bytes of a zip's list of members, about 100 for each

ByteStream = io.RawIOBase | io.BufferedIOBase


class SourceError(UserError):
    """A source of data is missing, incomplete, damaged or malicious."""


class _ZipFile(io.FileIO):
    """A zip whose list of members, which `zipfile` reads in one piece, is not read if it is longer than MAX_DIRECTORY.

    Each of 200,000 members takes 10 microseconds, and a run lists them nine times.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size and size > MAX_DIRECTORY:
            raise OverflowError
        return super().read(size)


@dataclass(frozen=True)
class TableFile:
    """The location of a table or an idx file: a file, or a member of a zip; compressed if its name ends in .gz."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path} ({self.member})" if self.member else f"{self.path}"

    @property
    def name(self) -> str:
        """The name without folders."""
        return _base_name(self.member) if self.member else self.path.name

    @property
    def is_gzip(self) -> bool:
        return self.name.lower().endswith(".gz")

    @contextmanager
    def open(self) -> Iterator[ByteStream]:
        """The uncompressed bytes as a stream. Raises SourceError, also for errors while the stream is read."""
        try:
            with ExitStack() as stack:
                if self.member:
                    archive = stack.enter_context(zipfile.ZipFile(self.path))
                    stream = cast(ByteStream, stack.enter_context(archive.open(self.member)))
                else:
                    stream = stack.enter_context(open(self.path, "rb", buffering=0))
                yield stack.enter_context(gzip.open(stream)) if self.is_gzip else stream
        except FileNotFoundError:
            raise SourceError(f"{self}: the file does not exist") from None
        except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise SourceError(f"{self}: the file is damaged ({error}); get it again") from None
        except (RuntimeError, NotImplementedError) as error:  # an encrypted zip, or an unknown compression method
            raise SourceError(f"{self}: cannot be decompressed ({error})") from None
        except OSError as error:
            raise _unreadable(self, error) from None


def find_tables(files: Iterable[Path]) -> dict[str, TableFile]:
    """The competition's tables among `files`, by table name.

    Separate files (`train.csv`, `train.csv.gz`, `train.csv.zip`) take precedence over zips of several tables. Raises
    SourceError if a zip is damaged or a table occurs twice.
    """
    separate: dict[str, TableFile] = {}
    zipped: dict[str, TableFile] = {}
    for path in sorted(files):
        table = TABLE_FILES.get(path.name)
        if is_zip(path):
            contained = {name: TableFile(path, member) for name, member in _find_members(path).items()}
        else:
            contained = {table: TableFile(path)} if table else {}
        if table and table not in contained:
            raise SourceError(f"{path}: contains no {table}.csv{advise([path])}")
        known = separate if table else zipped
        for name in [table] if table else contained:
            if name in known:
                raise SourceError(
                    f"{path.parent}: both {known[name].path.name} and {path.name} contain {name}.csv: keep one of them"
                )
            known[name] = contained[name]
    return zipped | separate


def require_tables(location: Path | str, tables: Iterable[str], files: Iterable[Path] = ()) -> None:
    """Raise SourceError unless `tables` names all three tables; `files` are those among which they were searched."""
    missing = [f"{table}.csv" for table in TABLES if table not in tables]
    if missing:
        raise SourceError(
            f"{location}: {' and '.join(missing)} not found (plain, .gz, .zip, or in the competition's zip)"
            + advise(files)
        )


def advise(files: Iterable[Path]) -> str:
    """What to do about the first file whose name or format is not known, for the end of an error; "" if all are."""
    for path in files:
        names = [_base_name(member.filename) for member in _list_members(path)] if is_zip(path) else [path.name]
        if not names:
            return f"; {path.name} contains no files, or more than are searched: extract it first"
        for name in names:
            if known := SECOND_DOWNLOADS.get(name.lower()):
                return f"; rename {name} to {known}"
            if name.lower().endswith(OTHER_ARCHIVES):
                return f"; {name} is an archive that is not read here: extract it first"
    return ""


def find_mnist(files: Iterable[Path]) -> dict[str, TableFile]:
    """MNIST's files among `files` and in zips: the four in IDX_FILES, else those in MNIST_TABLES; empty if none.

    Plain files take precedence over compressed ones and those over zips. Raises SourceError if files are missing, other
    than mnist_test.csv.
    """
    candidates = []
    for path in sorted(files, reverse=True):
        if is_zip(path):
            members = _list_members(path)
            # Of several members with the same name, zipfile opens the last.
            chosen = {m.filename: m for m in members if _base_name(m.filename).lower() in MNIST_FILES}
            if chosen:
                _refuse_malicious(path, members, chosen.values())
            candidates += [TableFile(path, name) for name in chosen]
        elif path.name.lower() in MNIST_FILES:
            candidates.append(TableFile(path))
    candidates.sort(key=lambda file: (file.path.is_file(), not file.member, not file.is_gzip))
    by_name = {MNIST_FILES[file.name.lower()]: file for file in candidates}  # the last takes precedence
    for names, required in ((IDX_FILES, IDX_FILES), (MNIST_TABLES, MNIST_TABLES[:1])):
        chosen_files = {name: by_name[name] for name in names if name in by_name}
        missing = [name for name in required if name not in chosen_files]
        if chosen_files and missing:
            raise SourceError(f"{next(iter(chosen_files.values()))} exists, but {missing[0]} (or .gz) is missing")
        if chosen_files:
            return chosen_files
    return {}


def is_zip(path: Path) -> bool:
    """Whether a path has the name of a zip and is a file; opening a pipe would block."""
    return path.name.lower().endswith(".zip") and path.is_file()


def list_table_files(folder: Path) -> list[Path]:
    """The files in a folder that contain tables (CSVs, plain or compressed, and zips of CSVs), sorted."""
    return [
        require_readable(path)
        for path in list_folder(folder)
        if path.name in TABLE_FILES or (is_zip(path) and _find_members(path))
    ]


def list_folder(folder: Path) -> list[Path]:
    """The entries of a folder, sorted; empty if the folder does not exist. Raises SourceError."""
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise _unreadable(folder, error) from None


def require_readable(path: Path) -> Path:
    """Return `path`, or raise SourceError if it is not a readable file of at most MAX_BYTES."""
    if not path.is_file():  # opening a pipe would block
        raise SourceError(f"{path}: not a file (but a folder, a pipe, or a broken link)")
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
    except OSError as error:
        raise _unreadable(path, error) from None
    if size > MAX_BYTES:
        raise SourceError(f"{path}: {size:,} bytes, expected at most {MAX_BYTES:,}")
    return path


def _find_members(path: Path) -> dict[str, str]:
    """The names of a zip's members that are tables, by table name. Raises SourceError."""
    members = _list_members(path)
    tables: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        table = TABLE_FILES.get(_base_name(member.filename))
        if table and member.filename.endswith(".csv"):
            if table in tables:
                raise SourceError(f"{path}: contains {table}.csv more than once")
            tables[table] = member
    if tables:
        _refuse_malicious(path, members, tables.values())
    return {table: member.filename for table, member in tables.items()}


def _list_members(path: Path) -> list[zipfile.ZipInfo]:
    """A zip's members; none if there are many more than in any zip of tables. Raises SourceError."""
    try:
        with _ZipFile(path) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except OverflowError:
        return []
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # ValueError: names that cannot be decoded
        raise SourceError(f"{path}: not a zip file, or damaged ({error}); get it again") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _base_name(member: str) -> str:
    """The name of a zip's member without folders; "" for what macOS adds."""
    *folders, name = member.split("/")
    return "" if "__MACOSX" in folders else name


def _refuse_malicious(path: Path, members: Iterable[zipfile.ZipInfo], tables: Iterable[zipfile.ZipInfo]) -> None:
    """Raise SourceError if a member's name leads outside the zip, or a table is a zip bomb.

    Nothing is ever extracted under a member's name, but such a zip does not come from the competition.
    """
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        outside = not parts[0] or ".." in parts or parts[0].endswith(":")
        if outside or stat.S_ISLNK(member.external_attr >> 16):
            raise SourceError(f"{path}: refused: its member {member.filename!r} is a link or leads outside the zip")
    for member in tables:
        compressed, size = member.compress_size, member.file_size
        if size > min(MAX_BYTES, max(MIN_SUSPECT_BYTES, MAX_COMPRESSION * compressed)):
            raise SourceError(
                f"{path}: refused: {member.filename} would grow from {compressed:,} to {size:,} bytes, more than any "
                "such table"
            )


def _unreadable(location: object, error: OSError) -> SourceError:
    return SourceError(f"{location}: cannot be read ({error.strerror or error})")
