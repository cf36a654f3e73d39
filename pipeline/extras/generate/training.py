"""The training of a conditional GAN: alternating steps of discriminator and generator, on images on the device.

As in `nn.trainer`, nothing waits for the device within an epoch, and a training that continues from a checkpoint
gives the same result as an uninterrupted one.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus
from tqdm import tqdm

from pipeline.extras.generate.generators import N_CLASSES, Discriminator, as_generator_input, as_pixels, make_generator
from pipeline.extras.generate.spec import GanSpec
from pipeline.machine import devices
from pipeline.machine.memory import keep_freed_memory
from pipeline.nn.averaging import WeightAverage, estimate_batch_norm
from pipeline.nn.batches import split_into_batches
from pipeline.nn.initialization import seed_everything
from pipeline.nn.precision import LARGE_BATCH, autocast, choose_memory_format, describe_settings, library_settings
from pipeline.nn.trainer import BAR_FORMAT, Checkpoint, LabelledImages, load_checkpoint
from pipeline.recipes.settings import Gan, Recipe
from pipeline.shapes import Float, Float32, Int64, UInt8
from pipeline.training.arrays import TrainingArrays
from pipeline.training.classifier import as_labelled_images
from pipeline.training.task import Session, TrainingOutcome

FRAMES = "frames.npy"  # images of the same noise after each epoch
FRAME_ROWS = 5  # images of each class that are kept after every epoch
FRAME_BYTES = FRAME_ROWS * N_CLASSES * 28 * 28
GENERATE_BATCH = 500  # images generated at a time
BATCH_NORM_BATCHES = 20  # of GENERATE_BATCH, for the batch-norm statistics of averaged weights


@dataclass
class GanResult:
    """A trained generator."""

    state_dict: dict[str, Tensor]
    history: list[dict[str, float]]  # a row per epoch
    frames: UInt8[Tensor, "epochs rows classes 28 28"]  # images of the same noise after each epoch


def fit_gan(
    arrays: TrainingArrays,
    gan: Gan,
    device: str,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Checkpoint], None] = lambda checkpoint: None,
    progress_bar: bool = True,
) -> GanResult:
    """Train a generator and its discriminator on the images of all rows.

    gan: with "fp32" or "bf16" as precision.
    checkpoint: of an earlier call of `on_epoch`, from which the training continues.
    on_epoch: called after each epoch.

    Raises FloatingPointError if a loss is not finite.
    """
    if device == "cpu":
        keep_freed_memory()
    trainer = GanTrainer(as_labelled_images(arrays.images, arrays.labels, device), gan, device)
    if checkpoint:
        load_checkpoint(trainer, checkpoint)
    n_steps = len(trainer.batch_sizes) * gan.epochs
    initial = len(trainer.batch_sizes) * trainer.epoch
    with (
        library_settings(device, benchmark=gan.batch_size >= LARGE_BATCH, deterministic=gan.deterministic),
        tqdm(total=n_steps, initial=initial, bar_format=BAR_FORMAT, disable=None if progress_bar else True) as progress,
    ):
        while trainer.epoch < gan.epochs:
            progress.set_description(f"epoch {trainer.epoch + 1}/{gan.epochs}")
            row = trainer.train_epoch(progress)
            progress.set_postfix_str(
                f"generator loss {row['generator_loss']:.3f}, discriminator loss {row['discriminator_loss']:.3f}"
            )
            on_epoch(trainer.state_dict())
        return GanResult(trainer.generating().state_dict(), trainer.history, trainer.frames)


def fit_network(session: Session, spec: GanSpec, arrays: TrainingArrays) -> TrainingOutcome:
    """Train a conditional GAN; its generator is kept, with the images of each epoch."""
    gan = spec.gan
    result = fit_gan(arrays, gan, session.device, session.load_checkpoint(), session.after_epoch, session.progress_bar)
    numbers = {
        "precision": gan.precision,
        "parameters": sum(tensor.numel() for tensor in result.state_dict.values() if tensor.is_floating_point()),
    }
    settings = describe_settings(session.device, gan.precision, gan.batch_size >= LARGE_BATCH, gan.deterministic)
    outcome = session.outcome(
        result.state_dict, {"gan": gan.model_dump(mode="json")}, result.history, numbers, settings
    )
    buffer = io.BytesIO()
    np.save(buffer, result.frames.numpy())
    outcome.files[FRAMES] = buffer.getvalue()
    return outcome


class GanTrainer:
    """The training of a conditional GAN and its state, which changes from epoch to epoch."""

    def __init__(self, training: LabelledImages, gan: Gan, device: str) -> None:
        self.training, self.gan, self.device = training, gan, device
        self.memory_format = choose_memory_format(device, gan.precision)
        seed_everything(gan.seed)
        self.fixed_inputs = self._fixed_inputs()
        self.generator, self.discriminator = make_generator(gan), Discriminator(gan)
        for network in (self.generator, self.discriminator):
            network.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        betas = (gan.beta1, 0.999)
        rate = gan.discriminator_learning_rate or gan.learning_rate
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), gan.learning_rate, betas, fused=True)
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), rate, betas, fused=True)
        self.averaged = WeightAverage(self.generator, gan.ema_decay) if gan.ema_decay else None
        self.batch_sizes = split_into_batches(len(training.images), gan.batch_size)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.frames = torch.zeros(0, FRAME_ROWS, N_CLASSES, 28, 28, dtype=torch.uint8)

    def train_epoch(self, progress: tqdm) -> dict[str, float]:
        """Train for an epoch; returns its row of the history, and adds its frame."""
        self.epoch += 1
        seed_everything(self.gan.seed, self.epoch)
        self.generator.train()
        losses = torch.zeros(2, device=self.device)
        for rows in torch.randperm(len(self.training.images)).to(self.device).split(self.batch_sizes):
            labels = self.training.labels[rows]
            losses[0] += self._generator_step(labels) * len(rows)
            losses[1] += self._discriminator_step(self.training.images[rows], labels) * len(rows)
            progress.update()
        means = (losses / len(self.training.images)).tolist()
        row = {"epoch": self.epoch, "generator_loss": means[0], "discriminator_loss": means[1]}
        for name, value in row.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value} in epoch {self.epoch}: try a smaller gan.learning_rate")
        self.history.append(row)
        frame = generate(self.generating(), self.fixed_inputs, self.device, self.gan.precision)
        self.frames = torch.cat([self.frames, frame.view(1, FRAME_ROWS, N_CLASSES, 28, 28).cpu()])
        return row

    def _discriminator_step(self, images: UInt8[Tensor, "n 28 28"], labels: Int64[Tensor, " n"]) -> Float32[Tensor, ""]:
        """Update the discriminator with real images and generated ones of the same classes; returns its loss."""
        real = (images.unsqueeze(1).float() / 127.5 - 1).contiguous(memory_format=self.memory_format)
        with autocast(self.device, self.gan.precision):
            with torch.no_grad():
                fake = self.generator(self._inputs(labels)).float()
            logits = self.discriminator(torch.cat([real, fake]), torch.cat([labels, labels])).float()
        real_logits, fake_logits = logits.chunk(2)
        loss = discriminator_loss(real_logits, fake_logits, self.gan.loss)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimizer.step()
        return loss.detach()

    def _generator_step(self, labels: Int64[Tensor, " n"]) -> Float32[Tensor, ""]:
        """Update the generator with images of these classes; returns its loss."""
        self.discriminator.requires_grad_(False)
        with autocast(self.device, self.gan.precision):
            logits = self.discriminator(self.generator(self._inputs(labels)), labels).float()
        self.discriminator.requires_grad_(True)
        loss = generator_loss(logits, self.gan.loss)
        self.generator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.generator_optimizer.step()
        if self.averaged:
            # Less at first, as in TensorFlow's ExponentialMovingAverage: the random first weights should not count.
            n_steps = self.averaged.n_steps
            self.averaged.decay = min(self.gan.ema_decay, (1 + n_steps) / (10 + n_steps))
            self.averaged.update(self.generator)
        return loss.detach()

    def generating(self) -> nn.Module:
        """The generator whose images count: with averaged weights if `gan.ema_decay` is set."""
        if not self.averaged:
            return self.generator

        def batches() -> Iterator[Float32[Tensor, "n latent_and_classes"]]:
            for _ in range(BATCH_NORM_BATCHES):
                yield self._inputs(torch.arange(GENERATE_BATCH, device=self.device) % N_CLASSES)

        seed_everything(self.gan.seed, self.epoch, 1)
        with autocast(self.device, self.gan.precision):
            estimate_batch_norm(self.averaged.network, batches())
        return self.averaged.network

    def state_dict(self) -> Checkpoint:
        """The checkpoint, whose tensors are those of the training."""
        return {
            "epoch": self.epoch,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "history": self.history,
            "frames": self.frames,
        }

    def load_state_dict(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.epoch, self.history = checkpoint["epoch"], list(checkpoint["history"])
        self.frames = checkpoint["frames"]
        self.generator.load_state_dict(checkpoint["generator"])
        self.discriminator.load_state_dict(checkpoint["discriminator"])
        self.generator_optimizer.load_state_dict(checkpoint["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(checkpoint["discriminator_optimizer"])
        if self.averaged:
            self.averaged.load_state_dict(checkpoint["averaged"])

    def _inputs(self, labels: Int64[Tensor, " n"]) -> Float32[Tensor, "n latent_and_classes"]:
        return as_generator_input(torch.randn(len(labels), self.gan.latent_size, device=self.device), labels)

    def _fixed_inputs(self) -> Float32[Tensor, "n latent_and_classes"]:
        labels = torch.arange(FRAME_ROWS * N_CLASSES) % N_CLASSES
        return as_generator_input(torch.randn(len(labels), self.gan.latent_size), labels).to(self.device)


def discriminator_loss(
    real_logits: Float32[Tensor, " n"], fake_logits: Float32[Tensor, " n"], loss: str
) -> Float32[Tensor, ""]:
    """The mean loss over real and generated images: cross-entropy ("non_saturating") or hinge loss."""
    if loss == "hinge":
        return (relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()) / 2
    return (softplus(-real_logits).mean() + softplus(fake_logits).mean()) / 2


def generator_loss(fake_logits: Float32[Tensor, " n"], loss: str) -> Float32[Tensor, ""]:
    """The loss of the generator: -log of the probability of "real" ("non_saturating"), or minus the logit ("hinge")."""
    return -fake_logits.mean() if loss == "hinge" else softplus(-fake_logits).mean()


def check_memory(recipe: Recipe, device: str) -> None:
    """Raise UserError if training a recipe's GAN or generating its digits needs more memory than this machine has."""
    gan, n_samples = recipe.gan, recipe.generate.samples
    generated = n_samples * (4 * (gan.latent_size + N_CLASSES) + 28 * 28)
    devices.require_memory(max(2 * 4 * _count_parameters(gan), gan.epochs * FRAME_BYTES, generated), recipe.name)


def _count_parameters(gan: Gan) -> int:
    with torch.device("meta"):
        networks = make_generator(gan), Discriminator(gan)
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


@torch.inference_mode()
def generate(
    generator: nn.Module, inputs: Float[Tensor, "n latent_and_classes"], device: str, precision: str
) -> UInt8[Tensor, "n 28 28"]:
    """The images of a generator in evaluation mode, on the device."""
    generator.eval()
    with autocast(device, precision):
        return torch.cat([as_pixels(generator(batch)) for batch in inputs.split(GENERATE_BATCH)])


def random_inputs(
    n_images: int, latent_size: int, seed: int
) -> tuple[Float32[Tensor, "n inputs"], Int64[Tensor, " n"]]:
    """Inputs of a generator for images of all classes in turn, and their labels; on the CPU."""
    labels = torch.arange(n_images) % N_CLASSES
    noise = torch.randn(n_images, latent_size, generator=torch.Generator().manual_seed(seed))
    return as_generator_input(noise, labels), labels
