"""features: what a frozen extractor computes once, against the network, and the training of a head on it."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from pipeline.cli.main import main
from pipeline.nn.networks import load_networks, trained_part
from pipeline.nn.trainer import seed_everything
from pipeline.recipes import config
from pipeline.recipes.config import ConfigError
from pipeline.recipes.rules import find_unused
from pipeline.training import features
from tests import oracles
from tests.conftest import stop_after_epoch, write_tables
from tests.damage import flip, record_fingerprints
from tests.interference import interrupt
from tests.training.transfer import MODEL, RANDOM, SmallNetwork


@pytest.fixture(autouse=True, scope="module")
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.nn.models.alexnet.Network", SmallNetwork)
        yield


@pytest.fixture(scope="module")
def _finished(tmp_path_factory, tables):
    workspace = tmp_path_factory.mktemp("transfer")
    write_tables(workspace / "data/raw", tables)
    assert main(["--stage", "all", *RANDOM, "--workspace", str(workspace)]) == 0
    return workspace


@pytest.fixture
def finished(_finished, tmp_path):
    return shutil.copytree(_finished, tmp_path / "finished")


@pytest.fixture
def run(command, finished):
    def call(*arguments):
        outcome = command(*RANDOM, *arguments, "--workspace", finished)
        assert outcome.code == 0, outcome.err
        return outcome

    return call


def load(workspace, table):
    """The images and the features of a table."""
    images = np.load(workspace / f"data/prepared/arrays/{table}_images.npy")
    arrays = [np.load(path) for path in workspace.glob("data/features/*/features.npy")]
    (array,) = (array for array in arrays if len(array) == len(images))
    return images, array


def load_network(workspace):
    (folder,) = workspace.glob("data/networks/alexnet-seed0-*/")
    (loaded,) = load_networks(folder / "weights.safetensors", "cpu")
    return loaded.network.eval()


@torch.no_grad()
def compute(network, images):
    """The inputs of the last layer, written out."""
    pixels = torch.from_numpy(images)[:, None].float() / 255
    resized = interpolate(pixels, (64, 64), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    values = network.avgpool(network.features((resized.repeat(1, 3, 1, 1) - mean) / std)).flatten(1)
    weights = network.state_dict()
    for layer in ("classifier.1", "classifier.4"):
        values = (values @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]).clamp_min(0)
    return values.numpy()


@pytest.mark.parametrize("table", ["train", "test"])
def test_features_are_those_of_the_network(_finished, table):
    images, array = load(_finished, table)
    assert array.dtype == np.float16 and array.shape == (len(images), 12)
    assert np.allclose(array, compute(load_network(_finished), images), rtol=1e-3, atol=1e-4)
    assert array.std() > 0.1


def test_only_the_last_layer_is_trained(_finished):
    seed_everything(0)
    before, after = SmallNetwork(MODEL).state_dict(), load_network(_finished).state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["classifier.6.weight", "classifier.6.bias"]


def test_the_training_is_that_of_a_linear_layer(_finished):
    """Adam on the features of the training rows, written out with PyTorch's own layers."""
    _, array = load(_finished, "train")
    (folder,) = _finished.glob("data/prepared/splits/*/")
    rows = np.load(folder / "train_rows.npy")
    inputs = torch.from_numpy(array[rows]).float()
    labels = torch.from_numpy(np.load(_finished / "data/prepared/arrays/train_labels.npy")[rows]).long()
    seed_everything(0)
    layer = SmallNetwork(MODEL).classifier[6]
    optimizer = torch.optim.Adam(layer.parameters(), 0.001)
    for epoch in (1, 2):
        seed_everything(0, epoch)
        for batch in torch.randperm(len(rows)).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    trained = load_network(_finished).classifier[6]
    assert torch.allclose(trained.weight, layer.weight, atol=1e-5) and torch.allclose(
        trained.bias, layer.bias, atol=1e-5
    )


def test_predictions_are_those_of_the_whole_network(_finished):
    (path,) = _finished.glob("data/networks/alexnet-seed0-*/weights.safetensors")
    for table, name in (("test", "submissions/transfer/alexnet"), ("train", "data/runs/transfer/alexnet/evaluate")):
        images, _ = load(_finished, table)
        rows = np.load(_finished / name / "rows.npy") if table == "train" else slice(None)
        ((expected, _),) = oracles.predict_each(path, images[rows])
        assert np.allclose(np.load(_finished / name / "probabilities.npy"), expected, atol=2e-3)


