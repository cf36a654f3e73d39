"""The training loop does not wait for the device within an epoch, and rarely between epochs.

On a GPU, each `.item()`, each condition on a tensor and each copy to or from the device would make the CPU wait.
"""

import collections

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pipeline import config
from pipeline.nn import gan_training, training_loop
from pipeline.nn.models import make_network
from pipeline.nn.training_loop import FitOptions, LabelledImages

MAX_WAITS_PER_EPOCH = 6


class CountWaits(TorchDispatchMode):
    """Counts values that are read on the CPU, and copies between devices."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.counts[name] += 1
            if isinstance(args[0], torch._subclasses.FakeTensor):
                return 0.1 if args[0].is_floating_point() else 1
        result = function(*args, **(kwargs or {}))
        tensors = [item for item in tree_flatten((args, kwargs, result))[0] if isinstance(item, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors if tensor.dim()}) > 1:
            self.counts[name] += 1
        return result


def count_waits(recipe, n_batches, device, used):
    """Waits in three epochs of `n_batches` batches, without those of moving network and images to the device."""
    recipe = config.load_recipe(recipe)
    if recipe.has_gan:
        return count_waits_of_gan(recipe.gan.replace(precision=used, batch_size=8), n_batches, device)
    train = recipe.train.replace(batch_size=8, epochs=3)
    network = make_network(recipe.model, torch.zeros(4, 28, 28, dtype=torch.uint8))
    n_rows = n_batches * train.batch_size
    images = torch.zeros(n_rows, 28, 28, dtype=torch.uint8, device=device)
    data = LabelledImages(images, torch.zeros(n_rows, dtype=torch.int64, device=device))
    trainer = training_loop.Trainer(network, data, FitOptions(train, recipe.affine, device, used, progress_bar=False))
    progress = training_loop.tqdm(disable=True)
    with CountWaits() as waits:
        for _ in range(3):
            trainer.validate_epoch(trainer.train_epoch(progress), data, None)
    return sum(waits.counts.values())


def count_waits_of_gan(gan, n_batches, device):
    images = torch.zeros(8 * n_batches, 28, 28, dtype=torch.uint8, device=device)
    data = LabelledImages(images, torch.zeros(8 * n_batches, dtype=torch.int64, device=device))
    trainer, progress = gan_training.GanTrainer(data, gan, device), training_loop.tqdm(disable=True)
    with CountWaits() as waits:
        for _ in range(3):
            trainer.train_epoch(progress)
    return sum(waits.counts.values())


@pytest.mark.parametrize(
    ("recipe", "used"),
    [
        ("quick", "fp32"),
        ("quick", "fp16"),
        ("dropout_cnn", "fp32"),
        ("ladder/deeper", "bf16"),
    ],
)
def test_no_value_is_read_within_an_epoch(monkeypatch, recipe, used):
    """On the CPU, where a copy to the device costs nothing and is not counted."""
    monkeypatch.setattr(training_loop, "MIN_EPOCH_ROWS", 0)
    few, many = (count_waits(recipe, n_batches, "cpu", used) for n_batches in (3, 6))
    assert few == many and 1 <= few <= 3 * MAX_WAITS_PER_EPOCH


@pytest.mark.parametrize("recipe", ["gan/conditional", "gan/better"])
def test_no_value_is_read_within_an_epoch_of_a_gan(monkeypatch, recipe):
    """The losses and the images of an epoch are copied as a whole, which is not counted on the CPU."""
    monkeypatch.setattr(gan_training, "BATCH_NORM_BATCHES", 1)
    assert count_waits(recipe, 3, "cpu", "fp32") == 0


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="autograd supports fake CUDA tensors only where CUDA can be initialized"
)
@pytest.mark.gpu
@pytest.mark.parametrize("recipe", config.recipe_names())
def test_no_wait_within_an_epoch_on_fake_cuda_tensors(monkeypatch, recipe):
    """Includes copies, and raises an error if devices do not match. Nothing is computed."""
    monkeypatch.setattr(training_loop, "MIN_EPOCH_ROWS", 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        few, many = (count_waits(recipe, n_batches, "cuda", "bf16") for n_batches in (3, 6))
    assert few == many and few <= 3 * MAX_WAITS_PER_EPOCH
