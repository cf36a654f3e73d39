"""Training loop: a plain loop as the oracle, resuming bit for bit, weight averaging, the effect of every setting."""

import copy
import functools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.nn import batches, trainer
from pipeline.nn.networks import make_network
from pipeline.nn.trainer import FitOptions, FitResult, LabelledImages
from pipeline.recipes import config
from pipeline.recipes.settings import Affine, Model, Train
from tests.conftest import digits_28
from tests.oracles import equal

IMAGES, LABELS = digits_28(200)
TRAINING = LabelledImages(torch.from_numpy(IMAGES[:150]), torch.from_numpy(LABELS[:150].astype(np.int64)))
VALIDATION = LabelledImages(torch.from_numpy(IMAGES[150:]), torch.from_numpy(LABELS[150:].astype(np.int64)))
# Labels that are independent of the images: the validation loss grows with the confidence of the network.
WRONG_LABELS = LabelledImages(VALIDATION.images, (VALIDATION.labels + torch.arange(1, 51)) % 10)

BASE = Train(epochs=3, batch_size=64, learning_rate=0.003, precision="fp32", checkpoint_selection="last")
AFFINE = Affine(rotation=10, shift=2)
CNN = Model(name="layers", layers=("conv 4 5x5 stride 2", "batch_norm", "relu", "dropout"), dropout=0.2)
CNN_WITHOUT_BATCH_NORM = Model(name="layers", layers=("conv 4 5x5 stride 2", "relu"))
DENSE = Model(name="layers", layers=("dense 20", "tanh"))


@dataclass
class Run(FitResult):
    """The result of a training, and its checkpoints."""

    checkpoints: list = field(default_factory=list)


def fit(
    train=BASE, model=CNN, training=TRAINING, validation=VALIDATION, test=None, checkpoint=None, affine=None
) -> Run:
    trainer.seed_everything(train.seed)
    options, checkpoints = FitOptions(train, affine or Affine(), "cpu", progress_bar=False), []
    result = trainer.fit(
        make_network(model), training, validation, options, test, checkpoint,
        lambda checkpoint: checkpoints.append(copy.deepcopy(checkpoint)),
    )  # fmt: skip
    return Run(**vars(result), checkpoints=checkpoints)


@pytest.fixture(scope="module")
def base_run():
    return fit()


class TestAgainstAPlainLoop:
    @pytest.mark.usefixtures("as_on_many_rows")
    @pytest.mark.parametrize(
        "model", [Model(name="small_cnn", dropout=0.0), CNN_WITHOUT_BATCH_NORM], ids=["batch_norm", "micro_batches"]
    )
    def test_weights_and_history(self, model):
        """The plain loop has neither micro-batches nor the channels-last format."""
        train = BASE.replace(batch_size=100, optimizer="adamw", weight_decay=0.01, epochs=2, learning_rate=1e-4)
        run = fit(train, model)
        trainer.seed_everything(train.seed)
        network = make_network(model)
        start = copy.deepcopy(network.state_dict())
        optimizer = torch.optim.AdamW(network.parameters(), train.learning_rate, weight_decay=0.01)
        for epoch, row in enumerate(run.history, 1):
            trainer.seed_everything(train.seed, epoch)
            network.train()
            losses = []
            for rows in torch.randperm(150).split(100):
                loss = cross_entropy(network(TRAINING.images[rows, None] / 255), TRAINING.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses += [loss.item()] * len(rows)
            network.eval()
            with torch.no_grad():
                logits = network(VALIDATION.images[:, None] / 255)
            assert row["epoch"] == epoch and row["learning_rate"] == 1e-4
            assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-3)
            validation_loss = cross_entropy(logits, VALIDATION.labels).item()
            assert row["validation_loss"] == pytest.approx(validation_loss, rel=1e-2)
            accuracy = (logits.argmax(1) == VALIDATION.labels).float().mean().item()
            assert row["validation_accuracy"] == pytest.approx(accuracy, abs=0.03)
        for name, tensor in network.state_dict().items():
            change = (tensor - start[name]).float().abs().mean()
            # Adam enlarges rounding errors.
            assert (run.state_dict[name] - tensor).float().abs().mean() <= 0.1 * change, name

    def test_micro_batches_give_the_gradient_of_the_whole_batch(self, monkeypatch):
        train = BASE.replace(batch_size=150, epochs=1)
        parts = fit(train, CNN_WITHOUT_BATCH_NORM).state_dict
        monkeypatch.setattr(trainer, "CPU_MICRO_BATCH", 1000)
        whole = fit(train, CNN_WITHOUT_BATCH_NORM).state_dict
        assert not equal(parts, whole)  # rounding
        for name in whole:  # Adam's first step is the sign of the gradient times the learning rate
            assert (parts[name] - whole[name]).abs().mean() < 1e-5, name


