"""The ways to train beyond the plain one: Muon, a focus on hard rows, averaged weights, no validation rows."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from pipeline import artifacts, optimizers, training
from pipeline.inference import as_input
from pipeline.models import MODELS
from pipeline.settings import Affine, Model
from tests.conftest import SHORT, digits_28
from tests.test_train import BASE, NONSENSE, SMALL, TRAIN, fit, same


class TestMuon:
    @pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16)])
    def test_orthogonal_is_the_iteration_on_singular_values(self, shape):
        """The iteration leaves singular vectors as they are, and maps each singular value by its polynomial."""
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
        a, b, c = optimizers.COEFFICIENTS
        values = values / np.linalg.norm(values)
        for _ in range(optimizers.STEPS):
            values = a * values + b * values**3 + c * values**5
        assert optimizers.orthogonal(matrix).numpy() == pytest.approx(left @ np.diag(values) @ right, abs=1e-4)
        assert values.min() > 0.6 and values.max() < 1.3

    def test_a_step_written_out(self):
        weight = torch.nn.Parameter(torch.randn(8, 2, 3, 3))
        muon = optimizers.Muon([weight], lr=0.1, weight_decay=0.5, momentum=0.8)
        wanted, momentum = weight.detach().clone(), torch.zeros(8, 2, 3, 3)
        for seed in range(3):
            gradient = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
            weight.grad = gradient.clone()
            muon.step()
            momentum = 0.8 * momentum + 0.2 * gradient
            direction = optimizers.orthogonal((0.2 * gradient + 0.8 * momentum).view(8, 18)).view(8, 2, 3, 3)
            wanted = wanted * (1 - 0.1 * 0.5) - 0.1 * direction
            assert torch.allclose(weight, wanted, atol=1e-5)

    def test_zero_gradients_are_no_numbers_trouble(self):
        assert torch.equal(optimizers.orthogonal(torch.zeros(4, 9)), torch.zeros(4, 9))

    def test_takes_the_inner_convolutions_and_leaves_the_rest_to_adamw(self):
        network = MODELS["small_cnn"](SMALL)
        muon, adamw = optimizers.make_optimizers(network, dataclasses.replace(BASE, optimizer="muon", muon_rate=0.3))
        shapes = [tuple(weight.shape) for weight in muon.param_groups[0]["params"]]
        assert shapes == [(64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)]
        count = sum(len(one.param_groups[0]["params"]) for one in (muon, adamw))
        assert count == len(list(network.parameters()))
        assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (0.3, BASE.learning_rate)

    def test_a_network_with_fewer_than_two_convolutions_is_trained_by_adamw_alone(self):
        """With the same weights as --set train.optimizer=adamw."""
        model = Model("layers", layers=("conv 4 5x5 stride 4", "relu"))
        muon, adamw = (dataclasses.replace(BASE, optimizer=name, weight_decay=0.01) for name in ("muon", "adamw"))
        assert same(fit(muon, model=model)[0], fit(adamw, model=model)[0])


@pytest.mark.usefixtures("as_on_many_rows")
class TestFocus:
    settings = dataclasses.replace(BASE, focus=0.4, epochs=5, batch=50)

    def seen(self, monkeypatch, settings):
        """The rows that each epoch worked on, found by their pixels; and each epoch's losses before it."""
        rows, losses, known = [], [], {image.numpy().tobytes(): row for row, image in enumerate(TRAIN[0])}
        assert len(known) == len(TRAIN[0])
        order = training._order
        monkeypatch.setattr(training, "_order", lambda one, *more: losses.append(one.clone()) or order(one, *more))

        def look(batch, affine):
            pixels = (batch * 255).round().to(torch.uint8)
            rows.extend(known[image.numpy().tobytes()] for image in pixels[:, 0])
            return batch

        monkeypatch.setattr(training, "random_affine", look)
        fit(settings)
        counts = [150, 150, 60, 60, 60]
        return [rows[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(5)], losses

    def test_hard_rows_are_seen_more_often(self, monkeypatch):
        epochs, losses = self.seen(monkeypatch, self.settings)
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(150))
        for seen, before in zip(epochs[2:], losses[2:], strict=True):
            assert len(set(seen)) == 60
            hardest = set(before.argsort(descending=True)[: round(60 * training.HARD_SHARE)].tolist())
            assert hardest <= set(seen)
            assert seen[:30] != before.argsort(descending=True)[:30].tolist()  # mixed, not the hardest first
        assert set(epochs[2]) != set(epochs[3])

    def test_losses_are_those_of_each_row(self):
        """With a rate too small to learn, a row's loss is what the untrained network makes of it alone."""
        settings = dataclasses.replace(BASE, focus=0.4, epochs=3, learning_rate=1e-12)
        model = Model("dropout_cnn", 0.0)
        _, _, checkpoints = fit(settings, model=model)
        training.seed_everything(settings.seed)
        network = MODELS["dropout_cnn"](model)
        wanted = torch.nn.functional.cross_entropy(network(as_input(TRAIN[0])), TRAIN[1], reduction="none")
        assert torch.allclose(checkpoints[-1]["losses"], wanted, atol=1e-4)


