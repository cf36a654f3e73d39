"""Logits and probabilities of a trained network, with test-time augmentation."""

import contextlib

import torch
from tqdm import tqdm

from pipeline.settings import Predict
from pipeline.views import view

BATCH = {"cpu": 512, "cuda": 8192, "mps": 2048}  # images at a time; results do not depend on it beyond rounding


def autocast(device, precision):
    """The context in which convolutions and products run in `precision` ("fp32" or "bf16")."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def as_input(images):
    """What a network takes of uint8 images (n, 28, 28): float32 (n, 1, 28, 28) in [0, 1], channels last."""
    return images.unsqueeze(1).float().div_(255).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def logits(network, images, device, precision, bar=None):
    """Logits (n, 10), float32, on the device, of uint8 images (n, 28, 28) there; dropout off, batch norm fixed."""
    network.eval()
    parts = []
    with autocast(device, precision):
        for batch in images.split(BATCH[device]):
            parts.append(network(as_input(batch)).float())
            if bar:
                bar.update(len(batch))
    return torch.cat(parts)


def probabilities(network, images, settings: Predict, device, precision):
    """Probabilities (n, 10), a float32 numpy array, averaged over copies of the images shifted by `settings.shifts`.

    images: uint8 (n, 28, 28), a tensor on any device.
    """
    images, copies = images.to(device), len(settings.shifts)
    total = 0
    with tqdm(total=copies * len(images), desc="infer", unit="image", disable=None) as bar:
        for shift in settings.shifts:
            total = total + logits(network, slide(images, *shift), device, precision, bar).softmax(1)
    return (total / copies).cpu().numpy()


def average(networks, images, settings: Predict, device):
    """Mean of the probabilities (n, 10) of several networks: pairs of a network and what its file says of it."""
    return sum(of_file(*one, images, settings, device) for one in networks) / len(networks)


def of_file(network, about, images, settings: Predict, device):
    """The probabilities (n, 10) of a network for the view of the images, and in the precision, that its file tells."""
    shown = view(images.to(device), about["model"]["view"])
    return probabilities(network, shown, settings, device, about["precision"])


def slide(images, right, down):
    """Images (n, 28, 28) shifted by whole pixels, 0 where nothing moves in."""
    if not right and not down:
        return images
    return torch.nn.functional.pad(images, (right, -right, down, -down))
