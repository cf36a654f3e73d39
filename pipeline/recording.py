"""What happens inside a network while it trains: how each layer's weights are spread, and how large gradients are."""

import math

import torch

BINS = 100  # of a histogram, from the least to the greatest that a weight can be
BATCHES = (
    100  # of an epoch, at least, and less than twice as many, have their gradients looked at, where there are more
)
ROWS = 300  # about as many are kept of a training of more epochs


class Recorder:
    """Of each layer's weights (not its bias, not batch norm's): a histogram after an epoch, and its gradients.

    It only looks: no random number is drawn, nothing waits for the device but `row`.
    """

    def __init__(self, network):
        self.weights = {name: weight for name, weight in network.named_parameters() if weight.ndim > 1}
        self._start()

    def _start(self):
        self.steps, self.total, self.highest = 0, 0, 0

    def state(self):
        """What is known of the batches since the last row, for a checkpoint."""
        return {"steps": self.steps, "total": self.total, "highest": self.highest}

    def go_on(self, state):
        """Go on from a state, as if never stopped."""
        self.steps = state["steps"]
        device = next(iter(self.weights.values())).device
        self.total, self.highest = (torch.as_tensor(state[name]).to(device) for name in ("total", "highest"))

    def step(self):
        """Take in the gradients of a batch, before the optimizer's step."""
        gradients = [weight.grad for weight in self.weights.values()]
        # A call for all layers: with one a layer and size, small networks on small batches would lose a tenth.
        self.total = self.total + torch.stack(torch._foreach_norm(gradients, 1))
        highest = torch.stack(torch._foreach_norm(gradients, math.inf))
        self.highest = torch.maximum(highest, self.highest) if self.steps else highest
        self.steps += 1

    @torch.no_grad()
    def row(self, epoch):
        """What JSON can hold of an epoch, by the weights' names in the network, in order.

        counts: BINS numbers of weights, between -limit and limit. gradient_mean: the mean absolute gradient, over the
        batches looked at since the last row; gradient_max: the greatest absolute gradient of any weight in them; None
        before the first batch.
        """
        layers = {}
        for at, (name, weight) in enumerate(self.weights.items()):
            limit = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
            bins = ((weight / limit + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
            layers[name] = {
                "limit": limit.item(),
                "counts": torch.bincount(bins.flatten(), minlength=BINS).tolist(),
                "gradient_mean": self.total[at].item() / weight.numel() / self.steps if self.steps else None,
                "gradient_max": self.highest[at].item() if self.steps else None,
            }
        self._start()
        return {"epoch": epoch, "layers": layers}