def test_an_epoch_works_on_no_fewer_rows_than_the_minimum(monkeypatch):
    settings = dataclasses.replace(BASE, focus=0.4)
    monkeypatch.setattr(training, "MIN_EPOCH_ROWS", 100)
    assert [training._rows_worked_on(3, count, settings) for count in (50, 150, 250, 1000)] == [50, 100, 100, 400]
    assert training._rows_worked_on(training.WHOLE_EPOCHS, 1000, settings) == 1000


def statistics_by_hand(state, train=TRAIN):
    """Mean and variance of each channel of the first convolution's outputs, over all training rows."""
    network = MODELS["small_cnn"](SMALL)
    network.load_state_dict(state)
    with torch.no_grad():
        outputs = network.layers[0](as_input(train[0])).transpose(0, 1).flatten(1)
    return network.layers[1], outputs.mean(1), outputs.var(1)


def test_after_few_steps_batch_norm_statistics_are_those_of_the_last_weights(monkeypatch):
    """Three steps leave running statistics that are mostly those of initialization: 1 for every variance."""
    settings = dataclasses.replace(BASE, batch=150, learning_rate=0.01)
    layer, mean, variance = statistics_by_hand(fit(settings)[0])
    assert torch.allclose(layer.running_mean, mean, atol=1e-4)
    assert torch.allclose(layer.running_var, variance, rtol=1e-3)
    monkeypatch.setattr(training, "FEW_STEPS", 0)
    layer, _, variance = statistics_by_hand(fit(settings)[0])
    assert not torch.allclose(layer.running_var, variance, rtol=0.5)


class TestAverage:
    def test_is_the_mean_of_the_last_steps_weights(self, monkeypatch):
        settings = dataclasses.replace(BASE, average=0.5, epochs=4, optimizer="adamw")  # 3 steps an epoch
        model = Model("dropout_cnn", 0.0)
        states, step = [], torch.optim.AdamW.step
        networks = []
        monkeypatch.setitem(
            training.__dict__, "make_optimizers", lambda network, s: networks.append(network) or made(network, s)
        )
        made = optimizers.make_optimizers

        def look(self, *arguments):
            step(self, *arguments)
            states.append({name: one.clone() for name, one in networks[0].state_dict().items()})

        monkeypatch.setattr(torch.optim.AdamW, "step", look)
        state, _, _ = fit(settings, model=model)
        assert len(states) == 12
        for name, tensor in state.items():
            assert torch.allclose(tensor, torch.stack([one[name] for one in states[6:]]).mean(0), atol=1e-6)

    @pytest.mark.usefixtures("as_on_many_rows")
    def test_batch_norm_is_measured_with_the_averaged_weights(self):
        settings = dataclasses.replace(BASE, average=0.4, epochs=3, batch=150)
        layer, mean, variance = statistics_by_hand(fit(settings)[0])
        assert torch.allclose(layer.running_mean, mean, atol=1e-4)
        assert torch.allclose(layer.running_var, variance, rtol=1e-3)

    @pytest.mark.usefixtures("as_on_many_rows")
    @pytest.mark.parametrize(("keep", "passes"), [("last", 1), ("best", 2)])
    def test_all_rows_are_passed_only_for_weights_that_may_be_kept(self, monkeypatch, keep, passes):
        """Averaging begins in the second of three epochs, of three batches each; a pass has three batches too."""
        batches = []
        monkeypatch.setattr(training, "random_affine", lambda batch, affine: batches.append(len(batch)) or batch)
        settings = dataclasses.replace(BASE, average=0.5, epochs=3, keep=keep)
        _, history, _ = fit(settings)
        assert batches == [64, 64, 22] * (3 + passes)
        assert [row["averaged_weights"] for row in history] == ([0, 0, 1] if keep == "last" else [0, 1, 1])

    @pytest.mark.usefixtures("as_on_many_rows")
    def test_until_the_last_epoch_the_current_weights_are_validated(self):
        """Where the last epoch is kept: the figures of the others are those of a training without an average."""
        settings = dataclasses.replace(BASE, average=0.9, epochs=3)
        figures = [fit(one)[1] for one in (settings, dataclasses.replace(settings, average=0.0))]
        losses = [[row["validation_loss"] for row in history] for history in figures]
        assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]
        assert "averaged_weights" not in figures[1][0]

    def test_a_last_row_alone_is_measured_with_the_batch_before(self):
        """Dense batch norm cannot measure a single row: 129 rows are batches of 64 and 65."""
        model = Model("layers", layers=("dense 5", "batch_norm", "relu"))
        state, history, _ = fit(
            dataclasses.replace(BASE, average=0.5), model=model, train=(TRAIN[0][:129], TRAIN[1][:129])
        )
        assert len(history) == 3 and all(tensor.isfinite().all() for tensor in state.values())

    def test_batch_norm_is_measured_on_maps_as_exact_as_in_training(self, monkeypatch):
        asked = []
        monkeypatch.setattr(
            training, "random_affine", lambda batch, affine: asked.append(torch.is_autocast_enabled("cpu")) or batch
        )
        fit(dataclasses.replace(BASE, average=0.5, epochs=2, precision="bf16"))
        assert len(asked) > 2 * 3 and not any(asked)

    def test_validation_figures_are_those_of_the_averaged_network(self):
        settings = dataclasses.replace(BASE, average=0.9, epochs=3, keep="best")
        state, history, _ = fit(settings, validation=NONSENSE)
        best = min(history, key=lambda row: row["validation_loss"])
        network = MODELS["small_cnn"](SMALL).eval()
        network.load_state_dict(state)
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(network(as_input(NONSENSE[0])), NONSENSE[1])
        assert loss.item() == pytest.approx(best["validation_loss"], rel=1e-4)


