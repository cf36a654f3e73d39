"""Training on a CUDA GPU (`pytest -m gpu`): the CPU as the oracle, resuming, several processes."""

import copy
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline import ROOT
from pipeline.machine import devices
from pipeline.nn import precision
from pipeline.nn import trainer as training_loop
from pipeline.nn.inference import predict_logits
from pipeline.nn.networks import make_network
from pipeline.nn.precision import choose_precision, library_settings
from pipeline.nn.trainer import FitOptions, LabelledImages
from pipeline.recipes.config import load_recipe
from pipeline.recipes.settings import MODELS, TRANSFER_MODELS, Affine, Model
from pipeline.training.arrays import TrainingArrays
from pipeline.training.extraction import extract_features
from tests.conftest import digits_28
from tests.nn.test_trainer import BASE, CNN, CNN_WITHOUT_BATCH_NORM
from tests.oracles import equal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(devices.why_unusable("cuda")), reason=devices.why_unusable("cuda")),
]
IMAGES, LABELS = digits_28(300)
CONVOLUTIONS = Model(name="layers", layers=(*CNN.layers, "conv 4 3x3"), dropout=0.2)
# Without batch norm: the gradient of a bias in front of it is 0 but for rounding, and Adam's first step is its sign.
WITHOUT_BATCH_NORM = Model(name="layers", layers=(*CNN_WITHOUT_BATCH_NORM.layers, "conv 4 3x3"))


@pytest.fixture(autouse=True)
def first_gpu_that_computes():
    devices.choose_device("cuda")


@pytest.fixture
def skip_without_bf16(used):
    if used == "bf16" and torch.cuda.get_device_capability() < (7, 5):
        pytest.skip("cuBLAS has no bf16 for this GPU: https://github.com/pytorch/pytorch/issues/57773")


def on_device(device, n_rows=300):
    labels = torch.from_numpy(LABELS[:n_rows].astype(np.int64))
    return LabelledImages(torch.from_numpy(IMAGES[:n_rows]).to(device), labels.to(device))


def fit(device, train=BASE, model=CONVOLUTIONS, checkpoint=None, n_rows=300, affine=None):
    """The result of a training, and its checkpoints."""
    training_loop.seed_everything(train.seed)
    options, checkpoints = FitOptions(train, affine or Affine(), device, progress_bar=False), []
    data = on_device(device, n_rows)
    result = training_loop.fit(
        make_network(model), data, data, options, checkpoint=checkpoint,
        on_epoch=lambda checkpoint: checkpoints.append(copy.deepcopy(checkpoint)),
    )  # fmt: skip
    return result, checkpoints


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd", "rmsprop", "adagrad", "adadelta"])
def test_one_step_in_fp32_is_that_of_the_cpu(optimizer):
    """All rows in one batch, without dropout: neither the order of rows nor random masks matter.

    On a CPU, another order of rows and memory format, or fp64, change a step by at most 0.01% of its size, random
    errors of 0.01% of the largest gradient by 0.1%, and a learning rate that is 10% larger by 10%.
    """
    train = BASE.replace(epochs=1, batch_size=300, optimizer=optimizer, learning_rate=0.01)
    cpu, gpu = (fit(device, train, WITHOUT_BATCH_NORM)[0] for device in ("cpu", "cuda"))
    training_loop.seed_everything(train.seed)
    start = make_network(WITHOUT_BATCH_NORM).state_dict()
    for name, expected in cpu.state_dict.items():
        change = (expected - start[name]).abs().mean()
        assert (gpu.state_dict[name].cpu() - expected).abs().mean() < 0.01 * change, name
    assert gpu.history[0]["train_loss"] == pytest.approx(cpu.history[0]["train_loss"], rel=1e-4)


