"""Averages of weights over steps, and batch-norm statistics of given weights; neither waits for the device."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.shapes import Float


class WeightAverage:
    """The average of a network's weights over steps: equal weights, or an exponential moving average.

    Equals torch.optim.swa_utils.AveragedModel, which counts its steps on the device and waits for the count in each.
    Batch-norm statistics are not averaged: `estimate_batch_norm` computes those of the averaged weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start with the present weights, the first that count. decay: of the moving average; 0 means equal weights."""
        self.network, self.decay, self.n_steps = copy.deepcopy(network), decay, 1

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Include the present weights of the network."""
        self.n_steps += 1
        weight = 1 - self.decay if self.decay else 1 / self.n_steps
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), weight)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"network": self.network.state_dict(), "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.network.load_state_dict(state["network"])
        self.n_steps = state["n_steps"]


@torch.no_grad()
def estimate_batch_norm(network: nn.Module, batches: Iterable[Float[Tensor, "n ..."]]) -> None:
    """Replace the running statistics of batch norm by their means over batches, with the present weights.

    Equals torch.optim.swa_utils.update_bn, which waits for the device in each layer. A network without batch norm is
    not run.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    network.train()
    for layer in layers:
        layer.reset_running_stats()
    for number, batch in enumerate(batches, 1):
        for layer in layers:
            layer.momentum = 1 / number
        network(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
