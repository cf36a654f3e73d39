"""gan_training: a plain loop as the oracle, losses by their definitions, resuming bit for bit, images of each epoch."""

import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from tqdm import tqdm

from pipeline.extras.generate import training
from pipeline.extras.generate.generators import Discriminator, make_generator
from pipeline.extras.generate.training import GanTrainer, fit_gan
from pipeline.nn.trainer import LabelledImages, seed_everything
from pipeline.recipes.settings import Gan
from pipeline.training.arrays import TrainingArrays
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(60)
TRAINING = LabelledImages(torch.from_numpy(IMAGES), torch.from_numpy(LABELS.astype(np.int64)))
SIZES = {"latent_size": 5, "generator_width": 4, "discriminator_width": 4}
DENSE = Gan(architecture="dense", epochs=2, batch_size=25, precision="fp32", **SIZES)
CONVOLUTIONAL = DENSE.replace(
    architecture="convolutional", projection=True, spectral_norm=True, loss="hinge", ema_decay=0.9, dropout=0.2
)


@pytest.fixture(autouse=True)
def few_statistics(monkeypatch):
    """Estimating batch norm's statistics takes longer than everything else."""
    monkeypatch.setattr(training, "BATCH_NORM_BATCHES", 1)


def fit(gan, checkpoint=None):
    """The result of a training, and its checkpoints."""
    checkpoints = []
    arrays, on_epoch = TrainingArrays(IMAGES, LABELS), lambda state: checkpoints.append(copy.deepcopy(state))
    result = fit_gan(arrays, gan, "cpu", checkpoint, on_epoch, progress_bar=False)
    return result, checkpoints


@pytest.mark.parametrize("gan", [DENSE, CONVOLUTIONAL], ids=["dense", "convolutional"])
def test_everything_is_computed_with_the_settings_of_the_training(gan, monkeypatch):
    """Also the batch-norm statistics of the averaged weights, which are estimated after the last epoch."""
    are_set = []

    @contextlib.contextmanager
    def library_settings(*arguments, **options):
        are_set.append(True)
        yield
        are_set.pop()

    def generating(trainer):
        assert are_set
        return original(trainer)

    original = GanTrainer.generating
    monkeypatch.setattr(training, "library_settings", library_settings)
    monkeypatch.setattr(GanTrainer, "generating", generating)
    fit(gan)


def test_weights_and_losses_are_those_of_a_plain_loop():
    result, _ = fit(DENSE.replace(learning_rate=0.001, discriminator_learning_rate=0.002, beta1=0.3))
    seed_everything(DENSE.seed)
    torch.randn(50, 5)  # the noise of the images that are kept
    generator, discriminator = make_generator(DENSE), Discriminator(DENSE)
    generator_optimizer = torch.optim.Adam(generator.parameters(), 0.001, (0.3, 0.999))
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), 0.002, (0.3, 0.999))

    def make_images(labels):
        return generator(torch.cat([torch.randn(len(labels), 5), one_hot(labels, 10).float()], 1))

    for epoch in (1, 2):
        seed_everything(DENSE.seed, epoch)
        losses = np.zeros(2)
        for rows in torch.randperm(60).split([25, 25, 10]):
            labels = TRAINING.labels[rows]
            logits = discriminator(make_images(labels), labels)
            loss = binary_cross_entropy_with_logits(logits, torch.ones(len(rows)))
            losses[0] += len(rows) * loss.item()
            generator_optimizer.zero_grad()
            loss.backward()
            generator_optimizer.step()
            fake = make_images(labels).detach()
            real = TRAINING.images[rows][:, None].float() / 255 * 2 - 1
            both = [binary_cross_entropy_with_logits(discriminator(images, labels), torch.full((len(rows),), target))
                    for images, target in ((real, 1.0), (fake, 0.0))]  # fmt: skip
            loss = sum(both) / 2
            losses[1] += len(rows) * loss.item()
            discriminator_optimizer.zero_grad()
            loss.backward()
            discriminator_optimizer.step()
        row = result.history[epoch - 1]
        assert [row["generator_loss"], row["discriminator_loss"]] == pytest.approx(losses / 60, rel=1e-4)
    for name, tensor in generator.state_dict().items():
        assert torch.allclose(result.state_dict[name], tensor, atol=1e-5), name


def test_the_hinge_loss_ignores_logits_beyond_the_margin():
    real, fake = torch.tensor([0.5, 3.0]), torch.tensor([-2.0, 0.25])
    assert training.discriminator_loss(real, fake, "hinge").item() == pytest.approx((0.5 / 2 + 1.25 / 2) / 2)
    assert training.generator_loss(fake, "hinge").item() == pytest.approx(0.875)


@pytest.mark.parametrize("gan", [DENSE, CONVOLUTIONAL], ids=["dense", "convolutional"])
def test_a_resumed_training_gives_the_same_bytes(gan):
    expected, checkpoints = fit(gan.replace(epochs=3))
    buffer = io.BytesIO()
    torch.save(checkpoints[0], buffer)
    checkpoint = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    resumed, _ = fit(gan.replace(epochs=3), checkpoint)
    assert resumed.history == expected.history and torch.equal(resumed.frames, expected.frames)
    assert all(torch.equal(resumed.state_dict[name], tensor) for name, tensor in expected.state_dict.items())


def test_the_last_frame_is_what_the_generator_makes():
    result, _ = fit(CONVOLUTIONAL)
    assert result.frames.shape == (2, 5, 10, 28, 28)
    generator = make_generator(CONVOLUTIONAL)
    generator.load_state_dict(result.state_dict)
    inputs = GanTrainer(TRAINING, CONVOLUTIONAL, "cpu").fixed_inputs
    assert torch.equal(inputs[:, 5:].argmax(1), torch.arange(50) % 10)
    images = training.generate(generator, inputs, "cpu", "fp32")
    assert torch.equal(images.view(5, 10, 28, 28), result.frames[-1])


def test_averaged_weights_are_the_moving_average():
    trainer = GanTrainer(TRAINING, CONVOLUTIONAL.replace(batch_size=60), "cpu")
    parameters = lambda: torch.cat([p.detach().flatten().clone() for p in trainer.generator.parameters()])  # noqa: E731
    expected = parameters()
    for decay in (2 / 11, 3 / 12, 4 / 13):  # at first, less than the setting's 0.9
        trainer.train_epoch(tqdm(disable=True))
        expected = decay * expected + (1 - decay) * parameters()
    averaged = torch.cat([parameter.flatten() for parameter in trainer.averaged.network.parameters()])
    assert torch.allclose(averaged, expected, atol=1e-6)


def test_digits_do_not_depend_on_how_many_are_generated_at_a_time(monkeypatch):
    generator = make_generator(DENSE)
    inputs, labels = training.random_inputs(23, 5, seed=3)
    assert labels.tolist() == [*range(10), *range(10), 0, 1, 2]
    images = training.generate(generator, inputs, "cpu", "fp32")
    monkeypatch.setattr(training, "GENERATE_BATCH", 7)
    difference = training.generate(generator, inputs, "cpu", "fp32").int() - images.int()
    assert difference.abs().max() <= 1  # rounding


def test_a_training_that_diverges_names_the_setting():
    with pytest.raises(FloatingPointError, match=r"gan\.learning_rate"):
        fit(DENSE.replace(learning_rate=1e30))
