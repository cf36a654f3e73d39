"""Results on disk: hashing, the one way to write a file, atomic publishing, manifests, the workspace's lock.

A stage's result is one folder. It is written beside its place as `X.partial`, flushed, its `manifest.json` last;
the old folder moves to `X.previous`, the new one into place, and `X.previous` goes. Without a valid manifest the
result does not exist. `manifest.json` holds what is deterministic, `context.json` what is not.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import time
from pathlib import Path

MANIFEST, CONTEXT, STARTED = "manifest.json", "context.json", "started.json"
SEAL = "seal"  # in a manifest
PIECE = 1 << 22  # bytes read at a time
LARGEST_JSON = 1 << 24  # bytes; the record of an ensemble of 25 networks has 20,000


class Held(RuntimeError):
    """Another process holds the workspace's lock."""


def sha256(path):
    """The hex SHA-256 of a file's content."""
    if not os.path.isfile(path) and os.path.exists(path):
        raise OSError(errno.EINVAL, "not a file", str(path))  # reading a pipe would wait for ever
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path, pieces, *, append=False):
    """Write `pieces` (bytes, or an iterable of buffers) to `path` and flush them to the disk.

    Every byte that the pipeline writes passes here. The file is made under a temporary name and renamed, so that
    `path` holds its old content or the new and never half; with `append` the pieces go to its end instead.
    """
    path = Path(path)
    pieces = [pieces] if isinstance(pieces, bytes) else pieces
    target = path if append else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _named(path):
            with open(target, "ab" if append else "wb", buffering=0) as file:
                for piece in pieces:
                    view = memoryview(piece).cast("B")
                    while view:
                        view = view[file.write(view) :]
                os.fsync(file.fileno())
            if not append:
                os.replace(target, path)
    except BaseException:
        if not append:
            target.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _named(path):
    """Name `path` in what goes wrong: a failed flush does not say which file, others name the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_json(path, value):
    """Write `value` as indented JSON."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_array(path, shape, dtype, pieces):
    """Write an `.npy` file of `shape` from arrays that follow each other along its first axis."""
    import numpy as np  # not above: `--status` reads manifests, and must be quick to start

    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, described)

    def checked():
        yield header.getvalue()
        rows = 0
        for piece in pieces:
            if piece.dtype != dtype or piece.shape[1:] != tuple(shape[1:]):
                raise ValueError(f"{path}: a piece is {piece.dtype} {piece.shape}, expected {dtype} {shape}")
            rows += len(piece)
            yield np.ascontiguousarray(piece)
        if rows != shape[0]:
            raise ValueError(f"{path}: {rows} rows written, expected {shape[0]}")

    write(path, checked())


def sync_folder(folder):
    """Flush a folder's entries, so that a rename in it outlives a power cut (a no-op on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with _named(folder):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(path):
    """The object in a JSON file, or None where there is no such file or no such object."""
    if not os.path.isfile(path) or os.path.getsize(path) > LARGEST_JSON:
        return None
    try:
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_manifest(folder):
    """The folder's manifest and "", or None and a word why it does not count."""
    path = Path(folder) / MANIFEST
    if not os.path.exists(path):  # nor where the folder may not be looked into
        return None, ""
    manifest = read_json(path)
    if manifest is None or manifest.pop(SEAL, None) != _seal(manifest):
        return None, f"{MANIFEST} is damaged"
    return manifest, ""


def _seal(manifest):
    """SHA-256 of a manifest's other content: what was edited by hand is no record of what was made."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def write_manifest(folder, key, files, numbers, context):
    """Finish a result: `files` (names below `folder`) are hashed, and the manifest is written last.

    `key` holds the stage, its version, the settings it read and the hashes of its inputs.
    """
    outputs = {name: sha256(folder / name) for name in files}
    stats = {name: [*_fingerprint(folder / name), digest] for name, digest in outputs.items()}
    write_json(folder / CONTEXT, {**context, "files": stats})
    manifest = {**key, "outputs": outputs, "numbers": numbers}
    write_json(folder / MANIFEST, manifest | {SEAL: _seal(manifest)})
    sync_folder(folder)


def changed_outputs(folder, manifest):
    """What is wrong with the outputs that a manifest names: a dict from name to a phrase, empty where all is well.

    A file is hashed again only where its size, time or inode is not what `context.json` recorded.
    """
    stats = (read_json(folder / CONTEXT) or {}).get("files")
    faults = {}
    for name, digest in manifest["outputs"].items():
        path, shown = folder / name, os.path.basename(name)
        try:
            if isinstance(stats, dict) and stats.get(name) == [*_fingerprint(path), digest]:
                continue
            if sha256(path) != digest:
                faults[name] = f"{shown} was changed after it was made"
        except FileNotFoundError:
            faults[name] = f"{shown} was deleted"
        except OSError as error:
            faults[name] = f"{shown} cannot be read ({error.strerror})"
    return faults


def begin(place):
    """An empty `X.partial` to write a result in; what an earlier try left there goes."""
    partial, _ = beside(place)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def publish(place):
    """Move `X.partial`, whose manifest is written, into place; what stood there goes."""
    partial, previous = beside(place)
    restore(place)
    try:
        if place.exists():
            os.rename(place, previous)
        os.rename(partial, place)
    except OSError:
        restore(place)
        raise
    sync_folder(place.parent)
    shutil.rmtree(previous, ignore_errors=True)


def restore(place):
    """Undo what was cut off: an orphaned `X.previous` comes back or goes, and a half-written record goes."""
    _, previous = beside(place)
    for half in place.glob(".*.json.*.tmp"):  # of `write`: these are the files that change within a published folder
        half.unlink()
    if previous.exists():
        if place.exists():
            shutil.rmtree(previous)
        else:
            os.rename(previous, place)


def standing(place):
    """Where a result stands: its place, or `X.previous` where a publishing was cut off between its two renames."""
    _, previous = beside(place)
    return previous if previous.exists() and not place.exists() else place


def beside(place):
    """The names of a result's `.partial` and `.previous` folders."""
    return place.with_name(place.name + ".partial"), place.with_name(place.name + ".previous")


class Lock:
    """The workspace's lock: taken by one process at a time, freed by the system when that process dies."""

    def __init__(self, path):
        self.path = path
        self.file = None

    def acquire(self, holder, wait=False, on_wait=lambda message: None):
        """Take the lock for `holder` (a dict of what to tell others), or raise Held naming who has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (open as long as the lock is held)
        told = False
        while not _try_lock(self.file):
            message = self._holder()
            if not wait:
                self.file.close()
                raise Held(f"{message}; wait for it, or give --wait")
            if not told:
                on_wait(f"{message}; waiting")
                told = True
            time.sleep(0.2)
        self.tell(holder)

    def tell(self, holder):
        """Say in the lock file who holds it: pid, stage, since when."""
        text = json.dumps({"pid": os.getpid(), **holder}).encode()
        self.file.truncate(0)
        write(self.path, text, append=True)

    def _holder(self):
        known = read_json(self.path) or {}
        name = self.path.parent.parent
        return (
            f"{name} is in use by process {known.get('pid', '(unknown)')}, "
            f"stage {known.get('stage', '(unknown)')}, since {known.get('since', '(unknown)')}"
        )

    def release(self):
        """Free the lock; the file stays."""
        self.file.close()


def _try_lock(file):
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 20)  # a byte beyond the text, so that others can read who holds it
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (BlockingIOError, PermissionError):  # held; any other error is one of the file system's
        return False


def _fingerprint(path):
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]
