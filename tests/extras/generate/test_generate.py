"""`--stage generate`: what it writes, how it resumes, when it is stale, and which recipes it is for."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.extras import EXTRAS
from pipeline.extras.generate import report, training
from pipeline.extras.generate.entry import CAPTIONS
from pipeline.training import task
from tests.conftest import write_tables

generated_rows = pytest.importorskip("tests.benchmarks.generated_rows")

DRAWS = True
SETTINGS = ("gan.epochs=3", "gan.generator_width=4", "gan.discriminator_width=4", "generate.samples=200")
OPTIONS = ("--recipe", "gan/conditional", *(item for name in SETTINGS for item in ("--set", name)), "--device", "cpu")

COMMAND = (sys.executable, "run_pipeline.py")

FIT_ALL = ("--stage", "generate", "--set", "train.fit_all=true", "--set", "train.checkpoint_selection=last")


@pytest.fixture(scope="module")
def _generated(tables, tmp_path_factory):
    """A workspace in which the stage has run; tests leave it as it is."""
    import run_pipeline

    workspace = tmp_path_factory.mktemp("generated")
    write_tables(workspace / "data/raw", tables)
    assert run_pipeline.main(["--stage", "generate", *OPTIONS, "--workspace", str(workspace)]) == 0
    return workspace


@pytest.fixture
def generated(_generated, tmp_path):
    return shutil.copytree(_generated, tmp_path / "generated")


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr(report, "draw", lambda *arguments: dict.fromkeys(CAPTIONS, b""))


def test_files(_generated):
    folder = _generated / "data/generated/gan/conditional"
    assert all((folder / name).stat().st_size for name in EXTRAS["generate"].outputs)
    images, labels = np.load(folder / "samples.npy"), np.load(folder / "labels.npy")
    assert images.shape == (200, 28, 28) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [20] * 10
    film = Image.open(folder / "film.gif")
    assert film.n_frames == 3 and film.size == (604, 332)
    numbers = json.loads((folder / "generate.json").read_text())
    assert numbers["compared"] == 100  # the validation rows
    assert 0 <= numbers["generated"]["recognized"] <= 1 < numbers["generated"]["frechet_distance"]
    html = (folder / "generate.html").read_text()
    assert html.count("<img") == len(CAPTIONS) and "100 digits are compared" in html
    assert not re.search(r'(src|href)="(?!data:)', html)


def test_the_film_shows_the_images_of_each_epoch(_generated):
    (network,) = (_generated / "data/networks").glob("gan-dense-*[0-9a-f]")
    frames = np.load(network / "frames.npy")
    assert frames.shape == (3, 5, 10, 28, 28)
    film = Image.open(_generated / "data/generated/gan/conditional/film.gif")
    for epoch in (0, 2):
        film.seek(epoch)
        pixels = np.asarray(film.convert("L"))
        for row, column in ((0, 0), (4, 9), (2, 7)):
            top, left = 28 + 60 * row, 4 + 60 * column
            drawn = 255 - pixels[top : top + 56 : 2, left : left + 56 : 2].astype(int)
            assert np.abs(drawn - frames[epoch, row, column]).max() <= 8  # 32 gray levels


@pytest.mark.usefixtures("without_pictures")
def test_an_interrupted_training_continues_with_the_same_result(command, generated, monkeypatch):
    folder = generated / "data/generated/gan/conditional"
    (network,) = (generated / "data/networks").glob("gan-dense-*[0-9a-f]")
    expected = {path: path.read_bytes() for path in (folder / "samples.npy", network / "weights.safetensors")}
    shutil.rmtree(folder)
    shutil.rmtree(network)
    train_epoch = training.GanTrainer.train_epoch

    def stop(trainer, progress):
        if trainer.epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(trainer, progress)

    monkeypatch.setattr(task, "MAX_SAVE_INTERVAL", 0)
    monkeypatch.setattr(training.GanTrainer, "train_epoch", stop)
    options = (*OPTIONS, "--workspace", generated)
    assert command("--stage", "generate", *options).code == 130
    assert "an interrupted run can continue" in command("--status", *options).out
    assert command("--clean", "--workspace", generated).out == "nothing is unused\n"
    monkeypatch.setattr(training.GanTrainer, "train_epoch", train_epoch)
    run = command("--stage", "generate", *options)
    assert run.code == 0 and "continuing after epoch 2" in run.out
    assert {path: path.read_bytes() for path in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_a_killed_run_continues_with_the_same_bytes(tables, tmp_path, architecture):
    options = (*OPTIONS, "--set", "gan.epochs=30", "--set", f"gan.architecture={architecture}")
    workspaces = [tmp_path / name for name in ("undisturbed", "killed")]
    for workspace in workspaces:
        write_tables(workspace / "data/raw", tables)
    generate = [[*COMMAND, "--stage", "generate", *options, "--workspace", workspace] for workspace in workspaces]
    assert subprocess.call(generate[0]) == 0
    for n_epochs in (2, 10, 20):
        process = subprocess.Popen(generate[1])
        while process.poll() is None and _trained_epochs(workspaces[1]) < n_epochs:
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -9
    assert subprocess.call(generate[1]) == 0
    names = [f"data/generated/gan/conditional/{name}" for name in EXTRAS["generate"].outputs]
    names += [
        str(path.relative_to(workspaces[0])) for path in workspaces[0].glob("data/networks/*/weights.safetensors")
    ]
    for name in names:
        assert (workspaces[1] / name).read_bytes() == (workspaces[0] / name).read_bytes(), name


def _trained_epochs(workspace):
    """The number of epochs in the log of the GAN's unfinished training."""
    logs = list(workspace.glob("data/networks/gan-*.partial/log.txt"))
    return logs[0].read_text().count("generator_loss") if logs else 0


