"""Speed benchmark: the published references compute the same as the pipeline, and the table is complete."""

import argparse
import itertools
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.dataset import tables, transforms
from pipeline.dataset.files import TableFile
from pipeline.nn.networks import make_network
from pipeline.recipes.config import load_recipe
from pipeline.recipes.settings import Model
from tests.benchmarks import published_data, published_training, sides, speed
from tests.conftest import competition_tables, digits_28, write_tables


def test_both_sides_read_the_same_values(tmp_path):
    write_tables(tmp_path, competition_tables()[0])
    images, labels = published_data.read(tmp_path / "train.csv")
    our_images, our_labels = tables.read_train_table(TableFile(tmp_path / "train.csv"))
    assert np.array_equal(images, our_images.reshape(len(images), 784)) and np.array_equal(labels, our_labels)
    assert images.dtype == np.float32


def test_both_sides_augment_equally_up_to_rounding():
    images, labels = digits_28(20)
    published, repeated = published_data.augment(images.reshape(20, 784).astype(np.float32), labels)
    assert published.dtype == np.float64 and np.array_equal(repeated, np.tile(labels, 7))
    variants = transforms.list_variants(load_recipe("dropout_cnn").augment)
    batches = itertools.chain(*(transforms.transform_images(images, variant) for variant in variants))
    assert np.abs(np.concatenate(list(batches)).reshape(140, 784) - np.clip(published, 0, 255)).max() <= 0.501


@pytest.mark.parametrize(
    ("published", "model"),
    [
        (published_training.dropout_cnn(), Model(name="dropout_cnn")),
        (published_training.deeper_lenet(), load_recipe("ladder/deeper").model),
    ],
    ids=["dropout_cnn", "ladder/deeper"],
)
def test_both_networks_are_the_same_function(published, model):
    ours = make_network(model).eval()
    weights = [name for name in ours.state_dict() if name.rpartition(".")[2] in ("weight", "bias")]
    ours.load_state_dict(dict(zip(weights, published.state_dict().values(), strict=True)), strict=False)
    images = torch.rand(4, 1, 28, 28)
    assert torch.allclose(published.eval()(images), ours(images), atol=1e-6)


def test_the_published_loop_learns():
    images, labels = digits_28(400)
    torch.manual_seed(0)
    training = published_training.to_dataset(images[:300], labels[:300], "cpu")
    validation = published_training.to_dataset(images[300:], labels[300:], "cpu")
    network, batches = published_training.deeper_lenet(), []
    accuracies = published_training.train(network, training, validation, 4, 64, batches.append, learning_rate=0.005)
    assert sum(batches) == 4 * 300 and len(accuracies) == 4 and accuracies[-1] > 0.5


def test_ratios_are_medians_over_pairs():
    def pair(published, ours):
        return {"published": {"value": published, "peak": 10}, "ours": {"value": ours, "peak": 20}}

    summary = speed.summarize("read", [pair(10, 1), pair(30, 2), pair(20, 4)])
    assert summary["ratio"] == 10 and (summary["published"], summary["ours"]) == (20, 2)
    summary = speed.summarize("train", [pair(100, 300), pair(100, 500), pair(200, 600)])
    assert summary["ratio"] == 3 and summary["unit"] == "images/s"
    assert summary["peak_mb"] == {"published": 10, "ours": 20}


