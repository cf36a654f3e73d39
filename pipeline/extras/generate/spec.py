"""The complete description of the training of a conditional GAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from pipeline.recipes import config
from pipeline.recipes.settings import Gan
from pipeline.training.pool import Pool
from pipeline.training.specs import check_epochs
from pipeline.training.task import resolve_precision
from pipeline.workflow import code, schemas
from pipeline.workflow.context import StageContext
from pipeline.workflow.store import FORMAT


class Epoch(schemas.Schema):
    """A row of the history."""

    epoch: schemas.Positive
    generator_loss: float
    discriminator_loss: float


@dataclass(frozen=True)
class GanSpec:
    """The complete description of the training of a conditional GAN, whose generator is kept."""

    gan: Gan  # with the resolved precision
    threads: int
    data: tuple[tuple[str, str], ...]
    fit: ClassVar[str] = "pipeline.extras.generate.training:fit_network"
    section: ClassVar[str] = "gan"
    is_recorded: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"gan-{self.gan.architecture}-seed{self.gan.seed}"

    @property
    def seed(self) -> int:
        return self.gan.seed

    @property
    def epochs(self) -> int:
        return self.gan.epochs

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{config.digest({**self.key()['settings'], 'data': self.data})}"

    def key(self) -> dict[str, Any]:
        """What the manifest of the training records."""
        return {
            "format": FORMAT,
            "stage": "network",
            "settings": {**config.flatten(self, ("gan",)), "threads": self.threads},
            "inputs": dict(self.data),
            "code": code.digest(["pipeline.extras.generate.training"]),
        }

    def check_history(self, history: list[dict[str, float]]) -> None:
        schemas.check(history, list[Epoch])
        check_epochs(history, self.gan.epochs)


def gan_spec(gan: Gan, inputs: StageContext, pool: Pool) -> GanSpec:
    """The spec of a GAN that is trained on the output of augment."""
    device = pool.worker_device()
    precision = pool.call(resolve_precision, gan.precision, device)
    if precision == "fp16":  # "auto" on a GPU without bf16; the losses of a GAN are not scaled for it
        precision = "fp32"
    threads = torch.get_num_threads() if device in ("cpu", "auto") else 0
    data = tuple((name, inputs.hashes[name]) for name in ("augment/images.npy", "augment/labels.npy"))
    return GanSpec(gan.replace(precision=precision), threads, data)
