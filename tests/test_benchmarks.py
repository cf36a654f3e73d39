"""The speed benchmark: its references are the pipeline's equals, its ratios what they say, its table complete."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import augmentation, digits
from pipeline.models import MODELS, make
from pipeline.recipe import load
from pipeline.settings import Model
from tests.benchmarks import published_data, published_training, sides, speed
from tests.conftest import competition_tables, digits_28, write_tables


def test_both_sides_read_the_same(tmp_path):
    write_tables(tmp_path, competition_tables()[0])
    images, labels = published_data.read(tmp_path / "train.csv")
    ours = digits.read_train(digits.Table(tmp_path / "train.csv"))
    assert np.array_equal(images, ours[0].reshape(len(images), 784)) and np.array_equal(labels, ours[1])
    assert images.dtype == np.float32


def test_both_sides_augment_alike():
    images, labels = digits_28(20)
    made, repeated = published_data.augment(images.reshape(20, 784).astype(np.float32), labels)
    assert made.dtype == np.float64 and np.array_equal(repeated, np.tile(labels, 7))
    variants = augmentation.variants(load("dropout_cnn").augment)
    ours = np.concatenate([*itertools.chain(*(augmentation.batches(images, variant) for variant in variants))])
    assert np.abs(ours.reshape(140, 784) - np.clip(made, 0, 255)).max() <= 0.501


def test_both_sides_are_the_same_function():
    theirs, ours = published_training.network().eval(), MODELS["dropout_cnn"](Model()).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.rand(4, 1, 28, 28)
    assert torch.allclose(theirs(images), ours(images), atol=1e-6)


def test_both_sides_are_the_same_ladder():
    theirs, ours = published_training.deeper().eval(), make(load("ladder/deeper").model).eval()
    weights = {
        name: tensor for name, tensor in ours.state_dict().items() if name.rpartition(".")[2] in ("weight", "bias")
    }
    ours.load_state_dict(dict(zip(weights, theirs.state_dict().values(), strict=True)), strict=False)
    images = torch.rand(4, 1, 28, 28)
    assert torch.allclose(theirs(images), ours(images), atol=1e-6)


def test_the_published_loop_learns():
    images, labels = digits_28(400)
    torch.manual_seed(0)
    train = published_training.on_device(images[:300], labels[:300], "cpu")
    held = published_training.on_device(images[300:], labels[300:], "cpu")
    seen = []
    found = published_training.epochs(
        published_training.network(0.2), train, held, 8, 64, seen.append, learning_rate=0.002
    )
    assert sum(seen) == 8 * 300 and len(found) == 8 and found[-1] > 0.5


def test_ratios_are_medians_of_pairs():
    def told(published, ours):
        return {"published": {"value": published, "peak": 10}, "ours": {"value": ours, "peak": 20}}

    found = speed._summary("read", [told(10, 1), told(30, 2), told(20, 4)])
    assert found["ratio"] == 10 and (found["published"], found["ours"]) == (20, 2)
    found = speed._summary("train", [told(100, 300), told(100, 500), told(200, 600)])
    assert found["ratio"] == 3 and found["unit"] == "images/s"
    assert found["peak_mb"] == {"published": 10, "ours": 20}


def test_every_part_has_its_sides():
    for part in sides.PARTS:
        assert hasattr(sides, f"{part}_ours")
        assert hasattr(sides, f"{part}_published") == (part not in speed.LIMITS)


def test_without_data_it_makes_some_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DIGIT_RECOGNIZER_ZIP", raising=False)
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    monkeypatch.setattr(speed, "ROWS", 60)
    path, source = speed._data(tmp_path)
    assert "random" in source and "random images instead" in capsys.readouterr().out
    images, labels = digits.read_train(digits.Table(path, "train.csv"))
    assert images.shape == (60, 28, 28) and 0.7 < (images == 0).mean() < 0.9 and labels.max() <= 9
    assert len(digits.read_test(digits.Table(path, "test.csv"))) == 40
    assert len(digits.read_submission(digits.Table(path, "sample_submission.csv"), 40)) == 40


@pytest.mark.slow
def test_quick_fills_the_table(tmp_path):
    """All of it, as a user runs it; the ratios that are wanted hold, with room for a noisy machine."""
    file = tmp_path / "speed.json"
    command = [sys.executable, "-m", "tests.benchmarks.speed", "--quick", "--json", str(file)]
    subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, timeout=600)
    found = json.loads(file.read_text())
    for part, wanted in speed.WANTED.items():
        assert found[part].keys() >= {"published", "ours", "ratio"}
        assert found[part]["ratio"] > wanted / 2, part
