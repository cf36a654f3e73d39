"""Files on disk: hashes, atomic writes, publishing a folder, manifests and locks.

The result of a stage is one folder X. It is written to `X.partial`, flushed, and gets its `manifest.json` last. Then
the old folder is renamed to `X.previous`, the new one to X, and `X.previous` is deleted. A folder without a valid
manifest does not count as a result. `manifest.json` holds what is deterministic, `context.json` what is not.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from pipeline.errors import PipelineError, StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST, CONTEXT, STARTED = "manifest.json", "context.json", "started.json"
REFERENCES = "networks.json"  # in the staging folder of a stage that trains: the names of its networks' folders
FORMAT = 2  # of manifests and of the workspace; manifests of earlier versions have no entry "format"
SEAL = "seal"  # the manifest's checksum of its other entries
LOCK_HOLDER = "data/.lock-holder.json"  # below the workspace
CHUNK = 1 << 22  # bytes read at a time
MAX_JSON = 1 << 24  # bytes; context.json of an ensemble of 25 networks has 20,000

DISK_MARGIN = 4 << 20  # bytes in addition to an estimate of what is written, for manifests and logs

Manifest = dict[str, Any]


class DiskFull(PipelineError):
    """The disk has less room than a result may need."""


class LockHeld(PipelineError):
    """Another process holds the workspace's lock."""


def sha256(path: str | Path) -> str:
    """The hexadecimal SHA-256 of a file's content. Raises OSError, also for a pipe or a folder."""
    if not os.path.isfile(path) and os.path.exists(path):
        raise OSError(errno.EINVAL, "not a file", str(path))  # reading a pipe would block forever
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: str | Path, content: bytes | Iterable[Any]) -> None:
    """Write bytes, or an iterable of buffers, to `path` and flush them to the disk.

    All files of the pipeline except logs are written here. The content goes to a temporary file, which is then renamed:
    `path` holds either the old content or the new.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _filename_in_errors(path):
            with open(temporary, "wb", buffering=0) as file:
                for chunk in [content] if isinstance(content, bytes) else content:
                    _write_all(file, chunk)
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a log. It is not flushed: after a power failure, the last lines may be missing."""
    with _filename_in_errors(path), open(path, "ab", buffering=0) as file:
        _write_all(file, f"{line}\n".encode(errors="backslashreplace"))


def _write_all(file: Any, chunk: Any) -> None:
    """Write a buffer to an unbuffered file, which may accept only a part of it at a time."""
    view = memoryview(chunk).cast("B")
    while view:
        view = view[file.write(view) :]


@contextlib.contextmanager
def _filename_in_errors(path: Path) -> Iterator[None]:
    """Set the file name of every OSError: a failed flush has none, and a failed rename has the temporary file's."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. Raises ValueError for NaN and infinity."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as an `.npy` file."""
    write_array_chunks(path, array.shape, array.dtype, [array])


