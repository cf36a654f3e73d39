"""Averaged weights and batch-norm statistics, compared with PyTorch's implementations, which wait for the device."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from pipeline.nn.averaging import WeightAverage, estimate_batch_norm


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 5))


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_averages_equal_those_of_pytorch(decay):
    network = make_network()
    average = WeightAverage(network, decay)
    expected = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay) if decay else None)
    expected.update_parameters(network)
    for _ in range(10):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += torch.randn_like(parameter)
        average.update(network)
        expected.update_parameters(network)
    for actual, reference in zip(average.network.parameters(), expected.module.parameters(), strict=True):
        assert torch.allclose(actual, reference, atol=1e-6) and not torch.equal(actual, torch.zeros_like(actual))


def test_an_average_continues_from_its_state():
    network = make_network()
    average = WeightAverage(network, 0.0)
    average.update(network)
    copied = WeightAverage(make_network(), 0.0)
    copied.load_state_dict(copy.deepcopy(average.state_dict()))
    with torch.no_grad():
        network[0].weight += 1
    average.update(network)
    copied.update(network)
    assert copied.n_steps == average.n_steps == 3
    assert torch.equal(average.network[0].weight, copied.network[0].weight)


def test_batch_norm_statistics_equal_those_of_pytorch():
    network, reference = make_network(), make_network()
    batches = torch.randn(5, 20, 1, 28, 28)
    estimate_batch_norm(network, iter(batches))
    update_bn(iter(batches), reference)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name]), name
    assert network[1].momentum == 0.1


def test_a_network_without_batch_norm_is_not_run():
    def batches():
        raise AssertionError("a batch was requested")
        yield

    estimate_batch_norm(nn.Linear(2, 2), batches())
