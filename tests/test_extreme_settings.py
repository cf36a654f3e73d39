"""Recipes that are too large are refused in one line, and recorded ones do not delay --status."""

import json
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.extras import EXTRAS
from pipeline.nn.batches import is_validated, rows_per_epoch, split_into_batches
from pipeline.nn.networks import make_network
from pipeline.nn.trainer import FitOptions, LabelledImages, Trainer
from pipeline.recipes.settings import Affine, Model, Train

MAX_MEMORY = 2 << 20  # KB
MAX_SECONDS = 30  # on a machine that is busy

TOO_LARGE = {
    "ensemble.seeds=1000000": "at most 10000",
    "split.folds=100|ensemble.seeds=101": "10,100 networks",
    'ensemble.views=["plain", "wide"]|ensemble.seeds=5001': "10,002 networks",
    "train.epochs=1000000": "at most 100000",
    f"model.name=layers|model.layers={['relu'] * 10_000}": "at most 500 items",
    f"model.dropout=0.5|model.name=layers|model.layers={['dense 9999'] * 450}": "GiB of memory",
    f"model.dropout=0.5|model.name=layers|model.layers={['conv 9999 9x9 pad 9'] * 450}": "GiB of memory",
    f"augment.shifts={[[1, 0]] * 101}": "at most 100 items",
    f"predict.shifts={[[1, 0]] * 3026}": "at most 3025 items",
}


@pytest.mark.parametrize("settings", TOO_LARGE, ids=lambda settings: settings[:40])
def test_a_recipe_that_is_too_large_is_refused_before_anything_runs(runs, tmp_path, settings):
    options = [option for setting in settings.split("|") for option in ("--set", setting)]
    run = runs("--stage", "all", "--recipe", "quick", *options, "--device", "cpu", "--workspace", tmp_path)
    assert run.code == 2 and run.err.count("\n") == 1 and TOO_LARGE[settings] in run.err, run.err[:500]
    assert run.seconds < MAX_SECONDS and run.memory < MAX_MEMORY and "download" not in run.out


def test_digits_that_do_not_fit_into_the_memory_are_refused(runs, tmp_path):
    pytest.importorskip("pipeline.extras.generate")
    options = ("--set", "gan.latent_size=10000", "--set", "generate.samples=10000000", "--device", "cpu")
    run = runs("--stage", "generate", "--recipe", "gan/better", *options, "--workspace", tmp_path)
    assert run.code == 2 and run.err.count("\n") == 1 and "GiB of memory" in run.err, run.err[:500]
    assert run.seconds < MAX_SECONDS and run.memory < MAX_MEMORY and "download" not in run.out


def test_a_comparison_that_is_too_large_is_refused(command, tmp_path):
    options = ("--set", "ensemble.seeds=11", "--seeds", 1000, "--device", "cpu", "--workspace", tmp_path)
    run = command("--stage", "compare", "--recipe", "quick", *options)
    assert run.code == 2 and "11,000 networks" in run.err and run.err.count("\n") == 1


@pytest.mark.parametrize(
    "recorded",
    [
        {"recipe": "quick", "recipes": ["quick"], "assignments": ["ensemble.seeds=1000000", "compare.seeds=1000"]},
        {"recipe": "quick", "recipes": ["quick"], "assignments": ["ensemble.seeds=10000", "compare.seeds=1000"]},
        {"recipe": "quick", "recipes": ["ladder"] * 900, "assignments": []},
        {"recipe": "quick", "assignments": [f"train.seed={seed}" for seed in range(100_000)]},
        {"recipe": "quick", "assignments": [f"model.layers={['dense 9999'] * 10_000}"]},
    ],
    ids=["a million networks", "ten million trainings", "recipes", "assignments", "layers"],
)
def test_what_is_recorded_does_not_delay_the_status(runs, tmp_path, recorded):
    for name in ("compare/mine", "runs/quick/train", "runs/other/evaluate"):
        path = tmp_path / "data" / name / "context.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"stage": name.split("/")[0], **recorded}))
    run = runs("--status", "--workspace", tmp_path)
    assert run.code == 0 and "recipe quick" in run.out, run.err
    assert ("compare " in run.out) == ("compare" in EXTRAS), run.out
    assert run.seconds < MAX_SECONDS and run.memory < MAX_MEMORY


def validated_epochs(train, n_rows):
    """By counting rows: the first and the last epochs, and each with which all rows were used since the last one."""
    epochs, n_used = {train.epochs}, 0
    for epoch in range(1, train.epochs + 1):
        n_used += rows_per_epoch(epoch, n_rows, train)
        if n_used >= n_rows:
            epochs.add(epoch)
            n_used = 0
    return epochs


@given(epochs=st.integers(1, 40), n_rows=st.integers(1, 60_000), fraction=st.floats(0.01, 1), last=st.booleans())
def test_which_epochs_are_validated(epochs, n_rows, fraction, last):
    selection = "last" if last else "best"
    train = Train(epochs=epochs, hard_example_fraction=fraction, checkpoint_selection=selection)
    expected = validated_epochs(train, n_rows) if last else set(range(1, epochs + 1))
    assert {epoch for epoch in range(1, epochs + 1) if is_validated(epoch, n_rows, train)} == expected


@pytest.mark.parametrize(("epochs", "fraction"), [(1, 1.0), (2, 0.5), (3, 0.5), (7, 0.3)])
def test_the_number_of_steps(as_on_many_rows, epochs, fraction):
    train = Train(epochs=epochs, batch_size=7, hard_example_fraction=fraction, precision="fp32")
    trainer = make_trainer(train)
    expected = [split_into_batches(rows_per_epoch(epoch, 100, train), 7) for epoch in range(1, epochs + 1)]
    assert trainer.n_steps == sum(map(len, expected))


def test_the_memory_of_a_training_does_not_depend_on_its_epochs():
    make_trainer(Train(epochs=1, batch_size=1, precision="fp32"))  # what is imported or cached once does not count
    tracemalloc.start()
    try:
        make_trainer(Train(epochs=100_000, batch_size=1, precision="fp32"))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def make_trainer(train):
    network = make_network(Model(name="layers", layers=("dense 5",)))
    images = LabelledImages(torch.zeros(100, 28, 28, dtype=torch.uint8), torch.arange(100) % 10)
    return Trainer(network, images, FitOptions(train, Affine(), "cpu", False))
