"""Files on disk: hashes, atomic writes, which files are the pipeline's, and manifests.

A folder without a valid manifest does not count as a result. `manifest.json` holds what is deterministic,
`context.json` what is not. Folders of the pipeline have a list of the files that it wrote there: only these are deleted
or overwritten, since all others are the user's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import PipelineError, StageError
from pipeline.workflow import schemas

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST, CONTEXT, STARTED = "manifest.json", "context.json", "started.json"
REFERENCES = "networks.json"  # in the staging folder of a stage that trains: the names of its networks' folders
STAGED = ".staged-by-pipeline"  # the list in X.partial and X.previous; without it, such a folder is the user's
WRITTEN = ".written-by-pipeline"  # the list in a published folder
LISTS = (STAGED, WRITTEN)  # paths below the folder, each followed by NUL
MAX_KEPT_NAME = 240  # bytes of a name before ".kept" is added; most file systems allow 255
TEMPORARY = re.compile(r"\.(.+)\.[0-9]+\.tmp", re.DOTALL)  # the name of a file while `write` writes it
FORMAT = 3  # of manifests and of the workspace
SEAL = "seal"  # the manifest's checksum of its other entries
CHUNK = 1 << 22  # bytes read at a time
MAX_JSON = 1 << 24  # bytes; context.json of an ensemble of 25 networks has 20,000

DISK_MARGIN = 4 << 20  # bytes in addition to an estimate of what is written, for manifests and logs

Manifest = dict[str, Any]


class DiskFull(PipelineError):
    """The disk has less room than a result may need."""


def sha256(path: str | Path) -> str:
    """The hexadecimal SHA-256 of a file's content. Raises OSError, also for a pipe or a folder."""
    if not os.path.isfile(path) and os.path.exists(path):
        raise OSError(errno.EINVAL, "not a file", str(path))  # reading a pipe would block forever
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: str | Path, content: bytes | Iterable[Any]) -> None:
    """Write bytes, or an iterable of buffers, to `path` and flush them to the disk.

    All files of the pipeline except logs are written here. The content goes to a temporary file, which is then renamed:
    `path` holds either the old content or the new. In a folder with a list, a file of the user's moves aside.
    """
    path = Path(path)
    names = (path.with_name(f".{path.name}.{number}.tmp") for number in itertools.count(os.getpid()))
    temporary = next(name for name in names if not os.path.lexists(name))
    try:
        with _filename_in_errors(path):
            _add_to_list(path, temporary)
            with open(temporary, "xb", buffering=0) as file:
                for chunk in [content] if isinstance(content, bytes) else content:
                    _write_all(file, chunk)
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a log. It is not flushed: after a power failure, the last lines may be missing."""
    with _filename_in_errors(path):
        _add_to_list(path)
        with open(path, "ab", buffering=0) as file:
            _write_all(file, f"{line}\n".encode())


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
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A byte of a file name that is not UTF-8 becomes "\\udce9", which is also JSON's escape: it is read back as it was.
    write(path, text.encode(errors="backslashreplace"))


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


def read_json(path: str | Path, schema: Any, max_bytes: int = MAX_JSON) -> dict[str, Any] | None:
    """The object in a JSON file, or None if the file is missing, too large or not what its schema says.

    schema: of `pipeline.workflow.schemas`. Optional entries may be missing.
    """
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > max_bytes:
            return None
        value: dict[str, Any] = json.loads(Path(path).read_bytes())
        schemas.check(value, schema)
    except (OSError, ValueError, RecursionError):
        return None
    return value


def require_json(path: Path, schema: Any, max_bytes: int = MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file. Raises StageError if it is not what its schema says."""
    value = read_json(path, schema, max_bytes)
    if value is None:
        raise damaged(path)
    return value


def damaged(path: Path, why: str = "") -> StageError:
    """The error that a file of the workspace is not what the pipeline writes."""
    return StageError(f"{path} is damaged{why and f' ({why})'}: repeat the stage that made it with --force")


def read_array(
    path: Path, dtype: str, shape: tuple[int | None, ...], mmap_mode: Literal["r", "c"] | None = None, below: int = 0
) -> NDArray[Any]:
    """The array in an `.npy` file of the workspace. Raises StageError if it has another type, shape or values.

    shape: None for any size.
    below: of integers: all values must be from 0 to `below` - 1; 0 means that any value is valid.
    """
    import numpy as np

    try:
        array: NDArray[Any] = np.load(path, mmap_mode=mmap_mode)
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy raises many kinds
        raise damaged(path, str(error).partition("\n")[0][:100]) from None
    sizes = getattr(array, "shape", ())  # of an archive of arrays: none
    fits = len(sizes) == len(shape) and all(size in (None, actual) for size, actual in zip(shape, sizes, strict=True))
    if not fits or not array.size or array.dtype != dtype:
        raise damaged(path, f"expected {dtype} ({', '.join('n' if size is None else str(size) for size in shape)})")
    if below and not 0 <= array.min() <= array.max() < below:
        raise damaged(path, f"expected values from 0 to {below - 1}")
    return array


def read_manifest(folder: Path) -> tuple[Manifest | None, str]:
    """The folder's manifest and "", or None and the reason why it is not valid ("" if there is none)."""
    path = folder / MANIFEST
    if not os.path.exists(path):  # also false if the folder cannot be accessed
        return None, ""
    manifest = read_json(path, schemas.Manifest)
    if manifest is None or manifest.pop(SEAL, None) != _seal(manifest):
        return None, f"{MANIFEST} is damaged"
    return manifest, ""


