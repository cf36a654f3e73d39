"""`--stage inspect`: what it writes for a recorded run, and what it says about networks, rows and missing inputs."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

import run_pipeline
from pipeline.cli import cleanup
from pipeline.extras import EXTRAS
from pipeline.extras.inspect import entry
from pipeline.extras.inspect import report as network_report
from pipeline.metrics import embedding
from pipeline.nn.inference import as_input
from pipeline.nn.networks import load_networks
from tests.conftest import SHORT

DRAWS = True
OPTIONS = (*SHORT, "--device", "cpu")
FEW_ROWS = ("--set", "inspect.rows=60", "--set", "inspect.image=17")


@pytest.fixture(scope="module")
def inspected(_finished, tmp_path_factory):
    """The finished run, recorded and inspected; tests leave it as it is."""
    workspace = shutil.copytree(_finished, tmp_path_factory.mktemp("inspected") / "workspace")
    options = [*OPTIONS, *FEW_ROWS, "--workspace", str(workspace)]
    for stage in ("train", "evaluate", "inspect"):
        record = ["--set", "train.record=true"] if stage == "train" else []
        assert run_pipeline.main(["--stage", stage, *options, *record]) == 0
    return workspace


def held_out_rows(workspace):
    (split,) = (workspace / "data/prepared/splits").iterdir()
    return np.load(split / "validation_rows.npy")


def test_the_stage_writes_pictures_and_numbers(inspected):
    folder, stage = inspected / "data/runs/quick/inspect", EXTRAS["inspect"]
    for name in (*stage.outputs, *stage.optional_outputs):
        assert (folder / name).exists(), name
        if name.endswith(".png"):
            height, width, _ = imread(folder / name).shape
            assert 180 < height < 2000 and 600 < width < 1500, name
    numbers = json.loads((folder / "inspect.json").read_text())
    rows, arrays = held_out_rows(inspected), inspected / "data/prepared/arrays"
    images, labels = (np.load(arrays / f"train_{name}.npy") for name in ("images", "labels"))
    (loaded,) = load_networks(inspected / "data/runs/quick/train/weights.safetensors", "cpu")
    network = loaded.network.eval()
    bf16 = loaded.metadata["precision"] == "bf16"
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
        predictions = network(as_input(torch.from_numpy(images[rows]))).argmax(1).numpy()
    assert numbers["accuracy"] == np.mean(predictions == labels[rows]) and numbers["rows"] == len(rows)
    for row in numbers["cases"]["wrong"]:
        assert predictions[rows.tolist().index(row - 1)] != labels[row - 1]
    assert numbers["image"]["row"] == 17 and numbers["image"]["label"] == labels[16]
    probabilities = network(as_input(torch.from_numpy(images[16:17]))).softmax(1)[0].detach()
    assert np.allclose(numbers["image"]["probabilities"], probabilities, atol=1e-5)
    assert numbers["tsne"]["rows"] == 60 and numbers["tsne"]["raw pixels"]["neighbour_accuracy"] > 0.6  # chance: 0.1
    with Image.open(folder / "weights_moving.gif") as animation:
        assert animation.n_frames == 3 and numbers["recorded_epochs"] == [0, 1, 2]


def test_the_untrained_network_is_the_one_that_the_training_started_with(inspected):
    """The first row of the record is from the training; the stage makes the network again from its seed."""
    record = json.loads((inspected / "data/runs/quick/train/record.json").read_text())["rows"][0]["layers"]
    numbers = json.loads((inspected / "data/runs/quick/inspect/inspect.json").read_text())
    for layer, (description, weights) in zip(record.values(), numbers["weights"].items(), strict=True):
        width = 2 * layer["limit"] / len(layer["counts"])
        centres = (np.arange(len(layer["counts"])) + 0.5) * width - layer["limit"]
        std = np.sqrt(np.average(centres**2, weights=layer["counts"]))
        assert weights["std_untrained"] == pytest.approx(std, rel=0.01), description


def test_the_report_contains_every_picture_and_loads_nothing(inspected):
    html = (inspected / "data/runs/quick/inspect/report.html").read_text()
    groups = [entry.TRAINING, entry.ERRORS, entry.CALIBRATION, entry.NETWORK, entry.RECORDED]
    assert html.count("<img") == sum(map(len, groups)) and html.count("data:image/gif;base64,") == 1
    assert (
        re.findall(r'(?:src|href)="(?!data:)([^"]*)', html) == ["../../../explore/explore.html"]
        and "<script" not in html
        and "url(" not in html
    )
    assert "<td>train.epochs</td><td>2</td>" in html


@pytest.fixture
def quick_study(monkeypatch):
    """No t-SNE and empty pictures, which take most of the time."""
    monkeypatch.setattr(embedding, "tsne", lambda points, seed, on_progress: points[:, :2])
    monkeypatch.setattr(network_report, "draw", lambda study: dict.fromkeys(entry.NETWORK, b""))


def inspect(command, workspace, *options):
    return command("--stage", "inspect", *OPTIONS, *FEW_ROWS, *options, "--workspace", workspace)


def test_without_a_record_it_says_how_to_make_one(command, finished, quick_study):
    run = inspect(command, finished)
    assert run.code == 0 and "were not recorded" in run.out
    assert f"--workspace {shlex.quote(str(finished))}" in run.out and "--recipe quick" in run.out  # the command
    folder = finished / "data/runs/quick/inspect"
    html = (folder / "report.html").read_text()
    assert "train.record=true" in html
    status = ("--status", *OPTIONS, *FEW_ROWS, "--workspace", finished)
    assert "inspect   fresh" in command(*status).out
    assert folder.resolve() not in cleanup.find_unused(finished, [])


@pytest.mark.parametrize(
    ("setting", "message"), [("inspect.image=401", "400 rows"), ("inspect.network=2", "has 1 network")]
)
def test_rows_and_networks_that_do_not_exist_are_refused(command, finished, setting, message):
    run = command("--stage", "inspect", *OPTIONS, "--set", setting, "--workspace", finished)
    assert run.code == 2 and message in run.err and setting.partition("=")[0] in run.err


@pytest.mark.slow
def test_a_network_of_an_ensemble_is_inspected_on_the_rows_that_it_did_not_see(command, finished, quick_study):
    folds = ("--set", "split.folds=2", "--set", "train.epochs=1")
    assert command("--stage", "all", *OPTIONS, *folds, "--workspace", finished).code == 0
    run = inspect(command, finished, *folds, "--set", "inspect.network=2")
    assert run.code == 0 and "Network 2 of 2" in run.out and "fold 1 held out" in run.out
    assert "not for ensembles" in run.out and "alone and without shifted copies" in run.out
    numbers = json.loads((finished / "data/runs/quick/inspect/inspect.json").read_text())
    (split,) = (path.parent for path in (finished / "data/prepared/splits").glob("*/folds.npy"))
    rows = np.load(split / "validation_rows.npy")[np.load(split / "folds.npy") == 1]
    assert numbers["rows"] == len(rows)
    assert {row - 1 for cases in numbers["cases"].values() for row in cases} <= set(rows.tolist())


def test_if_no_row_was_held_out_training_rows_are_inspected(command, finished, quick_study):
    options = ("--set", "train.fit_all=true", "--set", "train.epochs=1")
    assert command("--stage", "all", *OPTIONS, *options, "--workspace", finished).code == 0
    run = inspect(command, finished, *options)
    assert run.code == 0 and "400 training rows (none was held out)" in run.out
    folder = finished / "data/runs/quick/inspect"
    assert not (folder / "reliability.png").exists()
    assert "no rows are left to evaluate on" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_the_same_run_gives_the_same_files(command, inspected):
    folder = inspected / "data/runs/quick/inspect"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}
    assert inspect(command, inspected).code == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}