@pytest.mark.usefixtures("skip_without_bf16")
@pytest.mark.parametrize("used", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", sorted({*MODELS} - TRANSFER_MODELS.keys()))
def test_every_model_forward_and_backward(name, used):
    """bf16 is emulated on Turing, fp16 runs on all GPUs."""
    model = CONVOLUTIONS if name == "layers" else Model(name=name)
    result, _ = fit("cuda", BASE.replace(epochs=2, precision=used), model)
    assert all(tensor.isfinite().all() for tensor in result.state_dict.values())
    assert result.history[-1]["validation_loss"] < 2.5 and not result.history[-1].get("skipped_steps")
    network = make_network(model)
    network.load_state_dict(result.state_dict)
    images = on_device("cpu").images
    exact = predict_logits(network, images, "cpu", "fp32")
    with library_settings("cuda"):
        logits = predict_logits(network.to("cuda"), images.to("cuda"), "cuda", used).cpu()
    tolerance = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.15}[used]
    assert (logits - exact).abs().max() < tolerance * max(1.0, exact.abs().max().item())


@pytest.mark.usefixtures("skip_without_bf16")
@pytest.mark.parametrize("used", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(TRANSFER_MODELS))
def test_features_are_those_of_the_cpu(name, used):
    network = make_network(Model(name=name, side=64))
    images = on_device("cpu", n_rows=50).images
    expected = extract_features(network, images, "plain", "cpu", "fp32").astype(float)
    features = extract_features(network.to("cuda"), images.to("cuda"), "plain", "cuda", used).astype(float)
    assert np.abs(features - expected).max() < {"fp32": 0.01, "bf16": 0.15}[used] * expected.max()


@pytest.mark.parametrize("used", ["fp32", "fp16"])
def test_a_deterministic_training_continues_with_the_same_weights(used):
    train = BASE.replace(epochs=4, precision=used, deterministic=True, swa_fraction=0.5, optimizer="muon")
    whole, checkpoints = fit("cuda", train)
    again, _ = fit("cuda", train)
    resumed, _ = fit("cuda", train, checkpoint=checkpoints[1])
    assert equal(whole.state_dict, again.state_dict) and equal(whole.state_dict, resumed.state_dict)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("used", "optimizer"), [("fp32", "muon"), ("fp16", "adam"), ("bf16", "sgd")])
@pytest.mark.usefixtures("skip_without_bf16")
def test_replaying_a_graph_gives_the_same_weights(monkeypatch, used, optimizer):
    """Six whole batches per epoch, and a smaller one that is never replayed; dropout and distortions are random."""
    train = BASE.replace(epochs=3, batch_size=45, precision=used, deterministic=True, optimizer=optimizer)
    replays = []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", _counted(torch.cuda.CUDAGraph.replay, replays))
    replayed, _ = fit("cuda", train, affine=Affine(rotation=10, shift=2))
    n_replayed = 18 - training_loop.STEPS_BEFORE_GRAPH
    # The graph of Muon, which reads the gradients, is replayed after the smaller batches, too.
    assert len(replays) == n_replayed + (n_replayed + 3 if optimizer == "muon" else 0)
    monkeypatch.setattr(precision, "LARGE_BATCH", 0)
    launched, _ = fit("cuda", train, affine=Affine(rotation=10, shift=2))
    assert replayed.history == launched.history and equal(replayed.state_dict, launched.state_dict)


