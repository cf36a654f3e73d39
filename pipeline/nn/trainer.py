"""The training loop: mini-batches of images that stay on the device, with validation between epochs.

The loop waits for the device only between epochs, and opens no files. After each epoch it passes a checkpoint to a
callback. A training that continues from a checkpoint gives the same result as an uninterrupted one: every epoch seeds
the random number generators with (seed, epoch), so that their state is not needed.
"""

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from pipeline.dataset.affine import random_affine
from pipeline.errors import StageError
from pipeline.machine.memory import keep_freed_memory
from pipeline.nn.averaging import WeightAverage, estimate_batch_norm
from pipeline.nn.batches import FULL_EPOCHS, is_validated, rows_per_epoch, select_rows, split_into_batches
from pipeline.nn.cuda_graph import record
from pipeline.nn.inference import as_input, predict_logits
from pipeline.nn.initialization import seed_everything
from pipeline.nn.optimizers import Muon, make_optimizers, step_unless
from pipeline.nn.precision import autocast, choose_memory_format, keeps_gpu_busy, library_settings
from pipeline.nn.recorder import RECORDED_BATCHES, RECORDED_EPOCHS, Recorder
from pipeline.recipes.settings import Affine, Train
from pipeline.shapes import Bool, Float, Float32, Int64, UInt8

# Images per forward pass on a CPU, whose activations stay in its cache; gradients are accumulated over the batch.
CPU_MICRO_BATCH = 64

# Batches of the full size before the computation of gradients is recorded as a CUDA graph.
STEPS_BEFORE_GRAPH = 3

# Batch norm's running statistics are exponential averages over about ten steps. After a training with fewer steps than
# this they still contain statistics of early weights, and are estimated again with the current weights.
FEW_STEPS = 200

# A larger fraction of steps without finite gradients in an epoch stops a training in fp16, if it is more than one step
# or every step.
MAX_SKIPPED_STEPS = 0.1

BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"  # fits 80 columns with all figures

# tqdm's own lock includes a semaphore of the system, which a process that is killed would leave behind.
tqdm.set_lock(threading.RLock())

Checkpoint = dict[str, Any]


class LabelledImages(NamedTuple):
    """Images, or features that the network is a head for, and their labels, on the device."""

    images: UInt8[Tensor, "n 28 28"] | Float[Tensor, "n ..."]
    labels: Int64[Tensor, " n"]


@dataclass(frozen=True)
class FitOptions:
    """How to train a network."""

    train: Train  # with a precision other than "auto"
    affine: Affine
    device: str
    progress_bar: bool = True  # shown if stderr is a terminal


@dataclass
class FitResult:
    """A trained network."""

    state_dict: dict[str, Tensor]  # of the epoch that is kept
    history: list[dict[str, float]]  # a row per epoch
    record: list[dict[str, Any]]  # rows of `Recorder`, first that of the untrained network; [] without train.record