@pytest.mark.usefixtures("without_pictures")
def test_more_samples_need_no_training(command, generated, monkeypatch):
    before = np.load(generated / "data/generated/gan/conditional/samples.npy")
    monkeypatch.setattr(training, "fit_gan", None)
    options = (*OPTIONS, "--set", "generate.samples=300", "--workspace", generated)
    assert "generate.samples 200 -> 300" in command("--status", *options).out
    assert command("--stage", "generate", *options).code == 0
    after = np.load(generated / "data/generated/gan/conditional/samples.npy")
    assert len(after) == 300 and np.abs(after[:200].astype(int) - before).max() <= 1


def test_the_benchmark_adds_generated_rows(_generated, capsys):
    options = ("--recipe", "gan/conditional", "--rows", "50", "--seeds", "2", "--set", "train.epochs=1")
    result = generated_rows.main(["--workspace", str(_generated), *options])
    assert (result["training_rows"], result["generated_rows"], result["validation_rows"]) == (300, 50, 100)
    assert result["difference"] == pytest.approx(result["with"]["mean"] - result["without"]["mean"])
    assert result["interval_95"][0] <= result["difference"] <= result["interval_95"][1]
    assert capsys.readouterr().out.startswith("seed 0, without: 0.")


def test_status_shows_the_stages_of_a_gan_only(command, _generated):
    lines = command("--status", "--workspace", _generated).lines()
    assert lines[0] == "recipe gan/conditional"
    assert {line.split()[0] for line in lines[1:]} == {"download", "prepare", "augment", "generate"}
    fresh = command("--status", *OPTIONS, "--workspace", _generated).lines()
    assert fresh[-1].split() == ["generate", "fresh"]


def test_clean_keeps_networks_that_are_used(command, generated):
    assert command("--clean", "--workspace", generated).out == "nothing is unused\n"
    shutil.rmtree(generated / "data/generated")
    out = command("--clean", "--workspace", generated).out
    assert "gan-dense-" in out and "small_cnn-" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stage", "all", "--recipe", "gan/better"), "run --stage generate --recipe gan/better"),
        (("--stage", "submit", "--recipe", "gan/better"), "run --stage generate --recipe gan/better"),
        (("--stage", "all", "--recipe", "quick,gan/better"), "run --stage generate --recipe gan/better"),
        (("--stage", "compare", "--recipe", "gan"), "run --stage generate --recipe gan/conditional"),
        (("--stage", "generate", "--recipe", "quick"), "quick has no GAN"),
        (("--stage", "generate", "--recipe", "gan/conditional,gan/better"), "one recipe at a time"),
        (("--stage", "generate", "--recipe", "gan/better", "--set", "split.folds=3"), "split.folds"),
        ((*FIT_ALL, "--recipe", "gan/better"), "train.fit_all"),
    ],
)
def test_what_does_not_go_together_is_refused(command, tmp_path, options, message):
    run = command(*options, "--workspace", tmp_path)
    assert run.code == 2 and message in run.err and run.err.count("\n") == 1
