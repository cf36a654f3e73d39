"""train: the loop against a plain one, the best state, resuming bit for bit, seeds, and that each setting counts."""

import copy
import csv
import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.functional import cross_entropy

import run_pipeline
from pipeline import artifacts, training
from pipeline.inference import as_input
from pipeline.models import MODELS
from pipeline.models.dropout import Dropout
from pipeline.settings import Affine, Model, Train
from pipeline.stages import fitting
from tests.conftest import SHORT, digits_28

IMAGES, LABELS = digits_28(200)
TRAIN = (torch.from_numpy(IMAGES[:150]), torch.from_numpy(LABELS[:150].astype(np.int64)))
VALIDATION = (torch.from_numpy(IMAGES[150:]), torch.from_numpy(LABELS[150:].astype(np.int64)))
BASE = Train(epochs=3, batch=64, learning_rate=0.003, precision="fp32", keep="last")
NO_AFFINE = Affine()
SMALL = Model("small_cnn", 0.2)


def fit(
    settings=BASE, affine=NO_AFFINE, model=SMALL, train=TRAIN, checkpoint=None, stop_after=None, validation=VALIDATION
):
    """Train from the recipe's seed; returns the kept state, the history, and the checkpoints."""
    training.seed_everything(settings.seed)
    network = MODELS[model.name](model)
    checkpoints = []

    def after_epoch(one):
        checkpoints.append(copy.deepcopy(one))
        if one["epoch"] == stop_after:
            raise KeyboardInterrupt

    try:
        state, history, _, _ = training.fit(
            network, train, validation, settings, affine, "cpu", settings.precision, checkpoint, after_epoch
        )
    except KeyboardInterrupt:
        state, history = None, None
    return state, history, checkpoints


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("as_on_many_rows")
@pytest.mark.parametrize("model", [SMALL, Model("dropout_cnn", 0.0)], ids=lambda model: model.name)
def test_against_a_plain_loop(model):
    """The same network, order and steps written out, without parts, autocast or channels last."""
    settings = dataclasses.replace(BASE, batch=100, optimizer="adamw", weight_decay=0.01, epochs=2, learning_rate=1e-4)
    model = dataclasses.replace(model, dropout=0.0)
    state, history, _ = fit(settings, model=model)
    training.seed_everything(settings.seed)
    network = MODELS[model.name](model)
    start = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=0.01)
    for epoch in (1, 2):
        training.seed_everything(settings.seed, epoch)
        network.train()
        losses = []
        for rows in torch.randperm(150).split(100):
            loss = cross_entropy(network(TRAIN[0][rows, None] / 255), TRAIN[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(rows)
        network.eval()
        with torch.no_grad():
            outputs = network(VALIDATION[0][:, None] / 255)
        assert history[epoch - 1]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-3)
        assert history[epoch - 1]["validation_loss"] == pytest.approx(
            cross_entropy(outputs, VALIDATION[1]).item(), rel=1e-2
        )
    for name, tensor in network.state_dict().items():
        moved = (tensor - start[name]).float().abs().mean()
        assert (state[name] - tensor).float().abs().mean() <= 0.1 * moved, name  # rounding, which Adam enlarges


def test_the_network_is_the_published_one():
    network = MODELS["dropout_cnn"](Model())
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_805_130
    # ReLU after dropout and pooling is the published order's function: relu, dropout, pool, with the same masks.
    network.train()
    batch = as_input(TRAIN[0][:8])
    torch.manual_seed(1)
    ours = network(batch)
    torch.manual_seed(1)
    x = batch
    for layer in network.layers:
        if isinstance(layer, Dropout):
            x = layer(x.relu())
        elif not isinstance(layer, torch.nn.ReLU):
            x = layer(x)
    assert torch.allclose(ours, x, atol=1e-5)


class TestDropout:
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
    def test_is_what_torchs_own_is(self, p, form):
        """Values are 0 with probability p, else value / (1 - p), each on its own; so are gradients."""
        torch.manual_seed(0)
        values = torch.rand(50, 8, 10, 10).add(0.5).contiguous(memory_format=form).requires_grad_()
        out = Dropout(p)(values)
        out.sum().backward()
        kept = out != 0
        assert torch.allclose(out[kept], values[kept] / (1 - p))
        assert torch.equal(values.grad != 0, kept)
        spread = (p * (1 - p) / kept.numel()) ** 0.5
        assert abs((~kept).float().mean().item() - p) < 5 * spread
        flat = kept.permute(0, 2, 3, 1).flatten().float() - (1 - p)
        for lag in (1, 2, 3, 4, 8, 100):  # neighbours know nothing of each other
            assert abs((flat[lag:] * flat[:-lag]).mean().item()) < 5 * p * (1 - p) / kept.numel() ** 0.5

    def test_draws_anew_each_time_and_by_the_seed(self):
        values, layer = torch.ones(1001), Dropout(0.5)
        torch.manual_seed(0)
        one, two = layer(values), layer(values)
        torch.manual_seed(0)
        assert torch.equal(layer(values), one) and not torch.equal(one, two)

    def test_does_nothing_in_evaluation(self):
        values = torch.ones(100)
        assert Dropout(0.5).eval()(values) is values and Dropout(0.0)(values) is values

    def test_any_layout(self):
        values = torch.rand(8, 6, 4, 2).add(1).permute(2, 0, 3, 1)[:, ::2]
        out = Dropout(0.5)(values)
        assert out.shape == values.shape
        assert torch.allclose(out[out != 0], 2 * values[out != 0])


def test_parts_of_a_batch_give_the_whole_batchs_gradient(monkeypatch):
    settings = dataclasses.replace(BASE, batch=150, epochs=1)
    model = Model("dropout_cnn", 0.0)
    parts, _, _ = fit(settings, model=model)
    monkeypatch.setattr(training, "CPU_PART", 1000)
    whole, _, _ = fit(settings, model=model)
    assert not same(parts, whole)  # rounding
    for name in whole:  # Adam's first step is the gradient's sign times the rate: compare where signs are certain
        assert (parts[name] - whole[name]).abs().mean() < 1e-5, name


# Labels that have nothing to do with the images: the surer the network grows, the larger its validation loss.
NONSENSE = (VALIDATION[0], (VALIDATION[1] + torch.arange(1, 51)) % 10)


def test_the_best_state_is_a_copy_of_its_epoch():
    settings = dataclasses.replace(BASE, keep="best", epochs=8, learning_rate=0.02)
    state, history, checkpoints = fit(settings, validation=NONSENSE)
    best = int(np.argmin([row["validation_loss"] for row in history]))
    assert best < 7
    assert same(state, checkpoints[best]["network"])
    assert not same(state, checkpoints[-1]["network"])
    last, _, _ = fit(dataclasses.replace(settings, keep="last"), validation=NONSENSE)
    assert same(last, checkpoints[-1]["network"])


@pytest.mark.parametrize("stop_after", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_is_uninterrupted_bit_for_bit(stop_after, precision):
    settings = dataclasses.replace(
        BASE, optimizer="adamw", schedule="linear", warmup=0.3, keep="best", precision=precision
    )
    whole = fit(settings, Affine(rotation=10, shift=2))
    _, _, checkpoints = fit(settings, Affine(rotation=10, shift=2), stop_after=stop_after)
    resumed = fit(settings, Affine(rotation=10, shift=2), checkpoint=checkpoints[-1])
    assert same(whole[0], resumed[0])
    assert whole[1] == resumed[1]
    assert len(resumed[2]) == 3 - stop_after


def test_same_seed_same_weights_and_another_seed_others():
    one, two, other = fit()[0], fit()[0], fit(dataclasses.replace(BASE, seed=1))[0]
    assert same(one, two)
    assert not same(one, other)


OTHER = {
    "epochs": 4,
    "batch": 50,
    "optimizer": "adamw",
    "learning_rate": 0.001,
    "weight_decay": 0.1,
    "schedule": "cosine",
    "warmup": 0.5,
    "label_smoothing": 0.1,
    "softmax_before_loss": True,
    "precision": "bf16",
    "seed": 5,
    "keep": "best",
    "muon_rate": 0.1,
    "focus": 0.5,
    "average": 0.5,
    "momentum": 0.5,
    "decay": 0.5,
    "steps": ((2, 0.5),),
    "average_decay": 0.5,
}
# What makes a setting count.
WITH = {
    "muon_rate": {"optimizer": "muon"},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.01},
    "decay": {"schedule": "exponential"},
    "steps": {"schedule": "steps"},
    "average_decay": {"average": 0.5},
}
ELSEWHERE = {"fit_all", "deterministic", "record"}  # tests/test_training_ways.py and tests/test_recording.py


@pytest.mark.usefixtures("as_on_many_rows")
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Train) if field.name not in ELSEWHERE])
def test_every_setting_counts(name):
    # A decay of 0 is the same in adam and adamw; and the best epoch must not be the last.
    base = dataclasses.replace(BASE, weight_decay=0.01, epochs=5, **WITH.get(name, {}))
    assert getattr(base, name) != OTHER[name]
    one, two = (fit(each, validation=NONSENSE)[0] for each in (base, dataclasses.replace(base, **{name: OTHER[name]})))
    assert not same(one, two)