class TestSelection:
    def test_the_best_state_is_a_copy_of_its_epoch(self):
        train = BASE.replace(checkpoint_selection="best", epochs=8, learning_rate=0.02)
        run = fit(train, validation=WRONG_LABELS)
        best = int(np.argmin([row["validation_loss"] for row in run.history]))
        assert best < 7
        assert equal(run.state_dict, run.checkpoints[best]["network"])
        assert not equal(run.state_dict, run.checkpoints[-1]["network"])
        assert batches.selected_row(run.history, "best") == run.history[best]

    def test_the_last_state_is_kept(self, base_run):
        assert equal(base_run.state_dict, base_run.checkpoints[-1]["network"])
        assert batches.selected_row(base_run.history, "last") == base_run.history[-1]

    def test_validation_images_do_not_influence_the_weights(self, base_run):
        noise = torch.randint(0, 256, VALIDATION.images.shape, dtype=torch.uint8)
        other = fit(validation=LabelledImages(noise, VALIDATION.labels))
        assert equal(base_run.state_dict, other.state_dict)
        for before, after in zip(base_run.history, other.history, strict=True):
            assert before["train_loss"] == after["train_loss"]
            assert before["validation_loss"] != after["validation_loss"]

    def test_without_validation_the_weights_are_the_same(self, base_run):
        run = fit(validation=None)
        assert equal(base_run.state_dict, run.state_dict)
        assert list(run.history[0]) == ["epoch", "learning_rate", "train_loss"]

    @pytest.mark.parametrize("selection", ["last", "best"])
    def test_test_accuracy_is_that_of_the_validated_network(self, selection):
        """With averaged weights too, and without influence on the weights."""
        train = BASE.replace(swa_fraction=0.5, checkpoint_selection=selection)
        run, without = fit(train, test=VALIDATION), fit(train)
        assert equal(run.state_dict, without.state_dict)
        for row, row_without in zip(run.history, without.history, strict=True):
            assert row["test_accuracy"] == row["validation_accuracy"]
            assert row_without == {name: value for name, value in row.items() if name != "test_accuracy"}

    def test_test_accuracy_without_validation(self):
        run = fit(validation=None, test=VALIDATION)
        assert [row["test_accuracy"] for row in run.history] == [row["validation_accuracy"] for row in fit().history]


class TestResuming:
    @pytest.mark.parametrize(
        "changes",
        [
            {"optimizer": "adamw", "checkpoint_selection": "best"},
            {"optimizer": "adamw", "checkpoint_selection": "best", "precision": "bf16"},
            {"optimizer": "muon", "weight_decay": 0.02, "hard_example_fraction": 0.5, "swa_fraction": 0.5},
        ],
        ids=["best", "bf16", "muon_hard_examples_swa"],
    )
    @pytest.mark.usefixtures("as_on_many_rows")
    def test_gives_the_same_result_bit_for_bit(self, changes):
        train = BASE.replace(epochs=4, schedule="linear", warmup=0.3, **changes)
        model = CNN.replace(layers=(*CNN.layers, "conv 4 3x3"))
        whole = fit(train, model, affine=AFFINE)
        for epoch in (1, 2, 3):
            resumed = fit(train, model, affine=AFFINE, checkpoint=whole.checkpoints[epoch - 1])
            assert equal(whole.state_dict, resumed.state_dict)
            assert whole.history == resumed.history
            assert len(resumed.checkpoints) == 4 - epoch

    def test_after_the_last_epoch_returns_the_result(self, base_run):
        resumed = fit(checkpoint=base_run.checkpoints[-1])
        assert equal(base_run.state_dict, resumed.state_dict) and resumed.checkpoints == []

    def test_an_exception_in_the_callback_stops_the_training(self):
        def stop(checkpoint):
            raise KeyboardInterrupt

        options = FitOptions(BASE, Affine(), "cpu", progress_bar=False)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(make_network(CNN), TRAINING, None, options, on_epoch=stop)


