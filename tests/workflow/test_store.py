"""store: atomic writes, publishing and its recovery, manifests, the lock between processes."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pipeline.workflow import locks, publishing, schemas, store
from tests.interference import ROOT

KEY = {"format": store.FORMAT, "stage": "toy", "settings": {}, "inputs": {}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_a_file_and_leaves_no_temporary_file(tmp_path):
    file = tmp_path / "file"
    store.write(file, b"old")
    store.write(file, [b"ne", memoryview(b"w"), np.arange(3, dtype=np.uint8)])
    assert file.read_bytes() == b"new\0\1\2" and names(tmp_path) == ["file"]
    for line in ("first", "second"):
        store.append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


def test_a_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "file"
    store.write(file, b"old")

    def chunks():
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        store.write(file, chunks())
    assert error.value.filename == str(file)
    assert file.read_bytes() == b"old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("to", ["file", "folder", "missing", "itself"])
@pytest.mark.parametrize("name", ["weights", "manifest.json", store.STAGED, store.WRITTEN])
def test_nothing_is_written_where_links_lead(name, to, tmp_path):
    """Links in place of a file, of its temporary file, of a log and of a list, whether or not the list names them."""
    (tmp_path / "outside/folder").mkdir(parents=True)
    (tmp_path / "outside/file").write_text("mine")
    staging = publishing.create_staging_dir(tmp_path / "X")
    names_of_links = [f".{name}.{os.getpid()}.tmp", "weights", "log.txt"] + [store.WRITTEN] * (name == store.WRITTEN)
    store.write_list(staging, [path for path in names_of_links if path not in store.LISTS], store.STAGED)
    for path in names_of_links:
        (staging / path).symlink_to(path if to == "itself" else tmp_path / "outside" / to)
    for text in (b"new", b"newer"):
        if name in store.LISTS:
            store.write_list(staging, store.own_names(staging), name)
        store.write(staging / "weights", text)
        store.append_line(staging / "log.txt", "line")
    assert (staging / "weights").read_bytes() == b"newer" and (staging / "log.txt").read_text() == "line\nline\n"
    assert (staging / "weights.kept").is_symlink() and (staging / "log.txt.kept").is_symlink()
    assert not any((staging / path).is_symlink() for path in names_of_links[1:])
    assert names(tmp_path / "outside") == ["file", "folder"] and names(tmp_path / "outside/folder") == []
    assert (tmp_path / "outside/file").read_text() == "mine"


def test_arrays_written_in_chunks_equal_numpys_own_files(tmp_path):
    array = np.arange(60, dtype=np.int64).reshape(5, 3, 4)
    expected = io.BytesIO()
    np.save(expected, array)
    store.write_array_chunks(tmp_path / "a.npy", array.shape, array.dtype, [array[:2], array[2:]])
    assert (tmp_path / "a.npy").read_bytes() == expected.getvalue()
    store.write_array(tmp_path / "a.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == expected.getvalue()
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)
    for chunks in ([array[:2]], [array.astype(np.int32)], [array[:, :2]]):
        with pytest.raises(ValueError, match=r"b\.npy"):
            store.write_array_chunks(tmp_path / "b.npy", array.shape, array.dtype, chunks)
    assert names(tmp_path) == ["a.npy"]


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert store.sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
        with pytest.raises(OSError):
            store.sha256(path)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"[]", b"[" * 100_000, b"\xff\xfe", b" " * (store.MAX_JSON + 1)], ids=len
)
def test_read_json_returns_none_for_anything_but_what_its_schema_says(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    for name in ("file", "missing", ""):
        assert store.read_json(tmp_path / name, schemas.Context) is None
    (tmp_path / "file").write_text('{"recipe": "quick", "newer": 5}')
    assert store.read_json(tmp_path / "file", schemas.Context) == {"recipe": "quick", "newer": 5}


def stage(folder, content):
    """Write a result that is ready to be published."""
    staging = publishing.create_staging_dir(folder)
    store.write(staging / "result", content)
    store.write_manifest(staging, KEY, ["result"], {"number": 1}, {"device": "cpu"})
    return store.require_manifest(staging)


def test_publish_replaces_the_old_result(tmp_path):
    folder = tmp_path / "X"
    for content in (b"one", b"two"):
        stage(folder, content)
        publishing.publish(folder)
        assert (folder / "result").read_bytes() == content and names(tmp_path) == ["X"]
    manifest, reason = store.read_manifest(folder)
    assert reason == "" and manifest["numbers"] == {"number": 1}
    assert manifest["outputs"] == {"result": hashlib.sha256(b"two").hexdigest()}
    assert store.changed_outputs(folder, manifest) == {}
    assert store.read_intact_manifest(folder, KEY) == manifest
    assert store.read_intact_manifest(folder, {**KEY, "inputs": {"a": "b"}}) is None


@pytest.mark.parametrize("stop_before", [1, 2])
def test_a_publish_that_was_interrupted_between_its_renames_is_undone(tmp_path, monkeypatch, stop_before):
    folder = tmp_path / "X"
    stage(folder, b"one")
    publishing.publish(folder)
    stage(folder, b"two")
    renames, rename = [], os.rename

    def interrupted_rename(*arguments):
        renames.append(arguments)
        if len(renames) == stop_before:
            raise KeyboardInterrupt
        rename(*arguments)

    monkeypatch.setattr(os, "rename", interrupted_rename)
    with pytest.raises(KeyboardInterrupt):
        publishing.publish(folder)
    monkeypatch.undo()
    assert (publishing.published_dir(folder) / "result").read_bytes() == b"one"
    publishing.restore(folder)
    assert (folder / "result").read_bytes() == b"one" and names(tmp_path) == ["X", "X.partial"]


def test_a_new_result_counts_before_the_old_one_is_deleted(tmp_path, monkeypatch):
    folder, restore, calls = tmp_path / "X", publishing.restore, []

    def interrupted_restore(folder):
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        restore(folder)

    stage(folder, b"one")
    publishing.publish(folder)
    stage(folder, b"two")
    monkeypatch.setattr(publishing, "restore", interrupted_restore)
    with pytest.raises(KeyboardInterrupt):
        publishing.publish(folder)
    assert names(tmp_path) == ["X", "X.previous"] and publishing.published_dir(folder) == folder
    restore(folder)
    assert (folder / "result").read_bytes() == b"two" and names(tmp_path) == ["X"]


def test_changed_outputs_are_named(tmp_path):
    folder = tmp_path / "X"
    stage(folder, b"one")
    publishing.publish(folder)
    manifest, _ = store.read_manifest(folder)
    (folder / "result").write_bytes(b"oNe")
    assert store.changed_outputs(folder, manifest) == {"result": "result was changed after it was written"}
    (folder / "result").unlink()
    assert store.changed_outputs(folder, manifest) == {"result": "result was deleted"}
    (folder / "result").write_bytes(b"one")  # a different inode and time, the same content
    assert store.changed_outputs(folder, manifest, rehash=False) == store.changed_outputs(folder, manifest) == {}
    (folder / "context.json").write_bytes(b"garbage")
    assert store.changed_outputs(folder, manifest, rehash=False) == {}


def test_only_without_rehash_is_a_file_not_hashed(tmp_path, monkeypatch):
    manifest, folder, hashed = stage(tmp_path / "X", b"one"), publishing.staging_dir(tmp_path / "X"), []
    monkeypatch.setattr(store, "sha256", lambda path: hashed.append(path) or manifest["outputs"]["result"])
    assert store.changed_outputs(folder, manifest, rehash=False) == {} and hashed == []
    assert store.changed_outputs(folder, manifest) == {} and hashed == [folder / "result"]


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"[]", b"{}", b'{"stage": 1}', b"\xff\xfe", b"[" * 100_000,
     json.dumps({**KEY, "outputs": {"result": 5}, "numbers": {}}).encode()],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_a_damaged_manifest_is_not_valid(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    assert store.read_manifest(tmp_path) == (None, "manifest.json is damaged")


def test_an_edited_manifest_is_not_valid(tmp_path):
    folder = tmp_path / "X"
    stage(folder, b"one")
    publishing.publish(folder)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"stage": "toy"', '"stage": "other"'))
    assert store.read_manifest(folder) == (None, "manifest.json is damaged")


def test_a_folder_without_a_manifest(tmp_path):
    assert store.read_manifest(tmp_path) == (None, "")


HOLDER = """
import sys, time
from pathlib import Path
from pipeline.workflow.locks import lock_workspace, record_lock_holder
with lock_workspace(Path(sys.argv[1]), "all"):
    record_lock_holder(Path(sys.argv[1]), "train")
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold_lock(workspace, seconds):
    """Start a process that holds the lock for some seconds."""
    command = [sys.executable, "-c", HOLDER, str(workspace), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_names_its_holder_and_ends_with_its_process(tmp_path):
    process = hold_lock(tmp_path, 60)
    holder = rf"{re.escape(str(tmp_path))} is in use by process {process.pid}, stage train, since \d{{4}}-"
    with pytest.raises(locks.LockHeld, match=holder), locks.lock_workspace(tmp_path, "all"):
        pass
    process.kill()
    process.wait()
    with locks.lock_workspace(tmp_path, "all"):
        holder = json.loads((tmp_path / "data/.lock-holder.json").read_text())
        assert (holder["pid"], holder["stage"]) == (os.getpid(), "all")


def test_waiting_for_the_lock(tmp_path, capsys):
    process = hold_lock(tmp_path, 0.7)
    start = time.monotonic()
    with locks.lock_workspace(tmp_path, "all", wait=True):
        assert time.monotonic() - start > 0.3
    message = capsys.readouterr().out
    assert message.count("\n") == 1 and "stage train" in message and message.endswith("; waiting\n")
    process.wait()


class CountedWrites(io.RawIOBase):
    """A file that accepts at most three bytes at a time."""

    def __init__(self):
        self.content = b""

    def write(self, chunk):
        self.content += bytes(chunk[:3])
        return len(chunk[:3])


def test_a_write_that_accepts_only_a_part_is_continued():
    file = CountedWrites()
    store._write_all(file, np.arange(10, dtype=np.uint8))
    assert file.content == bytes(range(10))


def test_files_are_flushed_before_they_are_renamed_and_their_folders_afterwards(tmp_path, monkeypatch):
    """After a power failure, a name refers to a complete file. Flushes and renames are recorded in order."""
    events = []
    for module, function in ((os, "fsync"), (os, "rename"), (os, "replace")):
        original = getattr(module, function)

        def record(*arguments, function=function, original=original):
            inode = (os.fstat if function == "fsync" else os.stat)(arguments[0]).st_ino
            events.append((function, inode, str(arguments[-1])))
            original(*arguments)

        monkeypatch.setattr(module, function, record)
    folder = tmp_path / "X"
    stage(folder, b"new")
    publishing.publish(folder)
    inodes = {path: path.stat().st_ino for path in (tmp_path, folder, *folder.iterdir())}
    flushes = [inode for kind, inode, _ in events if kind == "fsync"]
    for path in folder.iterdir():
        named = next(
            index for index, (kind, inode, _) in enumerate(events) if kind == "replace" and inode == inodes[path]
        )
        assert events[named - 1][:2] == ("fsync", inodes[path])
    published = next(
        index for index, (kind, _, target) in enumerate(events) if kind == "rename" and target == str(folder)
    )
    last_replace = max(index for index, (kind, _, _) in enumerate(events) if kind == "replace")
    complete = next(index for index, (_, _, target) in enumerate(events) if target.endswith("/manifest.json"))
    assert events[complete + 1][:2] == ("fsync", inodes[folder])
    assert ("fsync", inodes[folder]) in [event[:2] for event in events[last_replace:published]]
    assert ("fsync", inodes[tmp_path]) in [event[:2] for event in events[published:]]
    assert len(flushes) == len(events) - len([kind for kind, _, _ in events if kind != "fsync"])


def test_a_file_replaced_by_one_of_equal_size_and_time_counts_as_changed(tmp_path):
    """By its inode: `mv` of an older copy, for example from a backup, keeps the time."""
    folder = tmp_path / "X"
    manifest = stage(folder, b"one")
    file = publishing.staging_dir(folder) / "result"
    times = file.stat()
    (tmp_path / "other").write_bytes(b"two")
    os.utime(tmp_path / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(tmp_path / "other", file)
    assert store.changed_outputs(publishing.staging_dir(folder), manifest, rehash=False) == {
        "result": "result was changed after it was written"
    }


def test_a_file_that_grew_counts_as_changed_whatever_its_time(tmp_path):
    folder = tmp_path / "X"
    manifest = stage(folder, b"one")
    file = publishing.staging_dir(folder) / "result"
    times = file.stat()
    with open(file, "ab") as stream:
        stream.write(b" more")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "result" in store.changed_outputs(publishing.staging_dir(folder), manifest, rehash=False)
    assert store.read_intact_manifest(publishing.staging_dir(folder), KEY) is None


def test_a_recorded_fingerprint_counts_only_for_the_hash_of_the_manifest(tmp_path):
    """context.json of another result, whose file this is, proves nothing about this manifest."""
    folder = tmp_path / "X"
    manifest = stage(folder, b"one")
    stage(folder, b"two")
    assert store.changed_outputs(publishing.staging_dir(folder), manifest, rehash=False) == {
        "result": "result was changed after it was written"
    }


def test_a_json_file_above_the_limit_is_not_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "x" * 28}))
    assert (tmp_path / "a.json").stat().st_size == 40 and store.read_json(tmp_path / "a.json", dict[str, str], 40)
    (tmp_path / "a.json").write_text(json.dumps({"text": "x" * 29}))
    assert store.read_json(tmp_path / "a.json", dict[str, str], 40) is None


def test_free_disk_space_must_include_a_margin(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    for free, is_enough in ((store.DISK_MARGIN + 1000, True), (store.DISK_MARGIN + 999, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        with contextlib.nullcontext() if is_enough else pytest.raises(store.DiskFull, match="toy writes up to"):
            store.require_disk_space(tmp_path, 1000, "toy")


def test_a_named_pipe_is_not_opened(tmp_path):
    """Reading it would wait for a writer, and take what was meant for another reader."""
    pipe = tmp_path / "a.json"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b'{"a": 1}',))
    writer.start()
    assert store.read_json(pipe, dict[str, int]) is None
    assert pipe.read_bytes() == b'{"a": 1}'
    writer.join()