def test_the_checkpoint_contains_the_head_alone(run, monkeypatch):
    from pipeline.training import task

    checkpoints = []
    update = task._Checkpoints.update
    monkeypatch.setattr(
        task._Checkpoints, "update", lambda self, state: checkpoints.append(state) or update(self, state)
    )
    run("--stage", "train", "--force")
    assert list(checkpoints[0]["network"]) == ["classifier.6.weight", "classifier.6.bias"]


class TestReuse:
    def folders(self, workspace):
        return {path.parent.name: path.stat().st_mtime_ns for path in workspace.glob("data/features/*/features.npy")}

    @pytest.mark.usefixtures("without_pictures")
    def test_other_heads_use_the_same_features(self, run, finished):
        before = self.folders(finished)
        assert len(before) == 2
        for change in ("train.learning_rate=0.01", "train.fit_all=true"):
            outcome = run("--stage", "all", "--set", change)
            assert "computing the features" not in outcome.out
        assert self.folders(finished) == before

    def test_other_extractors_do_not(self, run, finished):
        before = self.folders(finished)
        changes = ("train.seed=1", "model.side=80", "model.frozen=features", "model.view=even")
        for number, change in enumerate(changes, 3):
            assert run("--stage", "train", "--set", change).out.count("computing the features") == 1
            after = self.folders(finished)
            assert len(after) == number and before.items() <= after.items()

    def test_damaged_features_are_computed_again(self, run, finished):
        images, array = load(finished, "train")
        path = next(path for path in finished.glob("data/features/*/features.npy") if len(np.load(path)) == len(images))
        record_fingerprints(finished)
        flip(path)
        shutil.rmtree(finished / "data/networks")
        assert "computing the features" in run("--stage", "train").out
        assert np.array_equal(np.load(path), array)

    @pytest.mark.usefixtures("without_pictures")
    def test_an_ensemble_with_folds_is_evaluated_on_all_rows(self, run, finished):
        outcome = run("--stage", "all", "--set", "split.folds=2", "--set", "ensemble.seeds=2")
        assert outcome.out.count("computing the features") == 2  # of the second seed's extractor
        metrics = json.loads((finished / "data/runs/transfer/alexnet/evaluate/metrics.json").read_text())
        assert metrics["rows"] == 400 and metrics["networks"] == 4

    def test_clean_removes_what_no_network_needs(self, run, finished, command):
        assert command("--clean", "--workspace", finished).out == "nothing is unused\n"
        shutil.rmtree(finished / "data/runs")
        unused = command("--clean", "--workspace", finished).out
        assert all(f"data/features/{name}\n" in unused for name in self.folders(finished))


class TestInterruption:
    def test_clean_keeps_the_features_of_an_interrupted_training(self, command, finished, monkeypatch):
        stop_after_epoch(monkeypatch)
        arguments = ("--stage", "train", *RANDOM, "--set", "train.seed=3", "--workspace", finished)
        assert command(*arguments).code == 130
        assert len(list(finished.glob("data/features/*/"))) == 3
        assert "data/features" not in command("--clean", "--workspace", finished).out

    @pytest.mark.parametrize("damage", [False, True])
    def test_an_interrupted_extraction_continues_with_the_same_bytes(self, command, finished, run, monkeypatch, damage):
        expected = {path: path.read_bytes() for path in finished.glob("data/features/*/features.npy")}
        shutil.rmtree(finished / "data/features")
        from pipeline.training import extraction

        extract, sizes = extraction.extract_features, []
        monkeypatch.setattr(features, "PART_ROWS", 150)

        def interrupted(network, images, *arguments):
            sizes.append(len(images))
            if len(sizes) == 2:
                raise KeyboardInterrupt
            return extract(network, images, *arguments)

        monkeypatch.setattr(features, "extract_features", interrupted)
        shutil.rmtree(finished / "data/networks")
        assert command("--stage", "train", *RANDOM, "--workspace", finished).code == 130
        if damage:
            flip(next(finished.glob("data/features/*.partial/part-00000.npy")))
        assert f"{finished}/data/features" not in command("--clean", "--workspace", finished).out
        run("--stage", "train")
        run("--stage", "predict")
        assert sizes == [150, *[150] * damage, 150, 150, 100, 100]
        sizes[:] = [None] * 2  # no interruption
        run("--stage", "all", "--force")
        assert sizes[2:] == [150, 150, 100, 100]  # each table once
        assert {path: path.read_bytes() for path in expected} == expected
        assert not list(finished.glob("data/features/*.partial"))

    def test_features_that_were_damaged_before_they_were_published_are_computed_again(
        self, command, finished, run, monkeypatch
    ):
        expected = {path: path.read_bytes() for path in finished.glob("data/features/*/features.npy")}
        for name in ("features", "networks"):
            shutil.rmtree(finished / "data" / name)
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.workflow.publishing.publish", interrupt)
            assert command("--stage", "train", *RANDOM, "--workspace", finished).code == 130
        flip(next(finished.glob("data/features/*.partial/features.npy")))
        assert "computing the features" in run("--stage", "train").out
        assert all(path.read_bytes() == expected[path] for path in finished.glob("data/features/*/features.npy"))

    def test_features_of_images_that_change_meanwhile_are_not_published(self, command, finished, monkeypatch):
        shutil.rmtree(finished / "data/features")
        shutil.rmtree(finished / "data/networks")
        path, extract = finished / "data/prepared/arrays/train_images.npy", features.extract_features

        def extract_and_change(*arguments):
            flip(path)
            return extract(*arguments)

        monkeypatch.setattr(features, "PART_ROWS", 400)  # changed once
        monkeypatch.setattr(features, "extract_features", extract_and_change)
        outcome = command("--stage", "train", *RANDOM, "--workspace", finished)
        assert outcome.code == 1 and "train_images.npy changed while train ran" in outcome.err
        assert not list(finished.glob("data/features/*/manifest.json"))

    def test_a_feature_outside_the_range_is_an_error(self, command, finished, monkeypatch):
        init = SmallNetwork.__init__

        def enlarge(self, model):
            init(self, model)
            self.classifier[1].weight.data.mul_(1e6)

        monkeypatch.setattr(SmallNetwork, "__init__", enlarge)
        outcome = command("--stage", "train", *RANDOM, "--set", "train.seed=5", "--workspace", finished)
        assert outcome.code == 2 and "alexnet: a feature exceeds 65,504" in outcome.err


