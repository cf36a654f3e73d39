"""evaluate and predict: their files against plain computations, order, test-time shifts, the receipt."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch

import run_pipeline
from pipeline import artifacts, inference, metrics, recipe
from pipeline.models import MODELS, load_weights, save_weights
from pipeline.settings import Model, Predict
from tests.conftest import SHORT, digits_28, forge

IMAGES, LABELS = digits_28(500)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MODELS["small_cnn"](Model("small_cnn", 0.2))


def plain_probabilities(folder, images, shifts=((0, 0),)):
    """One image at a time, in float32, with numpy's own shifting."""
    ((network, _),) = load_weights(folder / "weights.safetensors", "cpu")
    network.eval()
    rows = []
    with torch.no_grad():
        for image in images:
            total = 0
            for right, down in shifts:
                moved = np.zeros_like(image)
                for y in range(28):
                    for x in range(28):
                        if 0 <= y - down < 28 and 0 <= x - right < 28:
                            moved[y, x] = image[y - down, x - right]
                total = total + network(torch.from_numpy(moved)[None, None].float() / 255).softmax(1)[0]
            rows.append((total / len(shifts)).numpy())
    return np.array(rows)


def test_evaluate_by_hand(command, finished):
    place = (*SHORT, "--set", "train.precision=fp32", "--workspace", finished)
    assert command("--stage", "all", *place).code == 0
    folder, (split,) = finished / "data/runs/quick", (finished / "data/prepared/splits").iterdir()
    rows = np.load(split / "validation_rows.npy")
    wanted = plain_probabilities(folder / "train", IMAGES[:400][rows])
    right = wanted.argmax(1) == LABELS[:400][rows]
    found = json.loads((folder / "evaluate/metrics.json").read_text())
    assert (found["rows"], found["right"]) == (100, int(right.sum()))
    assert found["accuracy"] == right.mean()
    assert found["interval_95"] == list(metrics.wilson(int(right.sum()), 100))
    loss = -np.log(wanted[np.arange(100), LABELS[:400][rows]]).mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert sum(one["rows"] for one in found["classes"]) == 100
    last = list(csv.DictReader((folder / "train/history.csv").open()))[-1]
    assert float(last["validation_accuracy"]) == pytest.approx(found["accuracy"])
    assert float(last["validation_loss"]) == pytest.approx(loss, rel=1e-4)

    suspects = list(csv.DictReader((folder / "evaluate/suspects.csv").open()))
    assert len(suspects) == 100
    by_row = {int(row) + 1: wanted[i] for i, row in enumerate(rows)}
    doubts = []
    for one in suspects:
        label = LABELS[int(one["row"]) - 1]
        assert int(one["label"]) == label
        assert float(one["label_probability"]) == pytest.approx(by_row[int(one["row"])][label], abs=1e-4)
        doubts.append(float(one["label_probability"]))
    assert doubts == sorted(doubts)
    for name in ("confusion.png", "mistakes.png"):
        assert (folder / "evaluate" / name).read_bytes().startswith(b"\x89PNG")


