"""Transfer learning at real sizes: the architectures against torchvision's, runs of the command line, pictures."""

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import ROOT
from pipeline.nn.imagenet_weights import LAST_LAYER
from pipeline.nn.networks import load_networks, make_network
from pipeline.nn.transfer import Head
from pipeline.recipes.settings import Model
from tests import oracles
from tests.conftest import competition_tables, write_tables
from tests.training.transfer import as_file, imagenet_state

SETTINGS = ("--set", "model.pretrained=none", "--set", "model.side=64", "--set", "train.epochs=2", "--device", "cpu")


@functools.cache
def weights_by_name(name):
    """Names and shapes of a network's weights."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in make_network(Model(name=name)).state_dict().items()}


@pytest.mark.parametrize(
    ("name", "convolutions", "dense"),
    [  # the layers with weights, as torchvision numbers them
        ("vgg16", {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
         | dict.fromkeys((17, 19, 21, 24, 26, 28), 512), {0: (4096, 25088), 3: (4096, 4096), 6: (10, 4096)}),
        ("alexnet", {0: 64, 3: 192, 6: 384, 8: 256, 10: 256}, {1: (4096, 9216), 4: (4096, 4096), 6: (10, 4096)}),
    ],
)  # fmt: skip
def test_the_names_are_torchvisions(name, convolutions, dense):
    kernels, inputs, expected = ({0: 11, 3: 5} if name == "alexnet" else {}), 3, {}
    for number, outputs in convolutions.items():
        kernel = kernels.get(number, 3)
        expected[f"features.{number}.weight"] = (outputs, inputs, kernel, kernel)
        expected[f"features.{number}.bias"] = (outputs,)
        inputs = outputs
    for number, shape in dense.items():
        expected |= {f"classifier.{number}.weight": shape, f"classifier.{number}.bias": shape[:1]}
    assert weights_by_name(name) == expected


@pytest.mark.parametrize(
    ("name", "side", "frozen", "size"),
    [
        ("vgg16", 224, "features", (512, 7, 7)),
        ("vgg16", 32, "features", (512, 1, 1)),
        ("vgg16", 224, "all_but_last", (4096,)),
        ("alexnet", 224, "features", (256, 6, 6)),
        ("alexnet", 64, "features", (256, 1, 1)),
        ("alexnet", 64, "all_but_last", (4096,)),
    ],
)
def test_sizes_of_features(name, side, frozen, size):
    with torch.device("meta"):
        network = make_network(Model(name=name, side=side, frozen=frozen)).eval()
        features = network.extractor(torch.zeros(2, 1, 28, 28))
        assert features.shape == (2, *size)
        assert Head(network)(features).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_outputs_are_torchvisions(name):
    """Equal weights give equal outputs. torchvision fails to import beside many versions of PyTorch."""
    try:
        import torchvision
    except Exception as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    reference = getattr(torchvision.models, name)(num_classes=10).eval()
    images = torch.rand(2, 1, 28, 28)
    for side in (64, 224):
        network = make_network(Model(name=name, side=side)).eval()
        network.load_state_dict(reference.state_dict())
        resized = torch.nn.functional.interpolate(images, (side, side), mode="bilinear").repeat(1, 3, 1, 1)
        inputs = torchvision.transforms.functional.normalize(resized, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        with torch.no_grad():
            assert torch.allclose(network(images), reference(inputs), atol=1e-6)


def call(workspace, *arguments, recipe="transfer/alexnet", settings=SETTINGS):
    """Run the command line in a process of its own."""
    command = [sys.executable, "run_pipeline.py", "--recipe", recipe, *settings, "--workspace", workspace, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory, tables):
    workspace = tmp_path_factory.mktemp("alexnet")
    write_tables(workspace / "data/raw", tables)
    run = call(workspace, "--stage", "all")
    assert run.returncode == 0, run.stderr
    return workspace


@pytest.mark.slow
class TestAlexNet:
    def test_predictions_are_those_of_the_whole_network(self, alexnet):
        (path,) = alexnet.glob("data/networks/alexnet-*/weights.safetensors")
        images = np.load(alexnet / "data/prepared/arrays/test_images.npy")
        ((expected, _),) = oracles.predict_each(path, images)
        actual = np.load(alexnet / "submissions/transfer/alexnet/probabilities.npy")
        assert np.abs(actual - expected).max() < 0.1 and (actual.argmax(1) == expected.argmax(1)).mean() > 0.95

    def test_an_extraction_that_is_killed_continues_with_the_same_bytes(self, alexnet, tmp_path):
        workspace = tmp_path / "killed"
        shutil.copytree(alexnet / "data/raw", workspace / "data/raw")
        command = [sys.executable, "run_pipeline.py", "--recipe", "transfer/alexnet", *SETTINGS, "--stage", "all"]
        process = subprocess.Popen([*command, "--workspace", workspace], cwd=ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list(workspace.glob("data/features/*.partial/part-00000.npy")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        run = call(workspace, "--stage", "all")
        assert run.returncode == 0, run.stderr
        for path in alexnet.glob("data/features/*/features.npy"):
            assert (workspace / path.relative_to(alexnet)).read_bytes() == path.read_bytes()
        for path in alexnet.glob("data/networks/*/weights.safetensors"):
            assert (workspace / path.relative_to(alexnet)).read_bytes() == path.read_bytes()
        assert not list(workspace.glob("data/features/*.partial"))

    def test_a_file_of_the_published_size(self, alexnet, tmp_path):
        """244 MB with torchvision's names, shapes, 1,000 outputs, and the hash in the name."""
        with torch.device("meta"):
            network = make_network(Model(name="alexnet"))
        state = imagenet_state(network)
        assert sum(value.numel() for value in state.values()) == 61_100_840
        content = as_file(state, legacy=True)
        path = tmp_path / f"alexnet-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        path.write_bytes(content)
        workspace = shutil.copytree(alexnet, tmp_path / "workspace")
        settings = (*SETTINGS[2:], "--set", f"model.weights_file={path}")
        run = call(workspace, "--stage", "all", settings=settings)
        assert run.returncode == 0, run.stderr
        manifest = json.loads((workspace / "data/runs/transfer/alexnet/train/manifest.json").read_text())
        assert manifest["numbers"]["initial_weights"] == {"imagenet/alexnet": hashlib.sha256(content).hexdigest()}
        (loaded,) = load_networks(workspace / "data/runs/transfer/alexnet/train/weights.safetensors", "cpu")
        for name, value in loaded.network.state_dict().items():
            assert torch.equal(value, state[name]) != name.startswith(LAST_LAYER)

    def test_pictures(self, alexnet):
        run = call(alexnet, "--stage", "inspect", "--set", "inspect.rows=50")
        assert run.returncode == 0, run.stderr
        folder = alexnet / "data/runs/transfer/alexnet/inspect"
        colours = np.asarray(Image.open(folder / "filters.png").convert("RGB")).astype(int)
        assert (np.ptp(colours, axis=2) > 60).mean() > 0.02  # filters in colour
        weights = json.loads((folder / "inspect.json").read_text())["weights"]
        assert next(iter(weights)) == "1: conv 11x11, 64" and len(weights) == 8

    def test_comparison_without_the_weights(self, alexnet, tmp_path):
        workspace = tmp_path / "workspace"
        shutil.copytree(alexnet / "data/raw", workspace / "data/raw")
        settings = ("--device", "cpu", "--set", "train.epochs=1", "--seeds", "1")
        run = call(workspace, "--stage", "compare", recipe="ladder_failed", settings=settings)
        assert run.returncode == 0, run.stderr
        assert "compare: ladder_failed/alexnet is left out: the weights of alexnet" in run.stdout
        (table,) = workspace.glob("data/compare/ladder_failed-*/table.md")
        text = table.read_text()
        assert "not available: ladder_failed/alexnet." in text and "| ladder_failed/batch8 |" in text


@pytest.mark.slow
def test_vgg16(tmp_path):
    """All stages at the smallest side, with pictures."""
    write_tables(tmp_path / "data/raw", competition_tables(120, 40)[0])
    settings = (*SETTINGS, "--set", "model.side=32", "--set", "train.record=true", "--set", "inspect.rows=30")
    for stage in ("all", "inspect"):
        run = call(tmp_path, "--stage", stage, recipe="transfer/vgg16", settings=settings)
        assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "data/runs/transfer/vgg16/inspect/feature_maps.png") as picture:
        assert picture.height > 2500  # 31 layers of features, and the dense ones
    record = json.loads((tmp_path / "data/runs/transfer/vgg16/train/record.json").read_text())["rows"]
    assert [list(row["layers"]) for row in record] == [["classifier.6.weight"]] * 3