def test_rate_factor():
    warm = dataclasses.replace(BASE, warmup=0.25, schedule="linear")
    assert [training.rate_factor(warm, t, 1) for t in (0, 0.125, 0.25, 0.625, 1)] == [0, 0.5, 1, 0.5, 0]
    cosine = dataclasses.replace(BASE, schedule="cosine")
    assert [round(training.rate_factor(cosine, t, 1), 6) for t in (0, 0.5, 1)] == [1, 0.5, 0]
    assert training.rate_factor(BASE, 0.7, 3) == 1
    falling = dataclasses.replace(BASE, schedule="exponential", decay=0.5)
    assert [training.rate_factor(falling, 0.3, epoch) for epoch in (1, 2, 4)] == [1, 0.5, 0.125]
    steps = dataclasses.replace(BASE, schedule="steps", steps=((2, 10.0), (7, 0.1)))
    assert [training.rate_factor(steps, 0.3, epoch) for epoch in (1, 2, 6, 7, 9)] == [1, 10, 10, 1, 1]


def test_validation_rows_never_reach_training():
    """Poisoned validation pixels change the validation figures and nothing else."""
    whole = fit()
    saved = VALIDATION[0].clone()
    try:
        VALIDATION[0].copy_(torch.randint(0, 256, saved.shape, dtype=torch.uint8))
        poisoned = fit()
    finally:
        VALIDATION[0].copy_(saved)
    assert same(whole[0], poisoned[0])
    assert [row["train_loss"] for row in whole[1]] == [row["train_loss"] for row in poisoned[1]]
    assert [row["validation_loss"] for row in whole[1]] != [row["validation_loss"] for row in poisoned[1]]


