"""Optimizers: steps equal to PyTorch's, and Muon against the formulas of its source."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.nn import optimizers, trainer
from pipeline.nn.networks import make_network
from pipeline.nn.trainer import FitOptions, LabelledImages
from pipeline.recipes.settings import Affine, Model, Train
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(120)
TRAINING = LabelledImages(torch.from_numpy(IMAGES), torch.from_numpy(LABELS.astype(np.int64)))
DENSE = Model(name="layers", layers=("dense 20", "tanh"))
# A batch of all rows: their order changes sums by rounding only.
TRAIN = Train(
    epochs=3, batch_size=120, learning_rate=0.01, weight_decay=0.1, checkpoint_selection="last", precision="fp32"
)


def fit(train, model=DENSE):
    torch.manual_seed(0)
    options = FitOptions(train, Affine(), "cpu", progress_bar=False)
    return trainer.fit(make_network(model), TRAINING, None, options).state_dict


@pytest.mark.parametrize(
    ("settings", "make_plain"),
    [
        ({"optimizer": "adam"}, lambda weights: torch.optim.Adam(weights, 0.01, weight_decay=0.1)),
        ({"optimizer": "adamw"}, lambda weights: torch.optim.AdamW(weights, 0.01, weight_decay=0.1)),
        (
            {"optimizer": "sgd", "momentum": 0.9},
            lambda weights: torch.optim.SGD(weights, 0.01, momentum=0.9, weight_decay=0.1),
        ),
        ({"optimizer": "rmsprop"}, lambda weights: torch.optim.RMSprop(weights, 0.01, weight_decay=0.1)),
        ({"optimizer": "adagrad"}, lambda weights: torch.optim.Adagrad(weights, 0.01, weight_decay=0.1)),
        ({"optimizer": "adadelta"}, lambda weights: torch.optim.Adadelta(weights, 0.01, weight_decay=0.1)),
    ],
    ids=lambda value: value["optimizer"] if isinstance(value, dict) else "",
)
def test_weights_are_those_of_a_plain_loop(settings, make_plain):
    torch.manual_seed(0)
    network = make_network(DENSE)
    optimizer = make_plain(network.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(network(TRAINING.images[:, None].float() / 255), TRAINING.labels).backward()
        optimizer.step()
    state_dict = fit(TRAIN.replace(**settings))
    for name, weight in network.state_dict().items():
        assert torch.allclose(state_dict[name], weight, atol=1e-4), name


class TestSkippedSteps:
    """Steps without finite gradients in fp16, against a plain loop that calls the optimizer in the other steps only."""

    MODEL = Model(name="layers", layers=("conv 4 5x5 stride 2", "batch_norm", "relu", "conv 6 3x3", "relu", "dense 8"))

    def train(self, settings, skipped, skip_in_loop):
        """Weights and state of the optimizers after steps with random gradients, of which some are not finite."""
        torch.manual_seed(0)
        network = make_network(self.MODEL)
        made = optimizers.make_optimizers(network, TRAIN.replace(**settings))
        generator = torch.Generator().manual_seed(1)
        for is_skipped in skipped:
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            if is_skipped:
                network.layers[0].weight.grad[0, 0, 1, 1] = float("nan")
            if skip_in_loop:
                if is_skipped:
                    continue
                trainer.unscale_gradients(network.parameters(), 4.0)
                for optimizer in made:
                    optimizer.step()
            else:
                skip = trainer.unscale_gradients(network.parameters(), 4.0).float()
                for optimizer in made:
                    optimizers.step_unless(skip, optimizer)
        states = [state for optimizer in made for state in optimizer.state_dict()["state"].values()]
        return list(network.parameters()), states

    @pytest.mark.parametrize("skipped", [(0, 1, 0, 0, 1), (1, 0, 0), (1, 1)])
    @pytest.mark.parametrize("name", get_args(Train.model_fields["optimizer"].annotation))
    def test_neither_weights_nor_state_change(self, name, skipped):
        settings = {"optimizer": name, "momentum": 0.9} if name == "sgd" else {"optimizer": name}
        weights, states = self.train(settings, skipped, skip_in_loop=False)
        expected_weights, expected_states = self.train(settings, skipped, skip_in_loop=True)
        for weight, expected in zip(weights, expected_weights, strict=True):
            assert torch.equal(weight, expected)
        for number, state in enumerate(states):
            expected = expected_states[number] if expected_states else {}  # before the first step, there is no state
            for key, value in state.items():
                zero = torch.zeros(()) if value is not None else None
                assert value is None or torch.equal(value, expected.get(key, zero).expand_as(value)), key

    def test_a_training_in_fp16_skips_whole_steps(self, monkeypatch):
        """The second of three steps: also momentum, weight decay, and the steps that Adam counts."""
        unscale, step_unless = trainer.unscale_gradients, trainer.step_unless

        def fit_with_overflow(**settings):
            def overflow(parameters, scale):
                parameters = list(parameters)
                calls.append(scale)
                if len(calls) == 2:
                    parameters[0].grad.fill_(float("inf"))
                return unscale(parameters, scale)

            calls = []
            monkeypatch.setattr(trainer, "unscale_gradients", overflow)
            return fit(TRAIN.replace(precision="fp16", batch_size=40, epochs=1, **settings), self.MODEL)

        for settings in ({"optimizer": "muon"}, {"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}):
            weights = fit_with_overflow(**settings)
            with monkeypatch.context() as patch:
                patch.setattr(trainer, "step_unless", lambda skip, optimizer: skip.item() or optimizer.step())
                expected = fit_with_overflow(**settings)
            assert trainer.step_unless is step_unless
            assert all(torch.equal(weights[name], expected[name]) for name in expected)


class TestMuon:
    @pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16)])
    def test_orthogonalization_applies_the_polynomial_to_the_singular_values(self, shape):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
        a, b, c = optimizers.NEWTON_SCHULZ_COEFFICIENTS
        values = values / np.linalg.norm(values)
        for _ in range(optimizers.NEWTON_SCHULZ_STEPS):
            values = a * values + b * values**3 + c * values**5
        assert optimizers.orthogonalize(matrix).numpy() == pytest.approx(left @ np.diag(values) @ right, abs=1e-4)
        assert values.min() > 0.6 and values.max() < 1.3

    def test_steps(self):
        weight = torch.nn.Parameter(torch.randn(8, 2, 3, 3))
        muon = optimizers.Muon([weight], lr=0.1, weight_decay=0.5, momentum=0.8)
        expected, momentum = weight.detach().clone(), torch.zeros(8, 2, 3, 3)
        for seed in range(3):
            gradient = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
            weight.grad = gradient.clone()
            muon.step()
            momentum = 0.8 * momentum + 0.2 * gradient
            update = optimizers.orthogonalize((0.2 * gradient + 0.8 * momentum).view(8, 18)).view(8, 2, 3, 3)
            expected = expected * (1 - 0.1 * 0.5) - 0.1 * update
            assert torch.allclose(weight, expected, atol=1e-5)

    def test_gradients_of_zero_give_updates_of_zero(self):
        assert torch.equal(optimizers.orthogonalize(torch.zeros(4, 9)), torch.zeros(4, 9))

    def test_updates_the_convolutions_except_the_first(self):
        network = make_network(Model(name="small_cnn"))
        muon, adamw = optimizers.make_optimizers(network, TRAIN.replace(optimizer="muon", muon_learning_rate=0.3))
        shapes = [tuple(weight.shape) for weight in muon.param_groups[0]["params"]]
        assert shapes == [(64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)]
        n_parameters = sum(len(optimizer.param_groups[0]["params"]) for optimizer in (muon, adamw))
        assert n_parameters == len(list(network.parameters()))
        assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (0.3, TRAIN.learning_rate)

    def test_is_adamw_for_a_network_with_fewer_than_two_convolutions(self):
        model = Model(name="layers", layers=("conv 4 5x5 stride 4", "relu"))
        muon, adamw = (fit(TRAIN.replace(optimizer=name), model) for name in ("muon", "adamw"))
        assert all(torch.equal(muon[name], weight) for name, weight in adamw.items())
