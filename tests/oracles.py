"""Plain computations, without batches, autocast or parts, that results of the pipeline are compared with."""

import numpy as np
import torch

from pipeline.nn import trainer
from pipeline.nn.networks import load_networks, make_network
from pipeline.nn.trainer import FitOptions, LabelledImages


def equal(first, second):
    """Whether two state dicts have equal tensors."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def shift(images, right, down):
    """Images (n, 28, 28) moved by whole pixels, filled with zeros."""
    shifted = np.zeros_like(images)
    for y in range(28):
        for x in range(28):
            if 0 <= y - down < 28 and 0 <= x - right < 28:
                shifted[:, y, x] = images[:, y - down, x - right]
    return shifted


def predict(network, images, shifts=((0, 0),)):
    """Probabilities (n, 10) in float32, averaged over shifted copies of the images."""
    network.eval()
    with torch.no_grad():
        copies = [torch.from_numpy(shift(images, *pixels))[:, None].float() / 255 for pixels in shifts]
        return np.mean([network(copy).softmax(1).numpy() for copy in copies], axis=0)


def predict_each(weights, images, shifts=((0, 0),)):
    """(probabilities, metadata) of each network in a weights file."""
    return [(predict(item.network, images, shifts), item.metadata) for item in load_networks(weights, "cpu")]


def train(recipe, seed, training, validation):
    """The result of the training loop for arrays (images, labels), in this process, with one CPU thread."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer.seed_everything(seed)
        images, labels = (
            [torch.from_numpy(array) for array in arrays] for arrays in zip(training, validation, strict=True)
        )
        parts = [LabelledImages(*pair) for pair in zip(images, [label.long() for label in labels], strict=True)]
        train = recipe.train.replace(seed=seed, precision="fp32")
        options = FitOptions(train, recipe.affine, "cpu", progress_bar=False)
        return trainer.fit(make_network(recipe.model), *parts, options)
    finally:
        torch.set_num_threads(n_threads)
