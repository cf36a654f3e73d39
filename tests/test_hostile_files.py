"""Obstacles in the place of files (folders, pipes, links, 10 GB of zeros), and files that are meant to do harm."""

import gzip
import hashlib
import io
import os
import pickle
import shutil

import pytest
import torch

from pipeline.dataset import tables
from pipeline.dataset.files import TableFile
from pipeline.recipes import config
from pipeline.workflow import store
from tests import mutants
from tests.conftest import TINY, forge, stop_after_epoch, write_tables
from tests.interference import Runs
from tests.test_bad_input import IDX_FILES, MAX_SECONDS, TABLES

MAX_MEMORY = 2 << 20  # KB

each_obstacle = pytest.mark.parametrize("obstacle", mutants.obstacles(), ids=lambda obstacle: obstacle.__name__)


class TestObstacles:
    """Runs in a process whose memory is measured."""

    @pytest.fixture(scope="class")
    @staticmethod
    def runs():
        # root can read every file, unless it drops the capabilities.
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
        if prefix and not shutil.which("setpriv"):
            pytest.skip("setpriv is missing, and root can read every file")
        runs = Runs(prefix)
        yield runs
        runs.close()

    def require_error(self, run, name):
        assert run.code == 2, run.err
        assert run.err.startswith("error: ") and run.err.count("\n") == 1 and name in run.err, run.err
        assert run.memory < MAX_MEMORY and run.seconds < MAX_SECONDS

    @each_obstacle
    @pytest.mark.parametrize("name", ["train.csv", "sample_submission.csv"])
    def test_table(self, runs, tmp_path, name, obstacle):
        mutants.replace(write_tables(tmp_path / "data/raw", TABLES) / name, obstacle)
        self.require_error(runs("--stage", "all", *TINY, "--workspace", tmp_path), name)

    @each_obstacle
    def test_zip_and_recipe(self, runs, tmp_path, obstacle):
        for name in ("digits.zip", "mine.toml"):
            mutants.replace(tmp_path / name, obstacle)
        run = runs("--stage", "download", "--data", tmp_path / "digits.zip", "--workspace", tmp_path)
        self.require_error(run, "digits.zip")
        run = runs("--status", "--recipe", tmp_path / "mine.toml", "--workspace", tmp_path)
        if obstacle.__name__ == "empty":
            assert run.code == 0  # a recipe with all defaults
        else:
            self.require_error(run, "mine.toml")

    @each_obstacle
    def test_idx_file(self, runs, tmp_path, obstacle):
        folder = write_tables(tmp_path / "mnist", IDX_FILES)
        mutants.replace(folder / "train-images-idx3-ubyte", obstacle)
        run = runs("--stage", "download", "--data", folder, "--workspace", tmp_path)
        self.require_error(run, "train-images-idx3-ubyte")

    @pytest.mark.parametrize(
        "obstacle",
        [
            pytest.param(obstacle, id=obstacle.__name__, marks=[pytest.mark.slow] * (obstacle.__name__ != "pipe"))
            for obstacle in mutants.obstacles()
        ],
    )
    def test_record_or_result(self, runs, tiny, obstacle):
        options = (*TINY, "--workspace", tiny, "--device", "cpu")
        for name in ("train/manifest.json", "evaluate/context.json", "train/weights.safetensors"):
            path = tiny / "data/runs/quick" / name
            valid = path.read_bytes()
            if obstacle.__name__ == "sparse" and name.endswith("safetensors"):
                continue  # hashing it takes half a minute
            mutants.replace(path, obstacle)
            status = runs("--status", *options)
            assert status.code == 0 and status.seconds < MAX_SECONDS and status.memory < MAX_MEMORY, status.err
            repair = runs("--stage", "all", *options)
            assert repair.code == 0, f"{name}: {repair.err}"
            if name.endswith("context.json"):
                mutants.replace(path, lambda path, valid=valid: path.write_bytes(valid))  # not needed, so not repaired
            assert path.read_bytes() == valid

    @pytest.mark.parametrize("name", ["train.csv", "digits.zip", "mine.toml", "data/raw", "data"])
    def test_missing_permission(self, runs, tmp_path, name):
        write_tables(tmp_path / ("other" if name == "digits.zip" else "data/raw"), TABLES)
        (tmp_path / "digits.zip").write_bytes(mutants.make_zip(TABLES))
        (tmp_path / "mine.toml").write_text("")
        path = tmp_path / "data/raw/train.csv" if name == "train.csv" else tmp_path / name
        path.chmod(0)
        try:
            options = {"digits.zip": ("--data", path), "mine.toml": ("--recipe", path)}.get(name, ())
            run = runs("--stage", "download", *options, "--workspace", tmp_path)
            assert run.code == 2, run.err
            assert run.err.count("\n") == 1 and path.name in run.err and "ermission denied" in run.err
        finally:
            path.chmod(0o700)