@pytest.mark.parametrize("stop_after", [2, 3, 4])
def test_resumed_is_uninterrupted_bit_for_bit(stop_after):
    settings = dataclasses.replace(
        BASE, optimizer="muon", weight_decay=0.02, schedule="linear", warmup=0.3, epochs=4, focus=0.5, average=0.5
    )
    whole = fit(settings, Affine(rotation=10, shift=2))
    _, _, checkpoints = fit(settings, Affine(rotation=10, shift=2), stop_after=stop_after)
    resumed = fit(settings, Affine(rotation=10, shift=2), checkpoint=checkpoints[-1])
    assert same(whole[0], resumed[0])
    assert whole[1] == resumed[1]


def test_deterministic_is_asked_of_torch(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    training.be_deterministic()  # which `fit` calls where there is CUDA; a CPU's results repeat as they are
    assert asked == [True] and training.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.utils.deterministic.fill_uninitialized_memory


class TestFitAll:
    words = (*SHORT, "--set", "train.fit_all=true")

    @pytest.fixture
    def run(self, command, finished):
        place = (*self.words, "--workspace", finished)
        return command("--stage", "all", *place), finished, place

    def test_trains_on_every_row_and_evaluates_on_none(self, run):
        outcome, workspace, _ = run
        assert outcome.code == 0, outcome.err
        images, labels = digits_28(500)
        (made,) = (
            folder for folder in (workspace / "data/augmented").iterdir() if len(np.load(folder / "labels.npy")) == 400
        )
        assert np.array_equal(np.load(made / "images.npy"), images[:400])
        assert np.array_equal(np.load(made / "labels.npy"), labels[:400])
        folder = workspace / "data/runs/quick"
        assert {path.name for path in (folder / "evaluate").iterdir()} == {
            "metrics.json", "manifest.json", "context.json",
        }  # fmt: skip
        found = json.loads((folder / "evaluate/metrics.json").read_text())
        assert found["rows"] == 0 and found["accuracy"] is None and found["record"] is None
        assert "validation" not in (folder / "train/history.csv").read_text()
        receipt = json.loads((workspace / "submissions/quick/submission.json").read_text())
        assert receipt["expected_score"] is None and receipt["validation"]["accuracy"] is None
        assert "validation accuracy: none, trained on all rows" in outcome.out
        assert "expected score: none, the recipe's recorded accuracy was measured with different" in outcome.out
        assert receipt["message"] == "quick, no row held out"

    def test_and_back_brings_the_pictures_back(self, command, run):
        _, workspace, _ = run
        outcome = command("--stage", "all", *SHORT, "--workspace", workspace)
        assert "train.fit_all true -> false" in outcome.out
        assert (workspace / "data/runs/quick/evaluate/confusion.png").exists()
        assert "validation accuracy 0." in outcome.out

    def test_no_epoch_can_be_chosen(self, command, finished):
        run = command("--stage", "all", *self.words, "--set", "train.keep=best", "--workspace", finished)
        assert run.code == 2 and run.err.count("\n") == 1 and "set train.keep to last" in run.err

    def test_weights_say_so(self, run):
        _, workspace, _ = run
        manifest, _ = artifacts.read_manifest(workspace / "data/runs/quick/train")
        assert "validation_accuracy" not in manifest["numbers"]