def test_submission_is_ordered_and_is_what_the_network_says(command, finished):
    shifts = "--set=predict.shifts=[[0, 0], [2, -1]]"
    place = (*SHORT, "--set", "train.precision=fp32", shifts, "--workspace", finished)
    run = command("--stage", "all", *place)
    assert run.code == 0
    folder = finished / "submissions/quick"
    wanted = plain_probabilities(finished / "data/runs/quick/train", IMAGES[400:], ((0, 0), (2, -1)))
    content = (folder / "submission.csv").read_bytes()
    lines = ["ImageId,Label", *(f"{i},{label}" for i, label in enumerate(wanted.argmax(1), 1))]
    assert content.decode() == "\n".join(lines) + "\n"
    assert np.load(folder / "probabilities.npy") == pytest.approx(wanted, abs=1e-4)

    receipt = json.loads((folder / "submission.json").read_text())
    assert receipt["sha256"]["submission.csv"] == hashlib.sha256(content).hexdigest()
    weights = finished / "data/runs/quick/train/weights.safetensors"
    assert receipt["sha256"]["weights.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    train = (finished / "data/raw/train.csv").read_bytes()
    assert receipt["sha256"]["data"]["train.csv"] == hashlib.sha256(train).hexdigest()
    assert receipt["source"] == "files" and receipt["test_score"] is None
    validation = receipt["validation"]
    right = round(validation["accuracy"] * 100)
    assert receipt["expected_score"]["interval_95"] == list(metrics.expected_score(right, 100, 100))

    said = run.lines()
    assert f"validation accuracy {validation['accuracy']:.4f} (95% interval" in run.out
    assert any(line.startswith("submission: ") and line.endswith("submission.csv (100 rows)") for line in said)
    assert said[-1] == "it cannot be sent: the competition's test set has 28,000 rows"


def test_the_last_line_names_the_next_step(command, sendable):
    """After quick on tables of the competition's size: what scores more, by the recorded accuracies, and pictures."""
    *_, send, last = command("--stage", "all", *SHORT, "--workspace", sendable).lines()
    assert send.startswith("send it: kaggle competitions submit -c digit-recognizer -f ")
    more = [f"{recipe.load(name).estimate.accuracy:.4f}" for name in ("standard", "best")]
    assert last.startswith("next: for a higher score, try --recipe standard ") and all(one in last for one in more)
    assert "run --stage inspect" in last


def test_the_same_bytes_again(command, finished):
    folder = finished / "submissions/quick"
    before = {name: (folder / name).read_bytes() for name in ("submission.csv", "probabilities.npy", "manifest.json")}
    assert command("--stage", "predict", *SHORT, "--workspace", finished).code == 0
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_source_with_test_labels_is_scored_by_predict_alone(command, tmp_path):
    place = (*SHORT, "--data", "sample", "--workspace", tmp_path)
    run = command("--stage", "all", *place)
    assert run.code == 0
    folder = tmp_path / "submissions/quick"
    answers = [line.split(",")[1] for line in (tmp_path / "data/raw/test_labels.csv").read_text().split()[1:]]
    given = [line.split(",")[1] for line in (folder / "submission.csv").read_text().split()[1:]]
    score = np.mean([one == two for one, two in zip(answers, given, strict=True)])
    receipt = json.loads((folder / "submission.json").read_text())
    assert receipt["test_score"] == score and f"have: {score:.4f}" in run.out.replace("source has", "have")
    assert "kaggle competitions submit" not in run.out
    # How to get real data comes last, and nothing is said of larger recipes before.
    assert "next:" not in run.out and "or give --data PATH, or set up Kaggle's API" in run.lines()[-2]
    # Other answers change nothing but the score.
    before = (folder / "submission.csv").read_bytes()
    wrong = "ImageId,Label\n" + "".join(f"{i},0\n" for i in range(1, 1251))
    (tmp_path / "data/raw/test_labels.csv").write_text(wrong)
    forged = {"test_labels.csv": hashlib.sha256(wrong.encode()).hexdigest()}
    forge(tmp_path / "data/raw", lambda manifest: manifest["outputs"].update(forged))
    run = command("--stage", "all", *place)
    assert [line for line in run.lines() if "running" in line] == ["predict: running, download/test_labels.csv changed"]
    assert (folder / "submission.csv").read_bytes() == before


def test_wording_says_on_which_rows_the_epoch_was_chosen(command, finished):
    run = command("--stage", "all", *SHORT, "--set", "train.keep=best", "--workspace", finished)
    assert "the epoch was chosen on these rows" in run.out
    assert "the epoch was chosen" not in command("--stage", "all", *SHORT, "--workspace", finished).out


@pytest.mark.parametrize("batch", [1, 7, 100, 1000])
def test_no_row_is_lost_or_moved_by_the_batch_size(network, monkeypatch, batch):
    images = torch.from_numpy(IMAGES[:101])
    whole = inference.probabilities(network, images, Predict(), "cpu", "fp32")
    monkeypatch.setitem(inference.BATCH, "cpu", batch)
    assert inference.probabilities(network, images, Predict(), "cpu", "fp32") == pytest.approx(whole, abs=1e-5)
    order = torch.randperm(101)
    moved = inference.probabilities(network, images[order], Predict(), "cpu", "fp32")
    assert moved == pytest.approx(whole[order], abs=1e-5)


def test_weights_survive_their_file(network, tmp_path):
    content = save_weights(network.state_dict(), {"model": {"name": "small_cnn", "dropout": 0.2}, "epoch": 3})
    (tmp_path / "w.safetensors").write_bytes(content)
    ((again, about),) = load_weights(tmp_path / "w.safetensors", "cpu")
    assert about["epoch"] == 3
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_show_result_reads_the_receipt(finished, capsys, command):
    """What a run says last is what the receipt holds."""
    path = finished / "submissions/quick/submission.json"
    receipt = artifacts.read_json(path)
    receipt["validation"]["accuracy"] = 0.1234
    path.write_text(json.dumps(receipt))
    run = command("--stage", "all", *SHORT, "--workspace", finished)
    assert "validation accuracy 0.1234" in run.out
    assert run_pipeline.main(["--status", "--recipe", "quick", "--workspace", str(finished)]) == 0
