"""What a trained network does, in numbers: its layers' outputs and weights, and which pixels its answers hang on.

Every network of `models` is a sequence of layers, which `steps` gives: the outputs between them need no hooks.
"""

import math

import numpy as np
import torch
from torch import nn

from pipeline.inference import as_input
from pipeline.models import Pixels

BATCH = 512  # images at a time
PATCH = 5  # pixels: the side of the square that occlusion paints over
WIDE = 1000  # features
FEATURES = 50  # principal components of features, before t-SNE


def steps(network):
    """The layers that an image goes through, in order: a list of modules."""
    if isinstance(network, nn.Sequential):
        return [step for part in network for step in steps(part)]
    if isinstance(getattr(network, "layers", None), nn.Sequential):
        return steps(network.layers)
    return [network]


def describe(step):
    """A layer in a word or three."""
    match step:
        case nn.Conv2d():
            return f"conv {step.kernel_size[0]}x{step.kernel_size[1]}, {step.out_channels}"
        case nn.Linear():
            return f"dense {step.out_features}"
        case nn.MaxPool2d() | nn.AvgPool2d():
            return f"{'max' if isinstance(step, nn.MaxPool2d) else 'average'} pool {step.kernel_size}"
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return "batch norm"
        case nn.AdaptiveAvgPool2d():
            return "global average"
        case Pixels():
            return "pixels scaled"
    return {"ReLU": "ReLU", "Tanh": "tanh", "SqueezeExcite": "squeeze, excite"}.get(type(step).__name__, "")


@torch.no_grad()
def outputs(network, image):
    """What each layer makes of one uint8 image (28, 28): pairs of its description and a numpy array, (channels, height,
    width) or (values,); without the layers that change nothing here (dropout, flattening).
    """
    network.eval()
    values, found = as_input(torch.as_tensor(image)[None]).to(_device(network)), []
    for step in steps(network):
        values = step(values)
        if words := describe(step):
            found.append((words, values[0].float().cpu().numpy()))
    return found


@torch.no_grad()
def features(network, images):
    """What the last layer is given of uint8 images (n, 28, 28): float32 (n, d), a numpy array."""
    network.eval()
    before, found = nn.Sequential(*steps(network)[:-1]), []
    for batch in torch.as_tensor(images).split(BATCH):
        found.append(before(as_input(batch).to(_device(network))).flatten(1).float().cpu())
    return torch.cat(found).numpy()


def reduce(values):
    """The principal components (n, at most FEATURES) of features (n, d), float32, without scaling them."""
    from sklearn.decomposition import PCA

    count = min(FEATURES, *values.shape)
    # Of 3,000 x 21,632 features all components take a minute and a half, the first by random projections four seconds.
    solver = "randomized" if values.shape[1] > WIDE else "full"
    return PCA(count, svd_solver=solver, random_state=0).fit_transform(values).astype(np.float32)


def silhouette(places, labels):
    """scikit-learn's mean silhouette of points (n, d) grouped by digit, from -1 to 1; None of fewer than two digits."""
    from sklearn.metrics import silhouette_score

    if not 1 < len(np.unique(labels)) < len(labels):
        return None
    return float(silhouette_score(places, labels))


def first_weights(network):
    """The weights of the first layer that has some, as images (outputs, height, width); its input has one channel."""
    step = next(step for step in steps(network) if isinstance(step, (nn.Conv2d, nn.Linear)))
    weights = step.weight.detach().float().cpu().numpy()
    side = math.isqrt(weights.shape[1])
    return weights[:, 0] if weights.ndim == 4 else weights.reshape(len(weights), side, side)


def last_weights(network):
    """The weights of the last layer (10, d)."""
    return steps(network)[-1].weight.detach().float().cpu().numpy()


def layer_weights(network):
    """Pairs of a name and the weights (flat) of each layer that has some, in order; by their names in the network."""
    names = {id(weight): name for name, weight in network.named_parameters()}
    found = {}
    for module in (part for step in steps(network) for part in step.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            values = module.weight.detach().float().cpu().numpy().ravel()
            found[names[id(module.weight)]] = (f"{len(found) + 1}: {describe(module)}", values)
    return found


def input_gradients(network, images, answers):
    """The gradient of each image's logit of its answer, by its pixels (from 0 to 1): (n, 28, 28)."""
    network.eval()
    pixels = as_input(torch.as_tensor(images)).to(_device(network)).requires_grad_()
    chosen = torch.as_tensor(answers, dtype=torch.int64, device=pixels.device)
    network(pixels).gather(1, chosen[:, None]).sum().backward()
    network.zero_grad(set_to_none=True)
    return pixels.grad[:, 0].cpu().numpy()


@torch.no_grad()
def occlusion(network, image, answer):
    """How much the probability of an answer falls where a square of PATCH pixels around a pixel is paper: (28, 28).

    Source: M. Zeiler and R. Fergus, Visualizing and understanding convolutional networks, ECCV 2014.
    """
    network.eval()
    image, half = torch.as_tensor(image), PATCH // 2
    painted = image.repeat(1 + image.numel(), 1, 1)  # the first as it is
    for at in range(image.numel()):
        row, column = divmod(at, image.shape[1])
        painted[1 + at, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1] = 0
    parts = [network(as_input(batch).to(_device(network))).float().softmax(1) for batch in painted.split(BATCH)]
    chances = torch.cat(parts)[:, answer].cpu().numpy()
    return (chances[0] - chances[1:]).reshape(image.shape)


def quantiles(counts, limit, parts):
    """Where `parts` (from 0 to 1) of the values of a histogram between -limit and limit lie below, by interpolation."""
    edges = np.linspace(-limit, limit, len(counts) + 1)
    below = np.concatenate([[0], np.cumsum(counts)]) / np.sum(counts)
    return np.interp(parts, below, edges)


def _device(network):
    return next(network.parameters()).device