def _counted(function, calls):
    def call(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return call


class ForbidWaits(training_loop.tqdm):
    """A progress bar that makes PyTorch raise an error at each operation that waits between two steps."""

    def __init__(self, n_steps):
        super().__init__(disable=True)
        self.n_steps = n_steps

    def update(self, n=1):
        self.n_steps -= n
        torch.cuda.set_sync_debug_mode("error" if self.n_steps else "default")


def train_epoch_without_waiting(trainer, n_steps):
    progress = ForbidWaits(n_steps)
    try:
        trainer.train_epoch(progress)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert progress.n_steps == 0


@pytest.mark.parametrize("recipe", ["gan/conditional", "gan/better"])
def test_a_deterministic_gan_continues_with_the_same_weights(recipe):
    gan = load_recipe(recipe).gan.replace(epochs=3, precision="fp32", deterministic=True)
    arrays, checkpoints = TrainingArrays(IMAGES[:300], LABELS[:300]), []
    fit_gan = pytest.importorskip("pipeline.extras.generate.training").fit_gan
    expected = fit_gan(
        arrays, gan, "cuda", None, lambda state: checkpoints.append(copy.deepcopy(state)), progress_bar=False
    )
    resumed = fit_gan(arrays, gan, "cuda", checkpoints[0], progress_bar=False)
    assert resumed.history == expected.history and equal(resumed.state_dict, expected.state_dict)
    assert torch.equal(resumed.frames, expected.frames)


def test_the_loop_does_not_wait_within_an_epoch():
    train = BASE.replace(epochs=2, batch_size=50, swa_fraction=0.9, optimizer="muon", precision="fp16")
    options = FitOptions(train, Affine(rotation=10), "cuda", progress_bar=False)
    trainer = training_loop.Trainer(make_network(CONVOLUTIONS), on_device("cuda"), options)
    trainer.train_epoch(training_loop.tqdm(disable=True))
    train_epoch_without_waiting(trainer, n_steps=6)


@pytest.mark.parametrize("recipe", ["gan/conditional", "gan/better"])
def test_the_loop_of_a_gan_does_not_wait_within_an_epoch(recipe):
    gan = load_recipe(recipe).gan.replace(precision="fp32", batch_size=50)
    training = pytest.importorskip("pipeline.extras.generate.training")
    trainer = training.GanTrainer(on_device("cuda"), gan, "cuda")
    trainer.train_epoch(training_loop.tqdm(disable=True))
    train_epoch_without_waiting(trainer, n_steps=6)


def run(workspace, *arguments):
    command = [sys.executable, "run_pipeline.py", *arguments, "--device", "cuda", "--workspace", str(workspace)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)


def read_context(workspace, recipe):
    return json.loads((workspace / f"data/runs/{recipe}/train/context.json").read_bytes())


def test_two_processes_on_one_card(tmp_path):
    settings = ("train.epochs=100", "ensemble.seeds=4", "ensemble.networks_per_gpu=2")
    options = [word for setting in settings for word in ("--set", setting)]
    outcome = run(tmp_path, "--stage", "all", "--recipe", "quick", *options)
    assert outcome.returncode == 0, outcome.stderr
    assert "(4 of 4)" in outcome.stdout and read_context(tmp_path, "quick")["networks_per_gpu"] == 2
    logs = [path.read_text().splitlines() for path in tmp_path.glob("data/networks/*/log.txt")]
    times = sorted((log[0].split()[0], log[-1].split()[0]) for log in logs)
    assert len(times) == 4
    assert any(start < end for (_, end), (start, _) in itertools.pairwise(times)), f"one after another: {times}"


def test_two_epochs_of_dropout_cnn(tmp_path):
    outcome = run(tmp_path, "--stage", "all", "--recipe", "dropout_cnn", "--set", "train.epochs=2")
    assert outcome.returncode == 0, outcome.stderr
    context = read_context(tmp_path, "dropout_cnn")
    assert context["gpus"] and context["cuda"] and context["cudnn"]
    if shutil.which("nvidia-smi"):  # some containers lack it
        assert context["driver"]


def test_a_full_quick_run(tmp_path):
    """On the sample."""
    outcome = run(tmp_path, "--stage", "all", "--recipe", "quick")
    assert outcome.returncode == 0, outcome.stderr
    names = {torch.cuda.get_device_name(number) for number in devices.usable_gpus()}
    assert f"device: {', '.join(sorted(names))}" in outcome.stdout
    metrics = json.loads((tmp_path / "data/runs/quick/evaluate/metrics.json").read_bytes())
    assert metrics["accuracy"] > 0.97


def test_automatic_precision():
    """bf16 from Ampere on, fp16 on Volta and Turing, fp32 on Pascal."""
    capability = torch.cuda.get_device_capability()
    expected = "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    assert choose_precision("auto", "cuda") == expected
