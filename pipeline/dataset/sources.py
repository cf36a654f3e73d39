"""Sources of raw data: what `--data` and `data/raw` contain."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.dataset import files
from pipeline.dataset.files import SourceError, TableFile
from pipeline.kaggle import competition, machine
from pipeline.recipes import config
from pipeline.workflow import store
from pipeline.workflow.run import Run
from pipeline.workflow.store import Manifest

NAMES = ("kaggle", "openml", "sample")  # in addition to "auto" and a path
MAX_ATTACHED_DEPTH = 4  # folders below /kaggle/input that are searched for the competition's tables
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
    changed = store.changed_outputs(raw, manifest, rehash=False)
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


def why_stale(run: Run, manifest: Manifest) -> str:
    """Why the contents of `data/raw`, with their manifest, are not what `--data DATA` asks for; "" if they are."""
    data, source = run.data, manifest["numbers"].get("source")
    user_files = find_user_files(run.published_dir("download"))
    if data == "auto":
        used = {table.path.name for table in files.find_tables(user_files).values()}
        return "there are new files in data/raw" if used and used != set(manifest["outputs"]) else ""
    if user_files:
        return f"data/raw contains files of your own, but --data is {data}"
    if data in NAMES:
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
    return {path.name: store.sha256(path) for path in list_paths(find_path_files(data))}


def find_path_files(data: str) -> dict[str, TableFile]:
    """What `--data PATH` reads: the competition's tables by their names in TABLES, else what `find_mnist` returns.

    Raises SourceError.
    """
    if not data:
        raise SourceError(f"--data is empty: give auto, {', '.join(NAMES)}, or a folder or zip")
    path = Path(data)
    if not path.exists():
        raise SourceError(f"--data {path}: no such file or folder{config.nearest(data, ('auto', *NAMES))}")
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


def list_paths(path_files: dict[str, TableFile]) -> list[Path]:
    """The files on the disk, each once."""
    return sorted({file.path for file in path_files.values()})
