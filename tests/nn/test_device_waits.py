"""The training loop does not wait for the device within an epoch, and rarely between epochs.

On a GPU, each `.item()`, each condition on a tensor and each copy to or from the device would make the CPU wait.
"""

import collections
import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pipeline.machine import devices
from pipeline.nn import batches, precision
from pipeline.nn import trainer as training_loop
from pipeline.nn.networks import make_network, trained_part
from pipeline.nn.trainer import FitOptions, LabelledImages
from pipeline.nn.transfer import Head
from pipeline.recipes import config

MAX_WAITS_PER_EPOCH = 6


class CountWaits(TorchDispatchMode):
    """Counts values that are read from a device, and copies between devices."""

    def __init__(self, device):
        super().__init__()
        self.device, self.counts = device, collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.counts[name] += args[0].device.type == self.device  # Adagrad reads its steps, which are on the CPU
            if isinstance(args[0], FakeTensor):
                return 0.1 if args[0].is_floating_point() else 1
        if name == "_fused_sgd_" and isinstance(args[0][0], FakeTensor):
            return None  # PyTorch 2.13 has no fake kernel for it
        result = function(*args, **(kwargs or {}))
        tensors = [item for item in tree_flatten((args, kwargs, result))[0] if isinstance(item, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors if tensor.dim()}) > 1:
            self.counts[name] += 1
        return result


def count_waits(recipe, n_batches, device, used):
    """Waits in three epochs of `n_batches` batches, without those of moving network and images to the device.

    With "cuda", all tensors on the device are fake. A network with a frozen extractor gets features.
    """
    recipe = config.load_recipe(recipe)
    train = recipe.train.replace(batch_size=8, epochs=3, precision=used)
    # Outside FakeTensorMode: a network that is created in it cannot be moved to another device.
    network = trained_part(make_network(recipe.model, torch.zeros(4, 28, 28, dtype=torch.uint8)))
    n_rows = n_batches * train.batch_size
    with FakeTensorMode(allow_non_fake_inputs=True) if device == "cuda" else contextlib.nullcontext():
        images = torch.zeros(n_rows, 28, 28, dtype=torch.uint8, device=device)
        if isinstance(network, Head):
            images = torch.zeros(n_rows, network.classifier[-1].in_features, dtype=torch.float16, device=device)
        data = LabelledImages(images, torch.zeros(n_rows, dtype=torch.int64, device=device))
        options = FitOptions(train, recipe.affine, device, progress_bar=False)
        trainer = training_loop.Trainer(network, data, options)
        progress = training_loop.tqdm(disable=True)
        with CountWaits(device) as waits:
            for _ in range(3):
                trainer.validate_epoch(trainer.train_epoch(progress), data, None)
    return sum(waits.counts.values())


@pytest.mark.parametrize(
    ("recipe", "used"),
    [
        ("quick", "fp32"),
        pytest.param("quick", "fp16", marks=pytest.mark.slow),
        ("dropout_cnn", "fp32"),
        ("ladder/deeper", "bf16"),
    ],
)
def test_no_value_is_read_within_an_epoch(monkeypatch, recipe, used):
    """On the CPU, where a copy to the device costs nothing and is not counted."""
    monkeypatch.setattr(batches, "MIN_EPOCH_ROWS", 0)
    few, many = (count_waits(recipe, n_batches, "cpu", used) for n_batches in (3, 6))
    assert few == many and 1 <= few <= 3 * MAX_WAITS_PER_EPOCH


@pytest.mark.skipif(
    bool(devices.why_unusable("cuda")), reason="autograd supports fake CUDA tensors only where CUDA can be initialized"
)
@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [name for name in config.recipe_names() if not name.startswith("gan/")])
def test_no_wait_within_an_epoch_on_fake_cuda_tensors(monkeypatch, recipe):
    """Includes copies, and raises an error if devices do not match. Nothing is computed.

    Of the GANs, which create their networks themselves, test_gpu.py tests this on the GPU.
    """
    monkeypatch.setattr(batches, "MIN_EPOCH_ROWS", 0)
    monkeypatch.setattr(precision, "LARGE_BATCH", 0)  # a replay would hide what is counted
    few, many = (count_waits(recipe, n_batches, "cuda", "bf16") for n_batches in (3, 6))
    assert few == many and 1 <= few <= 3 * MAX_WAITS_PER_EPOCH
