"""The network before its first training step."""

from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.dataset.views import apply_view
from pipeline.nn.models import make_network
from pipeline.nn.training_loop import seed_everything
from pipeline.settings import Model
from pipeline.shapes import UInt8


def make_initial_network(
    model: Model,
    seed: int,
    weights: Mapping[str, Tensor] | None = None,
    images: UInt8[Tensor, "n 28 28"] | None = None,
) -> nn.Module:
    """Create a network with random weights that depend on the seed.

    weights: replace the random ones of these names.
    images: the training images, for `model.pixels`; the model's view is applied to them.
    """
    if images is not None and model.pixels == "standardised":  # the only scaling that depends on them
        images = apply_view(images, model.view)
    seed_everything(seed)
    network = make_network(model, images)
    network.load_state_dict(weights or {}, strict=False)
    return network
