"""The one training loop: large or small batches of uint8 images that lie on the device, one sync an epoch.

It opens no files: after each epoch it calls back with a checkpoint, from which `fit` goes on with the same result
as if it had never stopped. Every epoch draws its own random numbers from (seed, epoch), so no generator's state
needs to be kept.
"""

import copy
import math
import os

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from pipeline.augmentation import random_affine
from pipeline.inference import as_input, autocast, logits
from pipeline.memory import keep_freed_memory
from pipeline.optimizers import make_optimizers
from pipeline.recording import BATCHES, ROWS, Recorder
from pipeline.settings import Affine, Train

# On a CPU a large batch is worked off in parts whose activations stay in its cache; the gradient is that of the whole
# batch. dropout_cnn on 2 cores, images/s with parts of 32, 64, 128 and 4,096: in bf16 1,550, 2,290, 2,010 and 930, in
# fp32 1,430, 1,540, 1,280 and 520.
CPU_PART = 64

# With train.focus below 1: so many epochs work on all rows before losses are known well enough to choose by, and so
# much of the later ones is chosen by loss. A share of 0.5, 0.7 and 0.9 gave 0.9959, 0.9957 and 0.9956, deviations
# 0.0002 over 4 runs: it matters little.
WHOLE_EPOCHS = 2
HARD_SHARE = 0.5
# An epoch never uses fewer rows than this (or all rows, if there are fewer): on small data, a fraction of the rows
# gives too few steps. Error of `quick` trained on 1,000, 2,800 and 6,000 rows of train.csv, 4 seeds: 6.0, 1.9 and 1.0%
# without this limit, 2.4, 1.2 and 0.8% with it.
MIN_EPOCH_ROWS = 8192
# Batch norm's running statistics are exponential averages over some ten steps. When a training has fewer steps than
# this, they still contain the statistics of early weights and are measured again with the current ones. `quick` on
# 1,000 rows, 4 seeds: 3.4% error instead of 6.0% (focus 0.35), 2.2% instead of 2.4% (all rows in each epoch).
FEW_STEPS = 200

BAR = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"  # fits 80 columns with all figures


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