def fit(
    network: nn.Module,
    training: LabelledImages,
    validation: LabelledImages | None,
    options: FitOptions,
    test: LabelledImages | None = None,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> FitResult:
    """Train a network in place.

    validation: required if the epoch with the lowest validation loss is kept.
    test: if given, the accuracy on these images is measured too; it has no influence on the weights.
    checkpoint: of an earlier call of `on_epoch`, from which the training continues.
    on_epoch: called after each epoch. The tensors in the checkpoint change as the training continues; the rows of its
        lists "history" and "record" do not.

    The history has a row for each epoch, with measurements after those of `batches.is_validated`. Losses are means
    over the rows of the epoch: with label smoothing in training, without in validation.
    Raises FloatingPointError if a loss is not finite.
    """
    if options.device == "cpu":
        keep_freed_memory()
    train, trainer = options.train, Trainer(network, training, options)
    if checkpoint:
        load_checkpoint(trainer, checkpoint)
    disable = None if options.progress_bar else True
    with (
        library_settings(options.device, benchmark=not trainer.uses_graphs, deterministic=train.deterministic),
        tqdm(total=trainer.n_steps, initial=trainer.step, bar_format=BAR_FORMAT, disable=disable) as progress,
    ):
        while trainer.epoch < train.epochs:
            progress.set_description(f"epoch {trainer.epoch + 1}/{train.epochs}")
            row = trainer.train_epoch(progress)
            trainer.validate_epoch(row, validation, test)
            progress.set_postfix_str(_summary(row))
            on_epoch(trainer.state_dict())
    return trainer.result()


def load_checkpoint(trainer: Any, checkpoint: Checkpoint) -> None:
    """Continue from a checkpoint. Raises StageError if it is not one of this training."""
    try:
        trainer.load_state_dict(checkpoint)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise StageError(
            f"the checkpoint is damaged ({type(error).__name__}): --force trains the network from the start"
        ) from None


class Trainer:
    """A training and its state, which changes from epoch to epoch."""

    def __init__(self, network: nn.Module, training: LabelledImages, options: FitOptions) -> None:
        train, n_rows = options.train, len(training.images)
        self.options, self.training = options, training
        self.memory_format = choose_memory_format(options.device, options.train.precision)
        self.network: nn.Module = network.to(options.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.averaged: WeightAverage | None = None  # from the first averaged step on
        self.optimizers = make_optimizers(network, train)
        for group in self._parameter_groups():
            group["initial_lr"] = group["lr"]
        self.row_losses = torch.zeros(n_rows, device=options.device)  # of each row when it was last used
        n_full, n_part = (len(self._batch_sizes(epoch)) for epoch in (1, FULL_EPOCHS + 1))
        self.n_steps = min(train.epochs, FULL_EPOCHS) * n_full + max(0, train.epochs - FULL_EPOCHS) * n_part
        self.step = self.epoch = 0  # finished
        self.sums = torch.zeros(2, device=options.device)  # over the epoch: losses, skipped steps
        self.is_skipped = torch.zeros((), device=options.device)  # 1 if the gradients of this step are not finite
        self.uses_graphs = options.device == "cuda" and not keeps_gpu_busy(network, train.batch_size)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.graph_rows = torch.empty(0)  # of the batch that the graph computes the gradients of
        self.n_full_batches = 0  # in this process
        self.best_state: dict[str, Tensor] | None = None
        self.best_loss = math.inf
        self.history: list[dict[str, float]] = []
        self.recorder = Recorder(network) if train.record else None
        self.record = [self.recorder.row(0)] if self.recorder else []
        # With batch norm, a batch cannot be divided.
        has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
        self.micro_batch = CPU_MICRO_BATCH if options.device == "cpu" and not has_batch_norm else n_rows

    def _batch_sizes(self, epoch: int) -> list[int]:
        train = self.options.train
        return split_into_batches(rows_per_epoch(epoch, len(self.training.images), train), train.batch_size)

    def train_epoch(self, progress: tqdm) -> dict[str, float]:
        """Train for an epoch; returns the first columns of its row in the history."""
        options, train = self.options, self.options.train
        self.epoch += 1
        seed_everything(train.seed, self.epoch)
        self.network.train()
        self.sums.zero_()
        batch_sizes = self._batch_sizes(self.epoch)
        n_rows, record_interval = sum(batch_sizes), max(1, len(batch_sizes) // RECORDED_BATCHES)
        for batch in select_rows(self.row_losses, n_rows).split(batch_sizes):
            factor = learning_rate_factor(train, (self.step + 0.5) / self.n_steps, self.epoch)
            for group in self._parameter_groups():
                group["lr"] = group["initial_lr"] * factor
            self._compute_gradients(batch)
            if self.recorder and self.step % record_interval == 0:
                self.recorder.add_gradients()
            for optimizer in self.optimizers:
                if train.precision == "fp16":
                    step_unless(self.is_skipped, optimizer)
                else:
                    optimizer.step()
            if self.step >= (1 - train.swa_fraction) * self.n_steps:
                if self.averaged:
                    self.averaged.update(self.network)
                else:
                    self.averaged = WeightAverage(self.network, train.ema_decay)
            self.step += 1
            progress.update()
        total_loss, n_skipped = self.sums.tolist()
        row = {"epoch": self.epoch, "learning_rate": group["lr"], "train_loss": total_loss / n_rows}
        if options.train.precision == "fp16":
            row["skipped_steps"] = int(n_skipped)
            if n_skipped == len(batch_sizes) or n_skipped > max(1, MAX_SKIPPED_STEPS * len(batch_sizes)):
                raise FloatingPointError(
                    f"the gradients of {n_skipped:.0f} of {len(batch_sizes)} steps of epoch {self.epoch} exceed the "
                    "range of fp16: try --set train.precision=fp32"
                )
        return row

    def _compute_gradients(self, rows: Int64[Tensor, " rows"]) -> None:
        """Compute the gradients of a batch; on a GPU, by replaying a CUDA graph if there is one for its size."""
        if self.uses_graphs and len(rows) == self.options.train.batch_size:
            if self.n_full_batches == STEPS_BEFORE_GRAPH:
                self._record_graphs(rows)
            self.n_full_batches += 1
            if self.graph:
                self.graph_rows.copy_(rows)
                self.graph.replay()
                return
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=not self.graph)  # the graphs use the tensors of these gradients
        self._backward(rows)

    def _record_graphs(self, rows: Int64[Tensor, " rows"]) -> None:
        self.graph_rows = rows.clone()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)  # a replay writes gradients instead of adding to them
        self.graph = record(lambda: self._backward(self.graph_rows))
        for optimizer in self.optimizers:
            if isinstance(optimizer, Muon):
                optimizer.record_graph()

    def _backward(self, rows: Int64[Tensor, " rows"]) -> None:
        """Add the gradients of a batch to those of the parameters."""
        options, train, (images, labels) = self.options, self.options.train, self.training
        for part in rows.split(self.micro_batch):
            inputs = self._as_input(images[part])
            with autocast(options.device, train.precision):
                logits = self.network(inputs)
            losses = _losses(logits.float(), labels[part], train, train.label_smoothing)
            loss = losses.sum() if train.precision == "fp16" else losses.sum() / len(rows)
            loss.backward()
            self.row_losses[part] = losses.detach()
            self.sums[0].add_(losses.detach().sum())
        if train.precision == "fp16":
            self.is_skipped.copy_(unscale_gradients(self.network.parameters(), len(rows)))
            self.sums[1].add_(self.is_skipped)

    def validate_epoch(
        self, row: dict[str, float], validation: LabelledImages | None, test: LabelledImages | None
    ) -> None:
        """Measure the weights, if the epoch is validated; complete the row of the history; copy the best weights."""
        options, train = self.options, self.options.train
        is_last = self.epoch == train.epochs
        network = self.network
        if not is_validated(self.epoch, len(self.training.images), train):
            validation = test = None
        # The batch-norm statistics of averaged weights require a pass over all rows. If the last epoch is kept, this is
        # done after the last epoch only, and the other epochs validate the current weights.
        if self.averaged and (train.checkpoint_selection == "best" or is_last):
            network = self.averaged.network
        is_averaged = network is not self.network
        if (is_averaged or self.n_steps < FEW_STEPS) and (validation or test or is_last):
            self._estimate_batch_norm(network)
        if validation:
            if train.swa_fraction:
                row["averaged_weights"] = int(is_averaged)
            logits = predict_logits(network, validation.images, options.device, options.train.precision)
            row["validation_loss"] = _losses(logits, validation.labels, train).mean().item()
            row["validation_accuracy"] = _accuracy(logits, validation.labels)
        if test:
            logits = predict_logits(network, test.images, options.device, options.train.precision)
            row["test_accuracy"] = _accuracy(logits, test.labels)
        for name, value in row.items():
            if not math.isfinite(value):
                advice = "or train.precision=fp32" if train.precision == "fp16" else ""
                raise FloatingPointError(
                    f"{name} is {value} in epoch {self.epoch}: try a smaller train.learning_rate {advice}".rstrip()
                )
        self.history.append(row)
        if train.checkpoint_selection == "best" and row["validation_loss"] < self.best_loss:
            self.best_loss = row["validation_loss"]
            self.best_state = copy.deepcopy(network.state_dict())
        if self.recorder and (is_last or self.epoch % math.ceil(train.epochs / RECORDED_EPOCHS) == 0):
            self.record.append(self.recorder.row(self.epoch))

    def result(self) -> FitResult:
        """The result after the last epoch."""
        last = self.averaged.network if self.averaged else self.network
        return FitResult(self.best_state or last.state_dict(), self.history, self.record)

    def state_dict(self) -> Checkpoint:
        """The checkpoint, whose tensors are those of the training."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "row_losses": self.row_losses,
            "best_state": self.best_state,
            "history": self.history,
            "record": self.record,
            "recorder": self.recorder.state_dict() if self.recorder else None,
        }

    def load_state_dict(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        self.network.load_state_dict(checkpoint["network"])
        if checkpoint["averaged"]:
            self.averaged = WeightAverage(self.network, self.options.train.ema_decay)
            self.averaged.load_state_dict(checkpoint["averaged"])
        for optimizer, state in zip(self.optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.row_losses.copy_(checkpoint["row_losses"])
        self.best_state, self.history = checkpoint["best_state"], list(checkpoint["history"])
        if self.best_state:
            self.best_loss = min(row["validation_loss"] for row in self.history)
        if self.recorder:
            self.record = list(checkpoint["record"])  # without the first epochs if they were not recorded
            if checkpoint["recorder"]:
                self.recorder.load_state_dict(checkpoint["recorder"])

    def _parameter_groups(self) -> Iterator[dict[str, Any]]:
        return (group for optimizer in self.optimizers for group in optimizer.param_groups)

    def _as_input(self, images: UInt8[Tensor, "n 28 28"] | Float[Tensor, "n ..."]) -> Float32[Tensor, "n ..."]:
        """The input of the network: randomly distorted images, or features."""
        inputs = as_input(images, self.memory_format)
        return inputs if images.is_floating_point() else random_affine(inputs, self.options.affine)

    def _estimate_batch_norm(self, network: nn.Module) -> None:
        """Estimate the batch-norm statistics of a network's current weights over all training rows."""
        options, images = self.options, self.training.images

        def batches() -> Iterator[Float32[Tensor, "n ..."]]:
            for batch in images.split(split_into_batches(len(images), options.train.batch_size)):
                with torch.autocast(options.device, enabled=False):  # as in training
                    inputs = self._as_input(batch)
                yield inputs

        with autocast(options.device, options.train.precision):
            estimate_batch_norm(network, batches())


def unscale_gradients(parameters: Iterable[nn.Parameter], scale: float) -> Bool[Tensor, ""]:
    """Divide gradients by `scale`; if one is not finite, set all to 0. Returns whether that was so, on the device.

    In fp16, the loss is the sum over the batch instead of the mean: the gradients of single rows would be too small for
    its range. This is a static loss scale equal to the batch size.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_div_(gradients, scale)
    is_skipped = nn.utils.get_total_norm(gradients).isfinite().logical_not()
    for gradient in gradients:
        gradient.masked_fill_(is_skipped, 0)
    return is_skipped


def learning_rate_factor(train: Train, progress: float, epoch: int) -> float:
    """The factor of the learning rate at a step.

    progress: the fraction of all steps before it, from 0 to 1.
    epoch: counted from 1.
    """
    if progress < train.warmup:
        return progress / train.warmup
    progress = (progress - train.warmup) / (1 - train.warmup)
    match train.schedule:
        case "linear":
            return 1 - progress
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "exponential":
            return float(train.lr_gamma ** (epoch - 1))
        case "steps":
            return math.prod((factor for start, factor in train.steps if start <= epoch), start=1.0)
    return 1.0


def _losses(
    logits: Float32[Tensor, "n 10"], labels: Int64[Tensor, " n"], train: Train, label_smoothing: float = 0.0
) -> Float32[Tensor, " n"]:
    """Cross-entropy of each row."""
    if train.softmax_before_loss:
        logits = logits.softmax(1)
    return cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")


def _accuracy(logits: Float32[Tensor, "n 10"], labels: Int64[Tensor, " n"]) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def _summary(row: dict[str, float]) -> str:
    """The figures of an epoch in the progress bar."""
    names = {"validation_accuracy": "val_acc", "train_loss": "loss", "validation_loss": "val_loss"}
    return ", ".join(f"{label} {row[name]:.4f}" for name, label in names.items() if name in row)