def write_array_chunks(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: Iterable[NDArray[Any]]
) -> None:
    """Write an `.npy` file of `shape` from arrays that are concatenated along the first axis.

    Raises ValueError if the chunks do not add up to the shape.
    """
    import numpy as np  # not at the top: `--status` reads manifests and must start quickly

    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)

    def buffers() -> Iterator[Any]:
        yield header.getvalue()
        n_rows = 0
        for chunk in chunks:
            if chunk.dtype != dtype or chunk.shape[1:] != shape[1:]:
                raise ValueError(f"{path}: a chunk is {chunk.dtype} {chunk.shape}, expected {dtype} {shape}")
            n_rows += len(chunk)
            yield np.ascontiguousarray(chunk)
        if n_rows != shape[0]:
            raise ValueError(f"{path}: {n_rows} rows written, expected {shape[0]}")

    write(path, buffers())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power failure (no effect on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with _filename_in_errors(folder):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(path: str | Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if the file is missing, too large or does not contain an object."""
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > MAX_JSON:
            return None
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_manifest(folder: Path) -> tuple[Manifest | None, str]:
    """The folder's manifest and "", or None and the reason why it is not valid ("" if there is none)."""
    path = folder / MANIFEST
    if not os.path.exists(path):  # also false if the folder cannot be accessed
        return None, ""
    manifest = read_json(path)
    if manifest is None or manifest.pop(SEAL, None) != _seal(manifest):
        return None, f"{MANIFEST} is damaged"
    return manifest, ""


def require_manifest(folder: Path) -> Manifest:
    """The folder's manifest. Raises OSError if there is none, or if it is damaged."""
    manifest, damage = read_manifest(folder)
    if manifest is None:
        raise OSError(f"{folder / MANIFEST}: {damage or 'the file is missing'}")
    return manifest


def read_intact_manifest(folder: Path, key: Mapping[str, Any]) -> Manifest | None:
    """The folder's manifest if it was written for `key` and no output has changed since, otherwise None."""
    manifest, _ = read_manifest(folder)
    is_same = manifest and all(manifest.get(name) == value for name, value in key.items())
    return manifest if manifest and is_same and not changed_outputs(folder, manifest) else None


def _seal(manifest: Manifest) -> str:
    """SHA-256 of a manifest without its seal: a manifest that was edited by hand is not valid."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def write_manifest(
    folder: Path, key: Mapping[str, Any], outputs: Sequence[str], numbers: Mapping[str, Any], context: Mapping[str, Any]
) -> None:
    """Complete a result: hash `outputs` (names below `folder`) and write the manifest last.

    key: what determines the result: stage, settings, input hashes, code hashes.
    """
    hashes = {name: sha256(folder / name) for name in outputs}
    files = {name: [*_fingerprint(folder / name), digest] for name, digest in hashes.items()}
    write_json(folder / CONTEXT, {**context, "files": files})
    manifest = {**key, "outputs": hashes, "numbers": numbers}
    write_json(folder / MANIFEST, manifest | {SEAL: _seal(manifest)})
    sync_folder(folder)


def changed_outputs(folder: Path, manifest: Manifest) -> dict[str, str]:
    """The outputs of a manifest that are missing or changed: a dict from name to reason.

    A file is hashed again only if its size, time or inode differs from what `context.json` recorded.
    """
    files = (read_json(folder / CONTEXT) or {}).get("files")
    faults = {}
    for name, digest in manifest["outputs"].items():
        path, basename = folder / name, os.path.basename(name)
        try:
            if isinstance(files, dict) and files.get(name) == [*_fingerprint(path), digest]:
                continue
            if sha256(path) != digest:
                faults[name] = f"{basename} was changed after it was written"
        except FileNotFoundError:
            faults[name] = f"{basename} was deleted"
        except OSError as error:
            faults[name] = f"{basename} cannot be read ({error.strerror})"
    return faults


def _fingerprint(path: Path) -> list[int]:
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def require_disk_space(workspace: Path, needed: int, what: str) -> None:
    """Raise DiskFull if less than `needed` bytes and a margin are free: better now than after an hour of training."""
    free = shutil.disk_usage(workspace).free
    if free < needed + DISK_MARGIN:
        raise DiskFull(
            f"{what} writes up to {(needed + DISK_MARGIN) / 1e6:,.0f} MB, and {workspace} has {free / 1e6:,.0f} MB "
            "free: free some space (--clean lists what is no longer used), or choose another --workspace"
        )


def staging_dir(folder: Path) -> Path:
    """Where a result is written before it is published."""
    return folder.with_name(folder.name + ".partial")


def previous_dir(folder: Path) -> Path:
    """Where the old result is while the new one is published."""
    return folder.with_name(folder.name + ".previous")


def create_staging_dir(folder: Path, kept: Sequence[str] = ()) -> Path:
    """Create a staging folder; what an earlier attempt left there is deleted, except the files `kept`."""
    staging = staging_dir(folder)
    for path in staging.iterdir() if kept and staging.exists() else ():
        if path.name not in kept:
            path.unlink()
    if staging.exists() and not kept:
        shutil.rmtree(staging)
    staging.mkdir(parents=True, exist_ok=True)
    return staging


def publish(folder: Path, also_kept: Sequence[str] = ()) -> None:
    """Move the staging folder, whose manifest is written, to `folder`; the old result is deleted.

    Files that the manifest does not list, which only the run needed, are deleted first, except those in `also_kept`.
    """
    manifest, _ = read_manifest(staging_dir(folder))
    if manifest:
        kept = {*manifest["outputs"], *also_kept, MANIFEST, CONTEXT}
        for path in staging_dir(folder).iterdir():
            if path.name not in kept:
                path.unlink()
    restore(folder)
    try:
        if folder.exists():
            os.rename(folder, previous_dir(folder))
        os.rename(staging_dir(folder), folder)
    except OSError:
        restore(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(previous_dir(folder), ignore_errors=True)


def restore(folder: Path) -> None:
    """Undo an interrupted publish: bring back or delete `X.previous`, and delete half-written JSON files."""
    for temporary in folder.glob(".*.json.*.tmp"):  # only JSON files are written to in a published folder
        temporary.unlink()
    previous = previous_dir(folder)
    if previous.exists():
        if folder.exists():
            shutil.rmtree(previous)
        else:
            os.rename(previous, folder)


def published_dir(folder: Path) -> Path:
    """`folder`, or `X.previous` if a publish was interrupted between its two renames."""
    previous = previous_dir(folder)
    return previous if previous.exists() and not folder.exists() else folder


@contextlib.contextmanager
def lock_workspace(workspace: Path, stage: str, wait: bool = False) -> Iterator[None]:
    """Hold the workspace's lock, which the operating system releases when the process dies.

    Raises LockHeld, which says what stage the other process runs, if it is held, unless `wait` is set.
    """
    if workspace.exists() and not workspace.is_dir():
        raise StageError(f"--workspace {workspace}: not a folder")
    path, holder_file = workspace / "data/.lock", workspace / LOCK_HOLDER
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        current = read_json(holder_file) or {}
        pid, other_stage, since = (current.get(name, "(unknown)") for name in ("pid", "stage", "since"))
        message = f"{workspace} is in use by process {pid}, stage {other_stage}, since {since}"
        if not wait:
            raise LockHeld(f"{message}; wait until it has finished, or use --wait") from None
        print(f"{message}; waiting", flush=True)
        lock.acquire(poll_interval=0.2)
    try:
        for temporary in path.parent.glob(f".{holder_file.name}.*.tmp"):  # of a process that was killed
            temporary.unlink()
        record_lock_holder(workspace, stage)
        yield
    finally:
        lock.release()


def record_lock_holder(workspace: Path, stage: str) -> None:
    """Record, for other processes, that this process holds the workspace's lock and runs a stage."""
    holder = {"pid": os.getpid(), "stage": stage, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_json(workspace / LOCK_HOLDER, holder)
