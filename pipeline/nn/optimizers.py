"""The optimizers by name, and Muon for convolutions, since PyTorch's accepts matrices only."""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pipeline.nn.cuda_graph import record
from pipeline.recipes.settings import Train
from pipeline.shapes import Float32

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": functools.partial(torch.optim.Adam, fused=True),
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # move the singular values to between 0.7 and 1.2


def make_optimizers(network: nn.Module, train: Train) -> list[torch.optim.Optimizer]:
    """Create the optimizers of a network's parameters.

    With `train.optimizer` "muon", Muon takes the weights of all convolutions except the first, and AdamW takes the
    other parameters: all of them in a network with fewer than two convolutions.
    """
    parameters, lr, decay = list(network.parameters()), train.learning_rate, train.weight_decay
    if train.optimizer == "muon":
        hidden = [weight for weight in parameters if weight.ndim == 4][1:]
        hidden_ids = {id(weight) for weight in hidden}
        rest = [parameter for parameter in parameters if id(parameter) not in hidden_ids]
        adamw = torch.optim.AdamW(rest, lr, weight_decay=decay, fused=True)
        return [Muon(hidden, train.muon_learning_rate, decay), adamw] if hidden else [adamw]
    if train.optimizer == "sgd":
        return [torch.optim.SGD(parameters, lr, train.momentum, weight_decay=decay, fused=True)]
    return [OPTIMIZERS[train.optimizer](parameters, lr, weight_decay=decay)]


@torch.no_grad()
def step_unless(is_skipped: Float32[Tensor, ""], optimizer: torch.optim.Optimizer) -> None:
    """Take a step if `is_skipped` is 0; if it is 1, keep parameters and state, without waiting for the device.

    As torch.amp.GradScaler skips steps, which waits for the value. The gradients must be finite in both cases. What
    PyTorch keeps on the CPU although the parameters are on a GPU, a number of steps that RMSprop, Adagrad and Adadelta
    do not use, counts the skipped steps too.
    """

    def tensors() -> list[Tensor]:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        state = [value for weight in weights for value in optimizer.state.get(weight, {}).values()]
        return [item for item in (*weights, *state) if torch.is_tensor(item) and item.device == is_skipped.device]

    before = torch._foreach_mul(tensors(), is_skipped)
    optimizer.step()
    after = tensors()  # in the first step with more state, which starts at 0
    torch._foreach_mul_(after, 1 - is_skipped)
    torch._foreach_add_(after[: len(before)], before)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalized updates and decoupled weight decay.

    Each weight is treated as a matrix (outputs, inputs x height x width). Source: K. Jordan et al., Muon: an optimizer
    for hidden layers in neural networks (2024), https://kellerjordan.github.io/posts/muon/.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.9) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.directions: list[Tensor] = []  # of the step, for each weight
        self.graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights by their gradients."""
        if self.graph:
            self.graph.replay()
        else:
            self._compute_directions()
        directions = iter(self.directions)
        for group in self.param_groups:
            for weight, direction in zip(group["params"], directions, strict=False):
                scale = max(1, len(weight) / (weight.numel() // len(weight))) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"] * scale)

    def record_graph(self) -> None:
        """Record the computation of directions as a CUDA graph; gradients must stay in their present tensors."""
        self.graph = record(self._compute_directions)

    @torch.no_grad()
    def _compute_directions(self) -> None:
        self.directions = []
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"])
                self.directions.append(orthogonalize(update.reshape(len(update), -1)).view_as(update))


def orthogonalize(matrix: Float32[Tensor, "rows columns"]) -> Float32[Tensor, "rows columns"]:
    """Approximate the nearest matrix with orthonormal rows, or columns if there are fewer, by Newton-Schulz iteration.

    A step maps X to (aI + b XX' + c XX'XX') X. The factors of all steps, small square matrices, are multiplied first
    and X last, which takes half the time.
    """
    is_wide = matrix.shape[0] <= matrix.shape[1]
    wide = matrix if is_wide else matrix.T
    gram = wide @ wide.T
    squared_norm = gram.trace() + 1e-12  # Frobenius: no singular value is larger than its root
    gram /= squared_norm
    product = factor = _polynomial(gram)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    orthogonal = product @ wide / squared_norm.sqrt()
    return orthogonal if is_wide else orthogonal.T


def _polynomial(gram: Float32[Tensor, "rows rows"]) -> Float32[Tensor, "rows rows"]:
    """The factor of a step: aI + b XX' + c XX'XX'."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor
