"""Publishing the result of a stage: a new folder replaces the old one, whenever the process ends.

The result of a stage is one folder X. It is written to `X.partial`, flushed, and gets its `manifest.json` last. Then
the old folder is renamed to `X.previous` and the new one to X. What the pipeline wrote in `X.previous` is deleted; the
rest is the user's and moves to X.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.workflow import store


def _move_into(paths: Iterable[Path], folder: Path) -> None:
    """Move files and folders into a folder; folders that it has already are merged."""
    for path in sorted(paths):
        destination = folder / path.name
        if _is_folder(path) and _is_folder(destination):
            _move_into(path.iterdir(), destination)
            path.rmdir()
        else:
            os.rename(path, store.free_name(destination))


def _is_folder(path: Path) -> bool:
    """Whether `path` is a folder and no link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def is_staged(folder: Path) -> bool:
    """Whether `X.partial` or `X.previous` is the pipeline's."""
    return _is_folder(folder) and store.is_file(folder / store.STAGED)


def _beside(folder: Path, ending: str) -> Path:
    """The first of X.ending, X.ending2, ... that is free, empty or the pipeline's: the others are the user's."""
    return next(path for path in store.numbered(folder, ending) if is_staged(path) or _is_free(path))


def _is_free(path: Path) -> bool:
    """Whether there is nothing at `path`, or an empty folder, which a process that was killed may have left."""
    try:
        return not os.path.lexists(path) or (_is_folder(path) and not os.listdir(path))
    except OSError:
        return False


def staging_dir(folder: Path) -> Path:
    """Where a result is written before it is published."""
    return _beside(folder, ".partial")


def previous_dir(folder: Path) -> Path:
    """Where the old result is while the new one is published."""
    return _beside(folder, ".previous")


def create_staging_dir(folder: Path, kept: Sequence[str] = ()) -> Path:
    """Create a staging folder; what an earlier attempt wrote there is deleted, except the files `kept`."""
    staging = staging_dir(folder)
    staging.mkdir(parents=True, exist_ok=True)
    (staging / store.STAGED).touch()
    names = store.own_names(staging) & {*kept}
    store.delete_own(staging, {*names, store.STAGED})
    store.write_list(staging, names, store.STAGED)
    return staging


def publish(folder: Path, also_kept: Sequence[str] = ()) -> None:
    """Move the staging folder, whose manifest is written, to `folder`, and delete the files of the old result.

    Files that the manifest does not list, which only the run needed, are deleted first, except those in `also_kept`.
    What the user added to one of the two folders is then in the new one; if both have the name, as `NAME.kept`.
    """
    staging = staging_dir(folder)
    manifest, _ = store.read_manifest(staging)
    names = store.own_names(staging)
    if manifest:
        names &= {*manifest["outputs"], *also_kept, store.MANIFEST, store.CONTEXT}
    store.delete_own(staging, {*names, store.STAGED})
    store.write_list(staging, names)
    store.sync_folder(staging)
    restore(folder)
    try:
        if _is_folder(folder):
            store.write_list(folder, store.own_names(folder), store.STAGED)
            os.rename(folder, previous_dir(folder))
        else:
            store.move_aside(folder)
        os.rename(staging, folder)
    except OSError:
        restore(folder)
        raise
    store.sync_folder(folder.parent)
    with contextlib.suppress(OSError):  # published: what is left is for the next `restore`
        restore(folder)


def restore(folder: Path) -> None:
    """End an interrupted publish: `X.previous` is brought back or dissolved. Deletes temporary files."""
    previous = previous_dir(folder)
    if not os.path.lexists(folder) and is_staged(previous):
        os.rename(previous, folder)
    if not _is_folder(folder):
        return
    if os.path.isdir(previous):
        store.delete_own(previous, {store.STAGED})
        _move_into((path for path in previous.iterdir() if path.name != store.STAGED), folder)
        (previous / store.STAGED).unlink(missing_ok=True)
        previous.rmdir()
    if is_staged(folder):  # first: its list has names of temporary files, which files of the user's may have now
        (folder / store.STAGED).unlink()
    for path in store.temporary_files(folder):
        path.unlink()


def published_dir(folder: Path) -> Path:
    """`folder`, or `X.previous` if a publish was interrupted between its two renames."""
    previous = previous_dir(folder)
    return previous if is_staged(previous) and not folder.exists() else folder