@pytest.mark.usefixtures("as_on_many_rows")
def test_the_last_partial_batch_counts(monkeypatch):
    seen = []
    monkeypatch.setattr(training, "random_affine", lambda images, affine: seen.append(len(images)) or images)
    fit(dataclasses.replace(BASE, epochs=2))
    assert seen == [64, 64, 22] * 2


@pytest.mark.parametrize("count", [1, 2, 59, 60, 61, 100, 101, 120])
@pytest.mark.parametrize("batch", [1, 20, 59, 60, 100, 200])
def test_batches_take_every_row_once_and_no_last_one_alone(count, batch):
    sizes = training._batches(count, batch)
    assert sum(sizes) == count and set(sizes[:-1]) <= {batch}
    assert sizes[-1] > 1 or batch == 1 or count == 1


def test_batch_norm_with_a_row_left_over():
    model = Model("layers", layers=("conv 4 5x5", "batch_norm", "global_pool", "dense 8", "batch_norm"))
    _, history, _ = fit(dataclasses.replace(BASE, batch=TRAIN[0].shape[0] - 1), model=model)
    assert len(history) == 3


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(FloatingPointError, match=r"smaller train\.learning_rate"):
        fit(dataclasses.replace(BASE, learning_rate=1e30), model=Model("dropout_cnn", 0.5))


