"""The optimizers by name, and Muon, which torch has for matrices only."""

import functools

import torch

from pipeline.settings import Train

STEPS = 5  # of the Newton-Schulz iteration
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of its polynomial: singular values come to lie within 0.7 and 1.2


def make_optimizers(network, settings: Train):
    """The optimizers of a network's parameters, each with its own learning rate: one, or two where `muon` is asked for.

    Muon takes the weights of the convolutions that follow the first; AdamW takes the rest, which is everything in a
    network with fewer than two convolutions.
    """
    everything, rate, decay = list(network.parameters()), settings.learning_rate, settings.weight_decay
    if settings.optimizer == "muon":
        hidden = [weight for weight in everything if weight.ndim == 4][1:]
        taken = {id(weight) for weight in hidden}
        rest = [weight for weight in everything if id(weight) not in taken]
        adamw = torch.optim.AdamW(rest, rate, weight_decay=decay, fused=True)
        return [Muon(hidden, settings.muon_rate, decay), adamw] if hidden else [adamw]
    if settings.optimizer == "sgd":
        return [torch.optim.SGD(everything, rate, settings.momentum, weight_decay=decay, fused=True)]
    return [KINDS[settings.optimizer](everything, rate, weight_decay=decay)]


KINDS = {
    "adam": functools.partial(torch.optim.Adam, fused=True),
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: each weight as a matrix (outputs, inputs x height x width).

    Source: K. Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024),
    https://kellerjordan.github.io/posts/muon/. Nesterov momentum; decay is decoupled, as in AdamW.
    """

    def __init__(self, weights, lr, weight_decay=0.0, momentum=0.9):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        """One step along the gradients that the weights hold."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                direction = weight.grad.lerp(state["momentum"], group["momentum"])
                matrix = direction.reshape(len(direction), -1)
                scale = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(matrix).view_as(direction), alpha=-group["lr"] * scale)


def orthogonal(matrix):
    """Roughly the nearest matrix with orthonormal rows, or columns where there are fewer of them.

    Each step maps X to (a + b XX' + c XX'XX') X; what comes before X is multiplied up on the small square XX' alone,
    which is twice as fast as step by step.
    """
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = wide @ wide.T
    size = gram.trace() + 1e-12  # the squared Frobenius norm: no singular value is larger than its root
    gram /= size
    product = None
    for _ in range(STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor
    made = product @ wide / size.sqrt()
    return made if matrix.shape[0] <= matrix.shape[1] else made.T
