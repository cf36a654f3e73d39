"""The one training loop: large or small batches of uint8 images that lie on the device, one sync an epoch.

It opens no files: after each epoch it calls back with a checkpoint, from which `fit` goes on with the same result
as if it had never stopped. Every epoch draws its own random numbers from (seed, epoch), so no generator's state
needs to be kept.
"""

import copy
import math

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from pipeline.augmentation import random_affine
from pipeline.inference import as_input, autocast, logits
from pipeline.recipe import Affine, Train

# On a CPU a large batch is worked off in parts whose activations stay in its cache; the gradient is that of the whole
# batch. dropout_cnn on 2 cores, images/s with parts of 32, 64, 128 and 4,096: in bf16 1,550, 2,290, 2,010 and 930, in
# fp32 1,430, 1,540, 1,280 and 520.
CPU_PART = 64


def choose_precision(settings: Train, device):
    """ "fp32" or "bf16": as the settings say, or for "auto" bf16 where the processor has instructions for it.

    The choice depends on the processor alone, so that the same machine gives the same weights.
    """
    if settings.precision != "auto":
        return settings.precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device == "cpu":
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return "bf16" if any(getattr(torch.cpu, test, bool)() for test in tests) else "fp32"
    return "fp32"


def seed_everything(*numbers):
    """Seed torch's generators, on all devices, from a sequence of numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def rate_factor(settings: Train, progress):
    """What the learning rate is multiplied with when `progress` (0 to 1) of all steps are done."""
    if progress < settings.warmup:
        return progress / settings.warmup
    done = (progress - settings.warmup) / (1 - settings.warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


def fit(network, train, validation, settings: Train, affine: Affine, device, precision, checkpoint, after_epoch):
    """Train `network` in place and return the state dict to keep and the history.

    train, validation: pairs of uint8 images (n, 28, 28) and int64 labels (n,), tensors on the device.
    checkpoint: what `after_epoch` was last called with, or None to start.
    after_epoch: called with {"epoch", "network", "optimizer", "best", "history"} after each epoch; "best" is a copy of
        the state of least validation loss so far (None where the last is kept).
    Losses are means over rows, of what is minimized: with the settings' label smoothing in training, without it in
    validation.
    """
    images, labels = train
    network.to(device, memory_format=torch.channels_last)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    optimizer = kind(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    first, best, history = 1, None, []
    if checkpoint:
        network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        first, best, history = checkpoint["epoch"] + 1, checkpoint["best"], list(checkpoint["history"])

    steps = math.ceil(len(images) / settings.batch)
    total = settings.epochs * steps
    part = _part_size(network, settings, device)
    with tqdm(total=total, initial=(first - 1) * steps, desc="train", unit="batch", disable=None) as bar:
        for epoch in range(first, settings.epochs + 1):
            seed_everything(settings.seed, epoch)
            network.train()
            order = torch.randperm(len(images)).to(device)
            train_loss = torch.zeros((), device=device)
            for step, rows in enumerate(order.split(settings.batch)):
                progress = ((epoch - 1) * steps + step + 0.5) / total
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * rate_factor(settings, progress)
                for some in rows.split(part):
                    batch = random_affine(as_input(images[some]), affine)
                    with autocast(device, precision):
                        outputs = network(batch)
                    loss = _loss(outputs.float(), labels[some], settings, settings.label_smoothing) / len(rows)
                    loss.backward()
                    train_loss += loss.detach() * len(rows)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                bar.update()
            row = {"epoch": epoch, "learning_rate": optimizer.param_groups[0]["lr"]}
            row["train_loss"] = train_loss.item() / len(images)
            row |= _validate(network, validation, settings, device, precision)
            history.append(row)
            for name in ("train_loss", "validation_loss"):
                if not math.isfinite(row[name]):
                    raise FloatingPointError(
                        f"{name} is {row[name]} in epoch {epoch}: try a smaller train.learning_rate"
                    )
            if settings.keep == "best" and (best is None or row["validation_loss"] < best["loss"]):
                # A copy: state_dict() holds references, which go on changing as training does.
                best = {"epoch": epoch, "loss": row["validation_loss"], "state": copy.deepcopy(network.state_dict())}
            bar.set_postfix(epoch=epoch, loss=f"{row['train_loss']:.4f}", accuracy=f"{row['validation_accuracy']:.4f}")
            after_epoch(
                {
                    "epoch": epoch,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "history": history,
                }
            )
    return (best["state"] if settings.keep == "best" else network.state_dict()), history


def _part_size(network, settings, device):
    """How many images of a batch go through the network at a time; all, where batch norm ties them together."""
    tied = any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in network.modules())
    return settings.batch if tied or device != "cpu" else CPU_PART


def _loss(outputs, labels, settings, smoothing):
    """Cross-entropy summed over rows."""
    if settings.softmax_before_loss:
        outputs = outputs.softmax(1)
    return cross_entropy(outputs, labels, label_smoothing=smoothing, reduction="sum")


def _validate(network, validation, settings, device, precision):
    images, labels = validation
    outputs = logits(network, images, device, precision)
    return {
        "validation_loss": _loss(outputs, labels, settings, 0.0).item() / len(labels),
        "validation_accuracy": (outputs.argmax(1) == labels).float().mean().item(),
    }