def test_a_validation_loss_that_is_no_number_is_an_error():
    with pytest.raises(FloatingPointError, match="validation_loss"):
        fit(dataclasses.replace(BASE, learning_rate=1e30, epochs=1, batch=1000), model=Model("dropout_cnn", 0.5))


class TestStage:
    def test_what_it_leaves(self, finished):
        folder = finished / "data/runs/quick/train"
        assert {path.name for path in folder.iterdir()} == {
            "weights.safetensors", "history.csv", "curves.png", "manifest.json", "context.json",
        }  # fmt: skip
        rows = list(csv.DictReader((folder / "history.csv").open()))
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert not any("time" in name or "second" in name for name in rows[0])
        numbers = artifacts.read_manifest(folder)[0]["numbers"]
        assert numbers["precision"] in ("fp32", "bf16")
        assert float(rows[-1]["validation_accuracy"]) == numbers["validation_accuracy"]

    @pytest.mark.parametrize("settings", [SHORT, (*SHORT, "--set", "train.keep=best", "--set", "train.epochs=4")])
    def test_stopped_and_resumed_leaves_the_same_files(self, command, finished, monkeypatch, settings):
        place = (*settings, "--workspace", finished)
        folder = finished / "data/runs/quick/train"
        assert command("--stage", "train", *place).code == 0
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}

        fit_whole = training.fit

        def fit_and_stop(*arguments):
            *rest, after_epoch, bar, watched = arguments

            def stop(checkpoint):
                after_epoch(checkpoint)
                raise KeyboardInterrupt

            return fit_whole(*rest, stop, bar, watched)

        monkeypatch.setattr(training, "fit", fit_and_stop)
        stopped = command("--stage", "train", *place, "--force")
        assert stopped.code == 130 and "goes on from there" in stopped.err
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before
        monkeypatch.setattr(training, "fit", fit_whole)
        resumed = command("--stage", "train", *place)
        assert "going on after epoch 1" in resumed.out
        after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}
        assert after == before

    def test_epochs_too_short_to_save_each_are_saved_when_stopped(self, command, finished, monkeypatch):
        place = (*SHORT, "--set", "train.epochs=5", "--workspace", finished)
        assert command("--stage", "train", *place).code == 0
        folder = finished / "data/runs/quick/train"
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}
        monkeypatch.setattr(fitting, "SAVE", 1000)
        write = run_pipeline._Log.write_only

        def stop(log, text):
            write(log, text)
            if "epoch 4" in text:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(run_pipeline._Log, "write_only", stop)
            assert command("--stage", "train", *place, "--force").code == 130
        resumed = command("--stage", "train", *place)
        assert "going on after epoch 4" in resumed.out
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"} == before

    def test_a_damaged_checkpoint_is_one_clear_line(self, command, finished, monkeypatch):
        place = (*SHORT, "--workspace", finished)
        monkeypatch.setattr(training, "fit", lambda *arguments: arguments[-2](None))  # fails in its own way
        command("--stage", "train", *place)
        monkeypatch.undo()
        (finished / "data/runs/quick/train.partial/checkpoint.pt").write_bytes(b"garbage")
        run = command("--stage", "train", *place)
        assert run.code == 2 and run.err.count("\n") == 1 and "delete it" in run.err
        assert command("--stage", "train", *place, "--force").code == 0

    def test_precision_is_recorded_and_kept_on_resume(self, command, finished, monkeypatch):
        place = (*SHORT, "--workspace", finished)
        with monkeypatch.context() as patch:
            patch.setattr(training, "choose_precision", lambda *arguments: "bf16")
            patch.setattr(run_pipeline.engine.artifacts, "write_manifest", interrupt)
            assert command("--stage", "train", *place, "--force").code == 130
        monkeypatch.setattr(training, "choose_precision", lambda *arguments: "fp32")
        assert command("--stage", "train", *place).code == 0
        folder = finished / "data/runs/quick/train"
        assert artifacts.read_manifest(folder)[0]["numbers"]["precision"] == "bf16"
        with safetensors.safe_open(folder / "weights.safetensors", "pt") as file:
            assert json.loads(file.metadata()["about"])["precision"] == "bf16"


def interrupt(*arguments):
    raise KeyboardInterrupt
