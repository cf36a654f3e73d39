"""The training of a GAN does not wait for the device within an epoch."""

import pytest
import torch

from pipeline.extras.generate import training
from pipeline.nn import trainer as training_loop
from pipeline.nn.trainer import LabelledImages
from pipeline.recipes import config
from tests.nn.test_device_waits import CountWaits


def count_waits_of_gan(gan, n_batches, device):
    images = torch.zeros(8 * n_batches, 28, 28, dtype=torch.uint8, device=device)
    data = LabelledImages(images, torch.zeros(8 * n_batches, dtype=torch.int64, device=device))
    trainer, progress = training.GanTrainer(data, gan, device), training_loop.tqdm(disable=True)
    with CountWaits(device) as waits:
        for _ in range(3):
            trainer.train_epoch(progress)
    return sum(waits.counts.values())


@pytest.mark.parametrize("recipe", ["gan/conditional", "gan/better"])
def test_no_value_is_read_within_an_epoch_of_a_gan(monkeypatch, recipe):
    """The losses and the images of an epoch are copied as a whole, which is not counted on the CPU."""
    monkeypatch.setattr(training, "BATCH_NORM_BATCHES", 1)
    gan = config.load_recipe(recipe).gan.replace(precision="fp32", batch_size=8)
    assert count_waits_of_gan(gan, 3, "cpu") == 0