def be_deterministic():
    """Let CUDA take only algorithms that repeat bit for bit; an operation that has none raises RuntimeError."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # no result depends on it, and it costs time


def seed_everything(*numbers):
    """Seed torch's generators, on all devices, from a sequence of numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def rate_factor(settings: Train, progress, epoch):
    """What the learning rate is multiplied with in an epoch (the first is 1), `progress` (0 to 1) of all steps done."""
    if progress < settings.warmup:
        return progress / settings.warmup
    if settings.schedule == "exponential":
        return settings.decay ** (epoch - 1)
    if settings.schedule == "steps":
        return math.prod(factor for start, factor in settings.steps if start <= epoch)
    done = (progress - settings.warmup) / (1 - settings.warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


def fit(
    network,
    train,
    validation,
    settings: Train,
    affine: Affine,
    device,
    precision,
    checkpoint,
    after_epoch,
    bar=True,
    watched=None,
):
    """Train `network` in place; returns the state dict to keep, the history, each epoch's answers for `watched`, and
    what was recorded: rows of `Recorder`, the first of them before training; [] unless the settings ask for it.

    train, validation: pairs of uint8 images (n, 28, 28) and int64 labels (n,), tensors on the device; validation may
        be None where the last epoch is kept.
    checkpoint: what `after_epoch` was last called with, or None to start.
    after_epoch: called after each epoch with {"epoch", "network", "optimizers", "losses", "average", "best",
        "history", "answers", "record", "recorder"}; "best" copies the state of least validation loss so far, None where
        the last is kept.
    bar: show a progress bar, where somebody looks.
    watched: uint8 images (n, 28, 28), without labels; the answers are a list of uint8 tensors (n,), one an epoch.
    Losses are means over the rows worked on, of what is minimized: with the settings' label smoothing in training,
    without it in validation.
    """
    images, labels = train
    if device == "cpu":
        keep_freed_memory()
    if settings.deterministic and device == "cuda":
        be_deterministic()
    network.to(device, memory_format=torch.channels_last)
    optimizers = make_optimizers(network, settings)
    highest = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    losses = torch.zeros(len(images), device=device)  # of each row, when it was last worked on
    first, best, history, answers, average = 1, None, [], [], None
    recorder = Recorder(network) if settings.record else None
    record = [recorder.row(0)] if recorder and not checkpoint else []
    if checkpoint:
        network.load_state_dict(checkpoint["network"])
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        losses.copy_(checkpoint["losses"])
        if checkpoint["average"]:
            average = _averaged(network, settings)
            average.load_state_dict(checkpoint["average"])
        first, best, history = checkpoint["epoch"] + 1, checkpoint["best"], list(checkpoint["history"])
        answers = list(checkpoint["answers"])
        if recorder and checkpoint.get("recorder"):  # what was begun without a record has one from here on
            record = list(checkpoint["record"])
            recorder.go_on(checkpoint["recorder"])

    groups = [
        group for optimizer in optimizers for group in optimizer.param_groups
    ]  # not before: loading makes new ones
    counts = [_rows_worked_on(epoch, len(images), settings) for epoch in range(1, settings.epochs + 1)]
    batches = [_batches(count, settings.batch) for count in counts]
    steps = [len(sizes) for sizes in batches]
    part = _part_size(network, settings, device)
    with tqdm(
        total=sum(steps), initial=sum(steps[: first - 1]), bar_format=BAR, disable=None if bar else True
    ) as shown:
        for epoch in range(first, settings.epochs + 1):
            shown.set_description(f"epoch {epoch}/{settings.epochs}")
            seed_everything(settings.seed, epoch)
            network.train()
            order = _order(losses, counts[epoch - 1], settings)
            train_loss = torch.zeros((), device=device)
            for step, rows in enumerate(order.split(batches[epoch - 1]), sum(steps[: epoch - 1])):
                for group, rate in zip(groups, highest, strict=True):
                    group["lr"] = rate * rate_factor(settings, (step + 0.5) / sum(steps), epoch)
                for some in rows.split(part):
                    batch = random_affine(as_input(images[some]), affine)
                    with autocast(device, precision):
                        outputs = network(batch)
                    loss = _loss(outputs.float(), labels[some], settings, settings.label_smoothing)
                    (loss.sum() / len(rows)).backward()
                    losses[some] = loss.detach()
                    train_loss += loss.detach().sum()
                if recorder and step % max(1, steps[epoch - 1] // BATCHES) == 0:
                    recorder.step()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                if step >= (1 - settings.average) * sum(steps):
                    average = average or _averaged(network, settings)
                    average.update_parameters(network)
                shown.update()
            row = {"epoch": epoch, "learning_rate": groups[-1]["lr"], "train_loss": train_loss.item() / len(order)}
            # Averaged weights need a pass over all rows for their batch-norm statistics. If the last epoch is kept,
            # this is done only after the last epoch; before, the current weights are validated.
            averaged = average is not None and (settings.keep == "best" or epoch == settings.epochs)
            kept = average.module if averaged else network
            if (averaged or sum(steps) < FEW_STEPS) and (validation or watched is not None or epoch == settings.epochs):
                _measure_batch_norm(kept, images, settings, affine, device, precision)
            if validation and settings.average:
                row["averaged_weights"] = int(averaged)
            if validation:
                found, said = _validate(kept, validation, settings, device, precision)
                row |= found
            history.append(row)
            if recorder and (epoch % math.ceil(settings.epochs / ROWS) == 0 or epoch == settings.epochs):
                record.append(recorder.row(epoch))
            if watched is not None:
                if not validation or watched is not validation[0]:
                    said = logits(kept, watched, device, precision)
                answers.append(said.argmax(1).to(torch.uint8).cpu())
            for name, value in row.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} is {value} in epoch {epoch}: try a smaller train.learning_rate")
            if settings.keep == "best" and (best is None or row["validation_loss"] < best["loss"]):
                # A copy: state_dict() holds references, which go on changing as training does.
                best = {"epoch": epoch, "loss": row["validation_loss"], "state": copy.deepcopy(kept.state_dict())}
            shown.set_postfix_str(_shown(row))
            after_epoch(
                {
                    "epoch": epoch,
                    "network": network.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "losses": losses,
                    "average": average and average.state_dict(),
                    "best": best,
                    "history": history,
                    "answers": answers,
                    "record": record,
                    "recorder": recorder and recorder.state(),
                }
            )
    last = average.module if average else network
    return (best["state"] if settings.keep == "best" else last.state_dict()), history, answers, record


def _shown(row):
    """What the bar tells of an epoch."""
    names = {"validation_accuracy": "val_acc", "train_loss": "loss", "validation_loss": "val_loss"}
    return ", ".join(f"{short} {row[name]:.4f}" for name, short in names.items() if name in row)


def _batches(count, batch):
    """How many rows each batch of an epoch takes: `batch`, and the last the rest.

    A last row alone goes with the batch before: batch norm cannot measure one.
    """
    whole, rest = divmod(count, batch)
    if rest == 1 and whole:
        return [batch] * (whole - 1) + [batch + 1]
    return [batch] * whole + [rest] * bool(rest)


def _rows_worked_on(epoch, count, settings):
    return count if epoch <= WHOLE_EPOCHS else max(math.ceil(count * settings.focus), min(count, MIN_EPOCH_ROWS))


def _order(losses, count, settings):
    """The `count` rows of an epoch in random order: of the greatest losses when last seen, the others by chance."""
    if count == len(losses):
        return torch.randperm(count).to(losses.device)
    ranking = losses.argsort(descending=True, stable=True)
    hard = round(count * HARD_SHARE)
    others = ranking[hard:]
    others = others[torch.randperm(len(others))[: count - hard].to(losses.device)]
    return torch.cat([ranking[:hard], others])[torch.randperm(count).to(losses.device)]


def _averaged(network, settings):
    """A copy of the network whose weights follow the mean of the steps', the last ones counting most with a decay."""
    decay = settings.average_decay
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay) if decay else None)


@torch.no_grad()
def _measure_batch_norm(network, images, settings, affine, device, precision):
    """Measure the batch-norm statistics of a network's current weights over all training rows."""

    def batches():
        for some in images.split(_batches(len(images), settings.batch)):
            with torch.autocast(torch.device(device).type, enabled=False):  # as in training, maps are not in bf16
                batch = random_affine(as_input(some), affine)
            yield batch

    with autocast(device, precision):
        update_bn(batches(), network)


def _part_size(network, settings, device):
    """How many images of a batch go through the network at a time; all, where batch norm ties them together."""
    tied = any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in network.modules())
    return settings.batch + 1 if tied or device != "cpu" else CPU_PART  # see _batches


def _loss(outputs, labels, settings, smoothing):
    """Cross-entropy of each row."""
    if settings.softmax_before_loss:
        outputs = outputs.softmax(1)
    return cross_entropy(outputs, labels, label_smoothing=smoothing, reduction="none")


def _validate(network, validation, settings, device, precision):
    images, labels = validation
    outputs = logits(network, images, device, precision)
    found = {
        "validation_loss": _loss(outputs, labels, settings, 0.0).mean().item(),
        "validation_accuracy": (outputs.argmax(1) == labels).float().mean().item(),
    }
    return found, outputs
