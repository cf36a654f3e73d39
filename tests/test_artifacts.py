"""artifacts: whole files or the old ones, publishing and its restoring, manifests, the lock between processes."""

import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import artifacts

KEY = {"stage": "toy", "version": 1, "settings": {}, "inputs": {}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_and_leaves_nothing_beside(tmp_path):
    file = tmp_path / "file"
    artifacts.write(file, b"old")
    artifacts.write(file, [b"ne", memoryview(b"w"), np.arange(3, dtype=np.uint8)])
    assert file.read_bytes() == b"new\0\1\2" and names(tmp_path) == ["file"]
    artifacts.write(file, b"!", append=True)
    assert file.read_bytes() == b"new\0\1\2!"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    artifacts.write(file, b"old")

    def pieces():
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        artifacts.write(file, pieces())
    assert error.value.filename == str(file)
    assert file.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_arrays_in_pieces_are_numpys_own_files(tmp_path):
    array = np.arange(60, dtype=np.int64).reshape(5, 3, 4)
    artifacts.write_array(tmp_path / "a.npy", array.shape, array.dtype, [array[:2], array[2:]])
    whole = io.BytesIO()
    np.save(whole, array)
    assert (tmp_path / "a.npy").read_bytes() == whole.getvalue()
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)
    for pieces in ([array[:2]], [array.astype(np.int32)], [array[:, :2]]):
        with pytest.raises(ValueError, match=r"b\.npy"):
            artifacts.write_array(tmp_path / "b.npy", array.shape, array.dtype, pieces)
    assert names(tmp_path) == ["a.npy"]


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert artifacts.sha256(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def make(place, content):
    partial, _ = artifacts.beside(place)
    partial.mkdir(parents=True)
    artifacts.write(partial / "result", content)
    artifacts.write_manifest(partial, KEY, ["result"], {"number": 1}, {"device": "cpu"})


def test_publish_replaces(tmp_path):
    place = tmp_path / "X"
    for content in (b"one", b"two"):
        make(place, content)
        artifacts.publish(place)
        assert (place / "result").read_bytes() == content and names(tmp_path) == ["X"]
    manifest, why = artifacts.read_manifest(place)
    assert why == "" and manifest["numbers"] == {"number": 1}
    assert manifest["outputs"] == {"result": hashlib.sha256(b"two").hexdigest()}
    assert artifacts.changed_outputs(place, manifest) == {}


@pytest.mark.parametrize("stop_before", [1, 2])
def test_publishing_cut_off_between_its_renames_is_restored(tmp_path, monkeypatch, stop_before):
    place = tmp_path / "X"
    make(place, b"one")
    artifacts.publish(place)
    make(place, b"two")
    renames, rename = [], os.rename

    def stopping(*arguments):
        renames.append(arguments)
        if len(renames) == stop_before:
            raise KeyboardInterrupt
        rename(*arguments)

    monkeypatch.setattr(os, "rename", stopping)
    with pytest.raises(KeyboardInterrupt):
        artifacts.publish(place)
    monkeypatch.undo()
    assert (artifacts.standing(place) / "result").read_bytes() == b"one"
    artifacts.restore(place)
    assert (place / "result").read_bytes() == b"one" and names(tmp_path) == ["X", "X.partial"]


def test_changed_outputs_are_named(tmp_path):
    place = tmp_path / "X"
    make(place, b"one")
    artifacts.publish(place)
    manifest, _ = artifacts.read_manifest(place)
    (place / "result").write_bytes(b"oNe")
    assert artifacts.changed_outputs(place, manifest) == {"result": "result was changed after it was made"}
    (place / "result").unlink()
    assert artifacts.changed_outputs(place, manifest) == {"result": "result was deleted"}
    (place / "result").write_bytes(b"one")  # other inode and time, the same content
    assert artifacts.changed_outputs(place, manifest) == {}
    (place / "context.json").write_bytes(b"garbage")
    assert artifacts.changed_outputs(place, manifest) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"[]", b"{}", b'{"stage": 1}', b"\xff\xfe", b"[" * 100_000,
     json.dumps({**KEY, "outputs": {"result": 5}, "numbers": {}}).encode()],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_a_garbage_manifest_does_not_count(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    assert artifacts.read_manifest(tmp_path) == (None, "manifest.json is damaged")


def test_no_manifest_no_result(tmp_path):
    assert artifacts.read_manifest(tmp_path) == (None, "")


def hold(path, seconds):
    """A process that holds the lock and says so."""
    code = f"""
        import sys, time
        from pathlib import Path
        from pipeline.artifacts import Lock
        lock = Lock(Path({str(path)!r}))
        lock.acquire({{"stage": "train", "since": "noon"}})
        print("held", flush=True)
        time.sleep({seconds})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_says_who_holds_it_and_goes_with_its_holder(tmp_path):
    path = tmp_path / "data" / ".lock"
    process = hold(path, 60)
    lock = artifacts.Lock(path)
    with pytest.raises(artifacts.Held, match=rf"process {process.pid}, stage train, since noon"):
        lock.acquire({"stage": "all"})
    process.kill()
    process.wait()
    lock.acquire({"stage": "all"})
    lock.release()


def test_waiting_for_the_lock(tmp_path):
    path = tmp_path / "data" / ".lock"
    process = hold(path, 1)
    told = []
    began = time.monotonic()
    lock = artifacts.Lock(path)
    lock.acquire({"stage": "all"}, wait=True, on_wait=told.append)
    assert time.monotonic() - began > 0.4
    assert len(told) == 1 and "stage train" in told[0]
    lock.release()
    process.wait()
