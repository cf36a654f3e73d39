"""store: atomic writes, publishing and its recovery, manifests, the lock between processes."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline import store
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
def test_read_json_returns_none_for_anything_but_an_object(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert store.read_json(tmp_path / "file") is None
    assert store.read_json(tmp_path / "missing") is None and store.read_json(tmp_path) is None


def stage(folder, content):
    """Write a result that is ready to be published."""
    staging = store.create_staging_dir(folder)
    store.write(staging / "result", content)
    store.write_manifest(staging, KEY, ["result"], {"number": 1}, {"device": "cpu"})


def test_publish_replaces_the_old_result(tmp_path):
    folder = tmp_path / "X"
    for content in (b"one", b"two"):
        stage(folder, content)
        store.publish(folder)
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
    store.publish(folder)
    stage(folder, b"two")
    renames, rename = [], os.rename

    def interrupted_rename(*arguments):
        renames.append(arguments)
        if len(renames) == stop_before:
            raise KeyboardInterrupt
        rename(*arguments)

    monkeypatch.setattr(os, "rename", interrupted_rename)
    with pytest.raises(KeyboardInterrupt):
        store.publish(folder)
    monkeypatch.undo()
    assert (store.published_dir(folder) / "result").read_bytes() == b"one"
    store.restore(folder)
    assert (folder / "result").read_bytes() == b"one" and names(tmp_path) == ["X", "X.partial"]


def test_changed_outputs_are_named(tmp_path):
    folder = tmp_path / "X"
    stage(folder, b"one")
    store.publish(folder)
    manifest, _ = store.read_manifest(folder)
    (folder / "result").write_bytes(b"oNe")
    assert store.changed_outputs(folder, manifest) == {"result": "result was changed after it was written"}
    (folder / "result").unlink()
    assert store.changed_outputs(folder, manifest) == {"result": "result was deleted"}
    (folder / "result").write_bytes(b"one")  # a different inode and time, the same content
    assert store.changed_outputs(folder, manifest) == {}
    (folder / "context.json").write_bytes(b"garbage")
    assert store.changed_outputs(folder, manifest) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"[]", b"{}", b'{"stage": 1}', b"\xff\xfe", b"[" * 100_000,
     json.dumps({**KEY, "outputs": {"result": 5}, "numbers": {}}).encode()],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_a_damaged_manifest_is_not_valid(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    assert store.read_manifest(tmp_path) == (None, "manifest.json is damaged")


def test_a_folder_without_a_manifest(tmp_path):
    assert store.read_manifest(tmp_path) == (None, "")


HOLDER = """
import sys, time
from pathlib import Path
from pipeline.store import lock_workspace, record_lock_holder
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
    holder = rf"{tmp_path} is in use by process {process.pid}, stage train, since {time.strftime('%Y')}-"
    with pytest.raises(store.LockHeld, match=holder), store.lock_workspace(tmp_path, "all"):
        pass
    process.kill()
    process.wait()
    with store.lock_workspace(tmp_path, "all"):
        holder = json.loads((tmp_path / "data/.lock-holder.json").read_text())
        assert (holder["pid"], holder["stage"]) == (os.getpid(), "all")


def test_waiting_for_the_lock(tmp_path, capsys):
    process = hold_lock(tmp_path, 0.7)
    start = time.monotonic()
    with store.lock_workspace(tmp_path, "all", wait=True):
        assert time.monotonic() - start > 0.3
    message = capsys.readouterr().out
    assert message.count("\n") == 1 and "stage train" in message and message.endswith("; waiting\n")
    process.wait()