def test_every_stage_runs_in_a_folder_whose_name_is_not_utf8(_tiny, command, tmp_path):
    workspace = tmp_path / os.fsdecode(b"-caf\xe9: \"'\n$(x)\x1b[31m")
    try:
        shutil.copytree(_tiny, workspace)
    except (OSError, shutil.Error):
        pytest.skip("the file system accepts only UTF-8")
    recipe = workspace / "mine.toml"
    recipe.write_text((config.RECIPES / "quick.toml").read_text())
    options = (*TINY[2:], f"--workspace={workspace}", "--device", "cpu", "--recipe", recipe)
    for arguments in (["--stage", "all"], ["--stage", "predict"], ["--stage", "notebook"], ["--status"]):
        run = command(*arguments, *options)
        assert run.code == 0, run.err
        assert all(line.isprintable() for line in run.lines())
    assert "stale" not in run.out and "missing" not in run.out
    run = command("--stage", "train", *options, "--tracker", "tensorboard")
    assert run.code == 2 and "tensorboard" in run.err and run.err.count("\n") == 1


@pytest.mark.slow
def test_gzip_bomb_of_valid_rows(tmp_path):
    """A gzip file does not tell its size: reading ends at the limit of rows."""
    row = (b"5" + b",0" * 784 + b"\n") * 1000
    with gzip.open(tmp_path / "train.csv.gz", "wb", 1) as file:
        file.write(TABLES["train.csv"].split(b"\n")[0] + b"\n")
        for _ in range(400):
            file.write(row)
    with pytest.raises(tables.DataError, match="more than any such table has"):
        tables.read_train_table(TableFile(tmp_path / "train.csv.gz"))


def test_no_pickle_is_executed(command, tiny, monkeypatch, tmp_path):
    """A checkpoint, weights and arrays that would run code if they were unpickled, with correct checksums."""

    class Malicious:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    buffer = io.BytesIO()
    torch.save({"key": Malicious()}, buffer)
    options = (*TINY, "--workspace", tiny, "--device", "cpu")
    with monkeypatch.context() as patch:
        stop_after_epoch(patch)
        assert command("--stage", "train", *options, "--force").code == 130
    (checkpoint,) = tiny.glob("data/networks/*.partial/checkpoint.pt")
    checkpoint.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    shutil.rmtree(checkpoint.parent.with_suffix(""))  # the finished network, which would be reused
    run = command("--stage", "train", *options)
    assert run.code == 2 and "checkpoint.pt" in run.err

    content = pickle.dumps(Malicious())
    for stage, path in (
        ("evaluate", tiny / "data/runs/quick/train/weights.safetensors"),
        ("train", next(tiny.glob("data/augmented/*/images.npy"))),
    ):
        path.write_bytes(content)
        outputs = {path.name: hashlib.sha256(content).hexdigest()}
        forge(path.parent, lambda manifest, outputs=outputs: manifest["outputs"].update(outputs))
        (path.parent / store.CONTEXT).unlink()
        run = command("--stage", stage, *options, "--force")
        assert run.code in (1, 2) and run.err.count("\n") == 1, run.err
    assert not (tmp_path / "executed").exists()