def require_manifest(folder: Path) -> Manifest:
    """The folder's manifest. Raises StageError if there is none, or if it is damaged."""
    manifest, _ = read_manifest(folder)
    if manifest is None:
        raise damaged(folder / MANIFEST)
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


def changed_outputs(folder: Path, manifest: Manifest, rehash: bool = True) -> dict[str, str]:
    """The outputs of a manifest that are missing or changed: a dict from name to reason.

    rehash: whether to hash all files, otherwise only those whose size, time or inode differs from what `context.json`
        recorded: this is fast, but does not notice a fault of the disk.
    """
    files = {} if rehash else (read_json(folder / CONTEXT, schemas.Context) or {}).get("files", {})
    faults = {}
    for name, digest in manifest["outputs"].items():
        path, basename = folder / name, os.path.basename(name)
        try:
            if files.get(name) == [*_fingerprint(path), digest]:
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


def own_names(folder: Path) -> set[str]:
    """The files that the pipeline wrote in a folder, as paths below it; without a list, those of the manifest."""
    if file := _list_of(folder):
        return {*os.fsdecode(file.read_bytes()).split("\0")} - {""}
    manifest, _ = read_manifest(folder)
    return {*manifest["outputs"], MANIFEST, CONTEXT} if manifest else set()


def _list_of(folder: Path) -> Path | None:
    """The file with the list of a folder."""
    files = (folder / name for name in LISTS)
    return next((file for file in files if is_file(file) and os.path.getsize(file) <= MAX_JSON), None)


def is_file(path: str | Path) -> bool:
    """Whether `path` is a file and no link to one, which would lead out of the folder."""
    return os.path.isfile(path) and not os.path.islink(path)


def own_files(folder: Path) -> list[Path]:
    """The files in a folder that the pipeline wrote, including lists and temporary files; what names them comes last.

    Links are not followed: no file outside the folder is among them, whatever a manifest lists.
    """
    names = own_names(folder)
    paths = [Path(parent, name) for parent, _, files in os.walk(folder) for name in files]
    paths = [
        path
        for path in paths
        if path.relative_to(folder).as_posix() in names or (path.parent == folder and final_name(path.name) in LISTS)
    ]
    return sorted(paths, key=lambda path: (path.name in (MANIFEST, *LISTS), path))


def temporary_files(folder: Path) -> list[Path]:
    """The files in a folder of the pipeline that a process which was killed has not written completely."""
    return [path for path in own_files(folder) if path.name != final_name(path.name)]


def final_name(name: str) -> str:
    """The name that a temporary file of `write` gets when it is complete; that of another file is its own."""
    match = TEMPORARY.fullmatch(name)
    return match[1] if match else name


def delete_own(folder: Path, kept: Container[str] = ()) -> None:
    """Delete what the pipeline wrote in a folder, except `kept`, and the folders below that become empty."""
    for path in own_files(folder):
        if path.relative_to(folder).as_posix() not in kept:
            path.unlink(missing_ok=True)
            parent = path.parent
            while parent != folder and not any(parent.iterdir()):
                parent.rmdir()
                parent = parent.parent


def write_list(folder: Path, names: Iterable[str], file: str = WRITTEN) -> None:
    """Declare that, of the files in a folder, the pipeline wrote those in `names`; later ones are added by `write`."""
    content = os.fsencode("".join(f"{name}\0" for name in sorted(names)))
    if not is_file(folder / file):
        move_aside(folder / file)
    write(folder / file, content)


def _add_to_list(*paths: Path) -> None:
    """Add files to the list of their folder, or of one above. What the user has at these paths is moved aside."""
    file = next(filter(None, map(_list_of, paths[0].parents)), None)
    if file is None or paths[0].name in LISTS:
        return
    listed = own_names(file.parent)
    for path in paths:
        name = path.relative_to(file.parent).as_posix()
        if name not in listed or not is_file(path):
            move_aside(path)
        if name not in listed:
            with open(file, "ab", buffering=0) as opened:
                _write_all(opened, os.fsencode(f"{name}\0"))


def numbered(path: Path, ending: str) -> Iterator[Path]:
    """Paths beside `path`: NAME.ending, NAME.ending2, ..."""
    for number in itertools.count(1):
        yield path.with_name(f"{path.name}{ending}{number if number > 1 else ''}")


def free_name(path: Path) -> Path:
    """`path` if nothing is there, otherwise the first of NAME.kept, NAME.kept2, ... that is free."""
    short = path.name
    while len(os.fsencode(short)) > MAX_KEPT_NAME:
        short = short[:-1]
    names = itertools.chain([path], numbered(path.with_name(short), ".kept"))
    return next(name for name in names if not os.path.lexists(name))


def move_aside(path: Path) -> None:
    """Rename what is at `path`, if anything, to the first free name of NAME.kept, NAME.kept2, ..."""
    if os.path.lexists(path):
        os.rename(path, free_name(path))


def resolve(path: Path) -> Path:
    """The path with its links resolved. Raises StageError for a link to what does not exist, as an unmounted disk."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not part.exists():
            raise StageError(
                f"{part} is a link to {os.readlink(part)}, which does not exist: mount its disk, or change the link"
            )
    return path.resolve()
