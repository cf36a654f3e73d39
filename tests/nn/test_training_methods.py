"""Training methods of the loop: hard examples, batch-norm statistics, and averaged weights."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.nn import batches, optimizers, trainer
from pipeline.nn.inference import as_input
from pipeline.nn.networks import make_network
from tests.nn.test_trainer import BASE, CNN, CNN_WITHOUT_BATCH_NORM, DENSE, TRAINING, WRONG_LABELS, fit
from tests.oracles import equal


class TestHardExamples:
    TRAIN = BASE.replace(hard_example_fraction=0.4, epochs=5, batch_size=50)

    @pytest.mark.usefixtures("as_on_many_rows")
    def test_rows_with_the_largest_losses_are_used_more_often(self, monkeypatch):
        """The rows of each epoch are identified by their pixels."""
        row_by_pixels = {image.numpy().tobytes(): row for row, image in enumerate(TRAINING.images)}
        assert len(row_by_pixels) == 150
        rows, losses = [], []
        select_rows = trainer.select_rows

        def record_losses(row_losses, n_rows):
            losses.append(row_losses.clone())
            return select_rows(row_losses, n_rows)

        def record_rows(batch, affine):
            pixels = (batch * 255).round().to(torch.uint8)
            rows.extend(row_by_pixels[image.numpy().tobytes()] for image in pixels[:, 0])
            return batch

        monkeypatch.setattr(trainer, "select_rows", record_losses)
        monkeypatch.setattr(trainer, "random_affine", record_rows)
        fit(self.TRAIN)
        used_rows = [rows[start:end] for start, end in ((0, 150), (150, 300), (300, 360), (360, 420), (420, 480))]
        assert len(rows) == 480
        assert sorted(used_rows[0]) == sorted(used_rows[1]) == list(range(150))
        for used, before in zip(used_rows[2:], losses[2:], strict=True):
            assert len(set(used)) == 60
            hardest = before.argsort(descending=True)[: round(60 * batches.HARD_SHARE)].tolist()
            assert set(hardest) <= set(used)
            assert used[:30] != hardest  # shuffled
            ranking = before.argsort(descending=True).tolist()
            assert set(used) != set(ranking[: len(used)])  # the others are chosen at random
        assert set(used_rows[2]) != set(used_rows[3])

    @pytest.mark.usefixtures("as_on_many_rows")
    def test_losses_are_those_of_each_row(self):
        """With a negligible learning rate, the loss of a row is that of the untrained network."""
        train = self.TRAIN.replace(learning_rate=1e-12, epochs=3)
        run = fit(train, CNN_WITHOUT_BATCH_NORM)
        trainer.seed_everything(train.seed)
        network = make_network(CNN_WITHOUT_BATCH_NORM)
        expected = cross_entropy(network(as_input(TRAINING.images)), TRAINING.labels, reduction="none")
        assert torch.allclose(run.checkpoints[-1]["row_losses"], expected, atol=1e-4)

    def test_an_epoch_uses_at_least_the_minimum_of_rows(self, monkeypatch):
        monkeypatch.setattr(batches, "MIN_EPOCH_ROWS", 100)
        n_rows = [batches.rows_per_epoch(3, total, self.TRAIN) for total in (50, 150, 250, 1000)]
        assert n_rows == [50, 100, 100, 400]
        assert batches.rows_per_epoch(batches.FULL_EPOCHS, 1000, self.TRAIN) == 1000

    @pytest.mark.usefixtures("as_on_many_rows")
    def test_short_epochs_are_not_all_validated(self):
        """Epochs 3 to 5 and 6 to 8 use 60 + 60 + 60 rows of 150. The weights are the same without validation."""
        train = self.TRAIN.replace(epochs=10)
        run, without = fit(train, test=WRONG_LABELS), fit(train, validation=None)
        for name in ("validation_loss", "validation_accuracy", "test_accuracy"):
            assert [row["epoch"] for row in run.history if name in row] == [1, 2, 5, 8, 10]
        assert equal(run.state_dict, without.state_dict)
        assert [row["train_loss"] for row in run.history] == [row["train_loss"] for row in without.history]

    @pytest.mark.usefixtures("as_on_many_rows")
    def test_every_epoch_is_validated_if_the_best_is_kept(self):
        run = fit(self.TRAIN.replace(checkpoint_selection="best"), validation=WRONG_LABELS)
        assert all("validation_loss" in row for row in run.history)
        assert run.history.index(batches.selected_row(run.history, "best")) < 4


def assert_statistics_fit_the_weights(state_dict, is_close=True):
    """Compare batch norm's statistics with mean and variance of the convolution's outputs over all training rows."""
    network = make_network(CNN)
    network.load_state_dict(state_dict)
    convolution, batch_norm = network.layers[0], network.layers[1]
    with torch.no_grad():
        outputs = convolution(as_input(TRAINING.images)).transpose(0, 1).flatten(1)
    if not is_close:
        assert not torch.allclose(batch_norm.running_var, outputs.var(1), rtol=0.5)
        return
    assert torch.allclose(batch_norm.running_mean, outputs.mean(1), atol=1e-4)
    assert torch.allclose(batch_norm.running_var, outputs.var(1), rtol=1e-3)


class TestBatchNormStatistics:
    def test_are_estimated_again_after_few_steps(self, monkeypatch):
        """After three steps, the running statistics are mostly the initial ones: a variance of 1."""
        train = BASE.replace(batch_size=150, learning_rate=0.01)
        assert_statistics_fit_the_weights(fit(train).state_dict)
        monkeypatch.setattr(trainer, "FEW_STEPS", 0)
        assert_statistics_fit_the_weights(fit(train).state_dict, is_close=False)

    @pytest.mark.usefixtures("as_on_many_rows")
    def test_are_estimated_for_averaged_weights(self):
        assert_statistics_fit_the_weights(fit(BASE.replace(swa_fraction=0.4, batch_size=150)).state_dict)

    @pytest.mark.usefixtures("as_on_many_rows")
    @pytest.mark.parametrize(("selection", "averaged"), [("last", [0, 0, 1]), ("best", [0, 1, 1])])
    def test_are_estimated_only_for_weights_that_may_be_kept(self, monkeypatch, selection, averaged):
        """Averaging begins in the second of three epochs; an estimate takes as many batches as an epoch."""
        sizes = []
        monkeypatch.setattr(trainer, "random_affine", lambda images, affine: sizes.append(len(images)) or images)
        run = fit(BASE.replace(swa_fraction=0.5, checkpoint_selection=selection))
        assert [row["averaged_weights"] for row in run.history] == averaged
        assert sizes == [64, 64, 22] * (3 + sum(averaged))

    def test_are_estimated_from_inputs_in_fp32(self, monkeypatch):
        """As in training."""
        is_autocast = []

        def random_affine(batch, affine):
            is_autocast.append(torch.is_autocast_enabled("cpu"))
            return batch

        monkeypatch.setattr(trainer, "random_affine", random_affine)
        fit(BASE.replace(swa_fraction=0.5, epochs=2, precision="bf16"))
        assert len(is_autocast) > 2 * 3 and not any(is_autocast)


class TestWeightAveraging:
    def test_is_the_mean_over_the_last_steps(self, monkeypatch):
        train = BASE.replace(swa_fraction=0.5, epochs=4, optimizer="adamw")  # 3 steps per epoch
        states, networks = [], []
        make_optimizers, step = optimizers.make_optimizers, torch.optim.AdamW.step

        def record_network(network, train):
            networks.append(network)
            return make_optimizers(network, train)

        def record_state(optimizer):
            step(optimizer)
            states.append(copy.deepcopy(networks[0].state_dict()))

        monkeypatch.setattr(trainer, "make_optimizers", record_network)
        monkeypatch.setattr(torch.optim.AdamW, "step", record_state)
        run = fit(train, CNN_WITHOUT_BATCH_NORM)
        assert len(states) == 12
        for name, tensor in run.state_dict.items():
            assert torch.allclose(tensor, torch.stack([state[name] for state in states[6:]]).mean(0), atol=1e-6)

    def test_with_ema_decay_is_an_exponential_moving_average(self):
        train = BASE.replace(epochs=4, batch_size=150, learning_rate=0.01, swa_fraction=1.0, ema_decay=0.5)
        run = fit(train, DENSE)
        weights = [checkpoint["network"]["layers.1.weight"] for checkpoint in run.checkpoints]  # after each step
        expected = weights[0]
        for weight in weights[1:]:
            expected = 0.5 * expected + 0.5 * weight
        assert torch.allclose(run.state_dict["layers.1.weight"], expected, atol=1e-7)
        last = fit(train.replace(swa_fraction=0.0, ema_decay=0.0), DENSE).state_dict["layers.1.weight"]
        assert torch.equal(last, weights[-1]) and not torch.equal(last, expected)

    @pytest.mark.usefixtures("as_on_many_rows")
    def test_current_weights_are_validated_until_the_last_epoch(self):
        """If the last epoch is kept, the other rows of the history are those of a training without averaging."""
        averaged, plain = (fit(BASE.replace(swa_fraction=fraction)).history for fraction in (0.9, 0.0))
        losses = [[row["validation_loss"] for row in history] for history in (averaged, plain)]
        assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]
        assert "averaged_weights" not in plain[0]

    def test_history_measures_the_averaged_network(self):
        run = fit(BASE.replace(swa_fraction=0.9, checkpoint_selection="best"), validation=WRONG_LABELS)
        network = make_network(CNN).eval()
        network.load_state_dict(run.state_dict)
        with torch.no_grad():
            loss = cross_entropy(network(as_input(WRONG_LABELS.images)), WRONG_LABELS.labels).item()
        assert loss == pytest.approx(min(row["validation_loss"] for row in run.history), rel=1e-4)
