"""What may stand where a file should, and files made to do harm: bombs, and pickles that would run code."""

import gzip
import hashlib
import io
import os
import pickle
import shutil

import pytest
import torch

from pipeline import artifacts, digits
from tests import mutants
from tests.conftest import SHORT, forge, write_tables
from tests.interference import Runs
from tests.test_bad_input import IDX, LIMIT, TABLES

MEMORY = 2 << 20  # KB


class TestInItsPlace:
    """Folders, links, pipes, nothing, 10 GB of zeros where a file should be, in a process whose memory is measured."""

    @pytest.fixture(scope="class")
    @staticmethod
    def runs():
        # Root may read whatever it likes, unless it gives that up.
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
        if prefix and not shutil.which("setpriv"):
            pytest.skip("setpriv is not there, and root may read everything")
        made = Runs(prefix)
        yield made
        made.close()

    def look(self, run, named, limit=LIMIT):
        assert run.code == 2, run.err
        assert run.err.startswith("error: ") and run.err.count("\n") == 1 and named in run.err, run.err
        assert run.memory < MEMORY and run.seconds < limit

    @pytest.mark.parametrize("kind", mutants.in_its_place(), ids=lambda kind: kind[0])
    @pytest.mark.parametrize("name", ["train.csv", "sample_submission.csv"])
    def test_of_a_table(self, runs, tmp_path, name, kind):
        raw = write_tables(tmp_path / "data/raw", TABLES)
        mutants.put(raw / name, kind[1])
        self.look(runs("--stage", "all", *SHORT, "--workspace", tmp_path), name)

    @pytest.mark.parametrize("kind", mutants.in_its_place(), ids=lambda kind: kind[0])
    def test_of_a_zip_and_a_recipe(self, runs, tmp_path, kind):
        for name in ("digits.zip", "mine.toml"):
            mutants.put(tmp_path / name, kind[1])
        self.look(runs("--stage", "download", "--data", tmp_path / "digits.zip", "--workspace", tmp_path), "digits.zip")
        run = runs("--status", "--recipe", tmp_path / "mine.toml", "--workspace", tmp_path)
        if kind[0] == "empty":
            assert run.code == 0  # a recipe of nothing but defaults
        else:
            self.look(run, "mine.toml")

    @pytest.mark.parametrize("kind", mutants.in_its_place(), ids=lambda kind: kind[0])
    def test_of_an_idx_file(self, runs, tmp_path, kind):
        folder = write_tables(tmp_path / "mnist", IDX)
        mutants.put(folder / "train-images-idx3-ubyte", kind[1])
        self.look(runs("--stage", "download", "--data", folder, "--workspace", tmp_path), "train-images-idx3-ubyte")

    @pytest.mark.parametrize(
        "kind",
        [
            kind if kind[0] in ("folder", "pipe") else pytest.param(kind, marks=pytest.mark.slow)
            for kind in mutants.in_its_place()
        ],
        ids=lambda kind: kind[0],
    )
    def test_of_a_record_or_a_result(self, runs, finished, kind):
        words = (*SHORT, "--workspace", finished, "--device", "cpu")
        for name in ("train/manifest.json", "evaluate/context.json", "train/weights.safetensors"):
            path = finished / "data/runs/quick" / name
            good = path.read_bytes()
            if kind[0] == "sparse" and name.endswith("safetensors"):
                continue  # it is hashed: half a minute
            mutants.put(path, kind[1])
            status = runs("--status", *words)
            assert status.code == 0 and status.seconds < LIMIT and status.memory < MEMORY, status.err
            mended = runs("--stage", "all", *words)
            assert mended.code == 0, f"{name}: {mended.err}"
            if name.endswith("context.json"):
                mutants.put(path, good)  # the result counts without it, so that nothing was to be mended
            assert path.read_bytes() == good

    @pytest.mark.parametrize("name", ["train.csv", "digits.zip", "mine.toml", "data/raw", "data"])
    def test_no_permission(self, runs, tmp_path, name):
        write_tables(tmp_path / "data/raw", TABLES)
        (tmp_path / "digits.zip").write_bytes(mutants.zipped(TABLES))
        (tmp_path / "mine.toml").write_text("")
        path = tmp_path / "data/raw/train.csv" if name == "train.csv" else tmp_path / name
        path.chmod(0)
        try:
            more = {"digits.zip": ("--data", path), "mine.toml": ("--recipe", path)}.get(name, ())
            run = runs("--stage", "prepare" if name == "train.csv" else "download", *more, "--workspace", tmp_path)
            if name == "train.csv":
                run = runs("--stage", "download", "--workspace", tmp_path)
            assert run.code in ((1,) if name == "data" else (2,)), run.err
            assert run.err.count("\n") == 1 and path.name in run.err and "ermission denied" in run.err
        finally:
            path.chmod(0o700)


def test_a_bomb_behind_valid_rows_is_bounded(tmp_path):
    """In gzip nobody can tell the size before: reading stops at what no table has, whatever follows."""
    row = (b"5" + b",0" * 784 + b"\n") * 1000
    lines = TABLES["train.csv"].split(b"\n")
    with gzip.open(tmp_path / "train.csv.gz", "wb", 1) as file:
        file.write(lines[0] + b"\n")
        for _ in range(400):
            file.write(row)
    with pytest.raises(digits.DataError, match="more than any such table has"):
        digits.read_train(digits.Table(tmp_path / "train.csv.gz"))


def test_no_pickle_is_run(command, finished, monkeypatch, tmp_path):
    """A checkpoint and weights that would run code if anything unpickled them, the right digest before it."""

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/run",))

    content = io.BytesIO()
    torch.save({"made_for": Evil()}, content)
    content = content.getvalue()
    words = (*SHORT, "--workspace", finished, "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.fit", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("--stage", "train", *words, "--force").code == 130
    (finished / "data/runs/quick/train.partial/checkpoint.pt").write_bytes(hashlib.sha256(content).digest() + content)
    run = command("--stage", "train", *words)
    assert run.code == 2 and "checkpoint.pt" in run.err
    for stage, path in (
        ("predict", finished / "data/runs/quick/train/weights.safetensors"),
        ("train", finished / next((finished / "data/augmented").glob("*/images.npy"))),
    ):
        pickled = pickle.dumps(Evil())
        path.write_bytes(pickled)
        forged = {path.name: hashlib.sha256(pickled).hexdigest()}  # whoever plants it mends the record as well
        forge(path.parent, lambda manifest, forged=forged: manifest["outputs"].update(forged))
        (path.parent / artifacts.CONTEXT).unlink()
        run = command("--stage", "evaluate" if stage == "predict" else "train", *words, "--force")
        assert run.code in (1, 2) and run.err.count("\n") == 1, run.err
    assert not (tmp_path / "run").exists()