# For each setting another value, and the settings that it requires.
CHANGES = {
    "epochs": (4, {}),
    "batch_size": (50, {}),
    "optimizer": ("adamw", {}),
    "learning_rate": (0.001, {}),
    "weight_decay": (0.1, {}),
    "schedule": ("cosine", {}),
    "warmup": (0.5, {}),
    "label_smoothing": (0.1, {}),
    "softmax_before_loss": (True, {}),
    "precision": ("bf16", {}),
    "seed": (5, {}),
    "checkpoint_selection": ("best", {}),
    "hard_example_fraction": (0.5, {}),
    "swa_fraction": (0.5, {}),
    "muon_learning_rate": (0.1, {"optimizer": "muon"}),
    "momentum": (0.5, {"optimizer": "sgd", "learning_rate": 0.01}),
    "lr_gamma": (0.5, {"schedule": "exponential"}),
    "steps": (((2, 0.5),), {"schedule": "steps"}),
    "ema_decay": (0.5, {"swa_fraction": 0.5}),
}
TESTED_ELSEWHERE = {"fit_all", "deterministic", "record"}


class TestSettings:
    @staticmethod
    @functools.cache
    def weights(train):
        model = CNN.replace(layers=(*CNN.layers, "conv 4 3x3"))  # two convolutions, for muon
        return fit(train, model, validation=WRONG_LABELS).state_dict

    @pytest.mark.usefixtures("as_on_many_rows")
    @pytest.mark.parametrize("name", sorted(set(Train.model_fields) - TESTED_ELSEWHERE))
    def test_every_setting_has_an_effect(self, name):
        value, required = CHANGES[name]
        # With a weight decay of 0, adam and adamw are equal; and the best epoch must not be the last.
        train = BASE.replace(**{"weight_decay": 0.01, "epochs": 5, "learning_rate": 0.01, **required})
        assert getattr(train, name) != value
        assert not equal(self.weights(train), self.weights(train.replace(**{name: value})))

    def test_the_same_seed_gives_the_same_weights(self, base_run):
        assert equal(base_run.state_dict, fit().state_dict)

    @pytest.mark.parametrize(
        ("settings", "points"),
        [  # (fraction of steps done, epoch): factor
            ({}, {(0.7, 3): 1}),
            (
                {"schedule": "linear", "warmup": 0.25},
                {(0, 1): 0, (0.125, 1): 0.5, (0.25, 1): 1, (0.625, 1): 0.5, (1, 1): 0},
            ),
            ({"schedule": "cosine"}, {(0, 1): 1, (0.5, 1): 0.5, (1, 1): 0}),
            ({"schedule": "exponential", "lr_gamma": 0.5}, {(0.3, 1): 1, (0.3, 2): 0.5, (0.3, 4): 0.125}),
            (
                {"schedule": "steps", "steps": ((2, 10.0), (7, 0.1))},
                {(0.3, 1): 1, (0.3, 2): 10, (0.3, 6): 10, (0.3, 7): 1, (0.3, 9): 1},
            ),
        ],
    )
    def test_learning_rate_schedules(self, settings, points):
        train = BASE.replace(**settings)
        factors = {point: trainer.learning_rate_factor(train, *map(float, point[:1]), point[1]) for point in points}
        assert factors == pytest.approx(points)