class TestEpochs:
    """Whole epochs, as on a GPU, of a small training set on the CPU; each reading of the clock is 20 s later."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        for name, value in {"TRAINING_ROWS": 8, "N_VARIANTS": 2, "VALIDATION_ROWS": 4}.items():
            monkeypatch.setattr(sides, name, value)
        clock = itertools.count(0.0, 20.0)
        monkeypatch.setattr(sides, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))

    @pytest.mark.parametrize("side", ["published", "ours"])
    def test_a_minute_is_measured_and_extrapolated(self, side):
        result = getattr(sides, f"train_epochs_{side}")({"device": "cpu", "quick": False})
        more = result["more"]
        assert result["value"] == 16 / 20 and more["seconds_for_150_epochs"] == 150 * 20
        assert more["measured_epochs"] == 3 and more["is_extrapolated"]
        summary = speed.summarize("train", [{name: {**result, "peak": 1} for name in ("published", "ours")}])
        assert summary["more"] == summary["published_more"] == more

    def test_a_whole_training_is_not_extrapolated(self, monkeypatch):
        monkeypatch.setattr(sides, "FULL_EPOCHS", 5)
        monkeypatch.setattr(sides, "MAX_MEASURED_SECONDS", 1000)
        more = sides.train_epochs_ours({"device": "cpu", "quick": False})["more"]
        assert more["measured_epochs"] == 5 and more["seconds_for_150_epochs"] == 5 * 20 and not more["is_extrapolated"]

    def test_slow_published_epochs_end_earlier(self, monkeypatch):
        monkeypatch.setattr(sides, "MAX_MEASURED_SECONDS", 15)
        assert sides.train_epochs_published({"device": "cpu", "quick": False})["more"]["measured_epochs"] == 1


def test_every_part_has_its_sides():
    for part in sides.PARTS:
        assert hasattr(sides, f"{part}_ours")
        assert hasattr(sides, f"{part}_published") == (part not in speed.MAX_SECONDS)


class TestParts:
    def run(self, monkeypatch, tmp_path, device, seconds):
        """The results that are saved after each of two parts; a measurement takes `seconds` of a simulated clock."""
        clock, saved = [0.0], []

        def measure(benchmark, side, part, timeout=None):
            if timeout is not None and seconds > timeout:
                clock[0] += timeout
                raise subprocess.TimeoutExpired("benchmark", timeout)
            clock[0] += seconds
            return {"value": 2.0 if side == "published" else 1.0, "peak": 10}

        monkeypatch.setattr(speed.Benchmark, "measure", measure)
        monkeypatch.setattr(speed.time, "monotonic", lambda: clock[0])
        options = argparse.Namespace(device=device, quick=False, part=["read", "train"])
        benchmark = speed.Benchmark(
            tmp_path, None, options, lambda results: saved.append(json.loads(json.dumps(results)))
        )
        benchmark.speed()
        return saved

    @pytest.mark.parametrize(
        ("device", "seconds", "n_pairs"), [("cuda", 1, [5, 3]), ("cuda", 70, [2, 2]), ("cpu", 1000, [5, 3])]
    )
    def test_results_are_saved_after_each_part_and_bounded_on_a_gpu(
        self, monkeypatch, tmp_path, device, seconds, n_pairs
    ):
        first, second = self.run(monkeypatch, tmp_path, device, seconds)
        assert list(first) == ["read"] and list(second) == ["read", "train"] and second["read"] == first["read"]
        assert [second[part]["pairs"] for part in second] == n_pairs

    def test_a_part_without_a_result_is_named(self, monkeypatch, tmp_path, capsys):
        _, results = self.run(monkeypatch, tmp_path, "cuda", 200)
        assert results == {part: {"error": "no pair within 300 s"} for part in ("read", "train")}
        assert "train        no pair within 300 s" in capsys.readouterr().out


def test_random_images_replace_missing_data(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DIGIT_RECOGNIZER_ZIP", raising=False)
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    monkeypatch.setattr(speed, "ROWS", 60)
    path, source = speed._find_data(tmp_path)
    assert "random" in source and "using random images" in capsys.readouterr().out
    images, labels = tables.read_train_table(TableFile(path, "train.csv"))
    assert images.shape == (60, 28, 28) and 0.7 < (images == 0).mean() < 0.9 and labels.max() <= 9
    assert len(tables.read_test_table(TableFile(path, "test.csv"))) == 40
    assert len(tables.read_submission_table(TableFile(path, "sample_submission.csv"), 40)) == 40


@pytest.mark.slow
def test_quick_benchmark_fills_the_table(tmp_path):
    """The whole benchmark as a user runs it; half of each required ratio must hold on a noisy machine."""
    file = tmp_path / "speed.json"
    command = [sys.executable, "-m", "tests.benchmarks.speed", "--quick", "--json", str(file)]
    subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, timeout=600)
    results = json.loads(file.read_text())
    for part, required in speed.REQUIRED_RATIOS.items():
        assert results[part].keys() >= {"published", "ours", "ratio"}
        assert results[part]["ratio"] > required / 2, part