class TestFrozenParts:
    @pytest.mark.parametrize(
        ("frozen", "changed"),
        [("features", ["classifier"]), ("nothing", ["classifier", "features"]), ("all_but_last", ["classifier"])],
    )
    def test_network_is_head_of_extractor(self, frozen, changed):
        network = SmallNetwork(MODEL.replace(frozen=frozen)).eval()
        images = torch.rand(5, 1, 28, 28)
        head = trained_part(network)
        assert sorted({name.split(".")[0] for name in head.state_dict()}) == changed
        if frozen == "nothing":
            assert head is network
            return
        outputs = network.extractor(images)
        assert outputs.shape == ((5, 12) if frozen == "all_but_last" else (5, 8, 7, 7))
        assert torch.allclose(head.eval()(outputs), network(images), atol=1e-5)

    @pytest.mark.usefixtures("without_pictures")
    def test_without_a_frozen_part_all_layers_are_trained_on_distorted_images(self, command, finished):
        settings = (
            "--set",
            "model.frozen=nothing",
            "--set",
            "affine.rotation=10",
            "--set",
            "predict.shifts=[[0, 0], [1, 0]]",
        )
        shutil.rmtree(finished / "data/networks")
        shutil.rmtree(finished / "data/features")
        outcome = command("--stage", "all", *RANDOM, *settings, "--workspace", finished)
        assert outcome.code == 0 and not (finished / "data/features").exists()
        seed_everything(0)
        before, after = SmallNetwork(MODEL).state_dict(), load_network(finished).state_dict()
        assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["model.side=63"], "model.side is 63, but alexnet requires at least 64"),
        (["model.side=513"], "model.side is 513, expected at most 512"),
        (["model.pixels=centred"], "model.pixels must be unit: alexnet has a normalization of its own"),
        (
            ["affine.shift=1"],
            "affine changes the images, whose features are computed once: set model.frozen to nothing",
        ),
        (["augment.angles=[5]"], "augment changes the images"),
        (["predict.shifts=[[1, 0]]"], "predict.shifts changes the images"),
    ],
)
def test_settings_that_contradict_each_other(assignments, message):
    with pytest.raises(ConfigError) as error:
        config.load_recipe("transfer/alexnet", assignments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["model.pretrained=none", "model.weights_file=x"],
            "model.weights_file has an effect only if model.pretrained is",
        ),
        (["model.name=small_cnn"], "model.pretrained has an effect only if model.name is one of vgg16, alexnet"),
        (["model.name=small_cnn", "model.pretrained=none", "model.side=64"], "model.side has an effect only if"),
        (["model.name=small_cnn", "model.pretrained=none", "model.frozen=features"], "model.frozen has an effect only"),
    ],
)
def test_settings_without_effect(assignments, message):
    notes = find_unused(config.load_recipe("transfer/alexnet", assignments))
    assert any(note.startswith(message) for note in notes)