class TestBatches:
    @pytest.mark.usefixtures("as_on_many_rows")
    def test_the_last_batch_takes_the_remaining_rows(self, monkeypatch):
        sizes = []
        monkeypatch.setattr(trainer, "random_affine", lambda images, affine: sizes.append(len(images)) or images)
        fit(BASE.replace(epochs=2))
        assert sizes == [64, 64, 22] * 2

    @pytest.mark.parametrize("n_rows", [1, 2, 59, 60, 61, 100, 101, 120])
    @pytest.mark.parametrize("batch_size", [1, 20, 59, 60, 100, 200])
    def test_batches_use_every_row_once_and_have_no_rest_of_one_row(self, n_rows, batch_size):
        sizes = batches.split_into_batches(n_rows, batch_size)
        assert sum(sizes) == n_rows and set(sizes[:-1]) <= {batch_size}
        assert sizes[-1] > 1 or batch_size == 1 or n_rows == 1

    @pytest.mark.parametrize(
        ("train", "n_rows"),
        [(BASE.replace(batch_size=149), 150), (BASE.replace(swa_fraction=0.5), 129)],
        ids=["training", "estimate for averaged weights"],
    )
    def test_batch_norm_with_a_remaining_row(self, train, n_rows):
        """Batch norm of a dense layer cannot be computed for a single row."""
        model = CNN.replace(layers=("conv 4 5x5", "batch_norm", "global_pool", "dense 8", "batch_norm"), dropout=0.5)
        run = fit(train, model, LabelledImages(TRAINING.images[:n_rows], TRAINING.labels[:n_rows]))
        assert len(run.history) == 3 and all(tensor.isfinite().all() for tensor in run.state_dict.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, r"smaller train\.learning_rate"), ({"epochs": 1, "batch_size": 1000}, "validation_loss")],
)
def test_a_loss_that_is_not_finite_raises_an_error(changes, message):
    model = Model(name="layers", layers=("conv 4 5x5", "relu", "dense 20", "relu", "dense 20", "relu"))
    with pytest.raises(FloatingPointError, match=message):
        fit(BASE.replace(learning_rate=1e30, **changes), model)


def trains_all_layers(name):
    recipe = config.load_recipe(name)
    return not recipe.has_gan and not recipe.model.has_frozen_extractor


@pytest.mark.parametrize("name", [name for name in config.recipe_names() if trains_all_layers(name)])
def test_every_recipe_trains_for_an_epoch(name):
    recipe = config.load_recipe(name, ["train.epochs=1", "train.batch_size=10", "train.precision=fp32"])
    rows = [LabelledImages(TRAINING.images[part], TRAINING.labels[part]) for part in (slice(20), slice(20, 30))]
    network = make_network(recipe.model, rows[0].images)
    before = copy.deepcopy(list(network.parameters()))
    validation = None if recipe.train.fit_all else rows[1]
    options = FitOptions(recipe.train, recipe.affine, "cpu", progress_bar=False)
    result = trainer.fit(network, rows[0], validation, options, rows[1])
    assert len(result.history) == 1 and 0 <= result.history[0]["test_accuracy"] <= 1
    assert any(not torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    assert result.state_dict.keys() == network.state_dict().keys()


def test_of_equal_validation_losses_the_first_epoch_is_kept():
    history = [{"epoch": epoch, "validation_loss": loss} for epoch, loss in enumerate([0.5, 0.2, 0.3, 0.2], 1)]
    assert batches.selected_row(history, "best") == history[1]


def test_the_learning_rate_of_a_step_is_that_of_its_middle():
    """Three epochs of three steps, at 1/18, 3/18, ..., 17/18 of the schedule; the history has each epoch's last."""
    history = fit(BASE.replace(schedule="linear")).history
    expected = [BASE.learning_rate * (1 - middle / 18) for middle in (5, 11, 17)]
    assert [row["learning_rate"] for row in history] == pytest.approx(expected, rel=1e-12)
