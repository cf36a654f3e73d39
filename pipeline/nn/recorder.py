"""Records weight histograms and gradient sizes of each layer during a training."""

import math
from typing import Any

import torch
from torch import Tensor, nn

BINS = 100  # of a histogram, between the negative and the positive of the largest absolute weight
RECORDED_BATCHES = 100  # per epoch, at least, and fewer than twice as many, if the epoch has more
RECORDED_EPOCHS = 300  # at most, evenly spaced; the last epoch and the untrained network are recorded in addition


class Recorder:
    """Summarizes the weights of convolutions and dense layers and their gradients; biases and batch norm are left out.

    It draws no random numbers, and waits for the device only in `row`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.weights = {name: weight for name, weight in network.named_parameters() if weight.ndim > 1}
        self._reset()

    def _reset(self) -> None:
        self.n_batches = 0
        # Of the absolute gradients of each layer: their sum over batches, and their maximum.
        self.sums, self.maxima = torch.zeros(2, len(self.weights), device=next(iter(self.weights.values())).device)

    def state_dict(self) -> dict[str, Any]:
        """The statistics of the batches since the last row, for a checkpoint."""
        return {"n_batches": self.n_batches, "sums": self.sums, "maxima": self.maxima}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.n_batches = state["n_batches"]
        self.sums, self.maxima = (state[name].to(self.sums.device) for name in ("sums", "maxima"))

    def add_gradients(self) -> None:
        """Add the gradients of a batch; called before the step of the optimizer."""
        gradients: list[Tensor] = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        # One call for all layers: a call per layer would make small networks with small batches 10% slower.
        self.sums = self.sums + torch.stack(torch._foreach_norm(gradients, 1))
        self.maxima = torch.maximum(self.maxima, torch.stack(torch._foreach_norm(gradients, math.inf)))
        self.n_batches += 1

    @torch.no_grad()
    def row(self, epoch: int) -> dict[str, Any]:
        """Summarize an epoch in a form that JSON can hold, with layers by the names of their weights, in order.

        counts: BINS numbers of weights, between -limit and limit.
        gradient_mean, gradient_max: of the absolute gradients in the batches recorded since the last row; None if there
        were none.
        """
        layers = {}
        for (name, weight), total, maximum in zip(self.weights.items(), self.sums, self.maxima, strict=True):
            limit = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
            bins = ((weight / limit + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
            layers[name] = {
                "limit": limit.item(),
                "counts": torch.bincount(bins.flatten(), minlength=BINS).tolist(),
                "gradient_mean": total.item() / weight.numel() / self.n_batches if self.n_batches else None,
                "gradient_max": maximum.item() if self.n_batches else None,
            }
        self._reset()
        return {"epoch": epoch, "layers": layers}
