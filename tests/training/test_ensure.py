"""`ensure`: which networks are reused and which are trained, folds and ensembles."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.recipes import config
from pipeline.training import specs, task
from pipeline.training.pool import Pool
from pipeline.training.progress import Progress
from pipeline.training.task import history_to_csv
from pipeline.workflow import store
from tests import oracles
from tests.conftest import ENSEMBLE, digits_28, stop_after_epoch, write_tables

IMAGES, LABELS = digits_28(500)
NAMES = [f"layers-seed{seed}-fold{fold}" for seed in (0, 1) for fold in (0, 1)]


def folds_of(workspace):
    (path,) = workspace.glob("data/prepared/splits/*/folds.npy")
    return np.load(path)


def read_weights(workspace):
    """The weights of the recipe's networks by name, as {parameter: tensor}."""
    weights = {}
    for name, tensor in safetensors.torch.load_file(workspace / "data/runs/quick/train/weights.safetensors").items():
        network, _, parameter = name.partition("/")
        weights.setdefault(network, {})[parameter] = tensor
    return weights


def weights_bytes(workspace):
    return (workspace / "data/runs/quick/train/weights.safetensors").read_bytes()


def trained(workspace):
    """Name of each network's folder, and the time its manifest was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in workspace.glob("data/networks/*/manifest.json")}


@pytest.fixture
def train(ensemble, command):
    """`--stage train` with ENSEMBLE and more arguments."""

    def run(*arguments):
        return command("--stage", "train", *ENSEMBLE, *arguments, "--workspace", ensemble, "--device", "cpu")

    return run


class TestFolds:
    def test_a_network_is_a_plain_training_on_the_rows_of_the_other_folds(self, _ensemble):
        """Bit for bit."""
        folds, weights = folds_of(_ensemble), read_weights(_ensemble)
        assert sorted(weights) == NAMES
        recipe = config.load_recipe("quick", ENSEMBLE[3::2])
        rows = list(csv.DictReader((_ensemble / "data/runs/quick/train/history.csv").open()))
        for name in NAMES:
            seed, fold = int(name[11]), int(name[-1])
            arrays = [(IMAGES[:400][rows], LABELS[:400][rows]) for rows in (folds != fold, folds == fold)]
            expected = oracles.train(recipe, seed, *arrays)
            assert expected.state_dict.keys() == weights[name].keys()
            assert all(torch.equal(tensor, weights[name][key]) for key, tensor in expected.state_dict.items())
            history = [{key: row[key] for key in row if key != "network"} for row in rows if row["network"] == name]
            assert history == list(csv.DictReader(history_to_csv(expected.history).decode().splitlines()))

    def test_the_weights_file_records_fold_and_seed(self, _ensemble):
        metadata = oracles.predict_each(_ensemble / "data/runs/quick/train/weights.safetensors", IMAGES[:1])
        assert [(entry["seed"], entry["fold"]) for _, entry in metadata] == [(0, 0), (0, 1), (1, 0), (1, 1)]


class TestReuse:
    def test_networks_that_are_added_keep_the_others(self, ensemble, train):
        networks_before, weights_before = trained(ensemble), weights_bytes(ensemble)
        run = train("--set", "ensemble.seeds=3")
        assert run.code == 0 and "train: 4 of 6 networks exist already" in run.out
        run = train("--set", 'ensemble.views=["plain", "even"]', "--set", "ensemble.seeds=1")
        assert run.code == 0 and "train: 2 of 4 networks exist already" in run.out
        assert read_weights(ensemble).keys() == {*NAMES[:2], "layers-even-seed0-fold0", "layers-even-seed0-fold1"}
        networks_after = trained(ensemble)
        assert len(networks_after) == 8 and networks_before.items() < networks_after.items()
        run = train()
        assert run.code == 0 and "train: 4 of 4 networks exist already" in run.out
        assert trained(ensemble) == networks_after
        assert weights_bytes(ensemble) == weights_before

    def test_recipes_with_equal_settings_share_networks(self, ensemble, command, tmp_path):
        recipe = shutil.copy(config.RECIPES / "quick.toml", tmp_path / "mine.toml")
        networks_before = trained(ensemble)
        arguments = ("--recipe", recipe, *ENSEMBLE[2:], "--workspace", ensemble, "--device", "cpu")
        run = command("--stage", "train", *arguments)
        assert run.code == 0 and "train: 4 of 4 networks exist already" in run.out
        assert trained(ensemble) == networks_before
        assert (ensemble / "data/runs/mine/train/weights.safetensors").read_bytes() == weights_bytes(ensemble)

    @pytest.mark.usefixtures("without_pictures")
    def test_train_and_compare_share_networks(self, ensemble, train, command):
        networks_before = trained(ensemble)
        compare = ("--stage", "compare", *ENSEMBLE, "--workspace", ensemble, "--device", "cpu")
        run = command(*compare, "--seeds", "1")
        assert run.code == 0 and "compare: 4 of 4 networks exist already" in run.out
        run = command(*compare, "--seeds", "2")
        assert run.code == 0 and "compare: 4 of 8 networks exist already" in run.out
        run = train("--set", "ensemble.seeds=4")
        assert run.code == 0 and "train: 8 of 8 networks exist already" in run.out
        assert len(trained(ensemble)) == 8 and networks_before.items() < trained(ensemble).items()

    def test_only_damaged_and_forced_networks_are_trained_again(self, ensemble, train):
        networks_before, weights_before = trained(ensemble), weights_bytes(ensemble)
        damaged = next(name for name in networks_before if name.startswith("layers-seed1-fold0"))
        (ensemble / "data/networks" / damaged / "weights.safetensors").write_bytes(b"none")
        assert train().code == 0
        networks_after = trained(ensemble)
        assert {name for name in networks_after if networks_after[name] != networks_before[name]} == {damaged}
        assert weights_bytes(ensemble) == weights_before
        assert train("--force").code == 0
        forced = trained(ensemble)
        assert all(forced[name] != networks_after[name] for name in networks_after)
        assert weights_bytes(ensemble) == weights_before

    def test_a_forced_training_that_was_interrupted_continues_without_force(self, ensemble, train, monkeypatch):
        networks_before, weights_before = trained(ensemble), weights_bytes(ensemble)
        update = task._Checkpoints.update
        checkpoints = []

        def update_and_stop(self, checkpoint):
            update(self, checkpoint)
            checkpoints.append(checkpoint)
            if len(checkpoints) == 5:  # the first epoch of the third network
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(task._Checkpoints, "update", update_and_stop)
            run = train("--force")
        assert run.code == 130 and "the same command without --force continues from there" in run.err
        run = train()
        assert run.code == 0 and "train: 2 of 4 networks exist already" in run.out
        assert all(written != networks_before[name] for name, written in trained(ensemble).items())
        logs = [next(ensemble.glob(f"data/networks/{name}-*/log.txt")).read_text() for name in NAMES]
        assert ["continuing after epoch 1" in log for log in logs] == [False, False, True, False]
        assert weights_bytes(ensemble) == weights_before

    @pytest.mark.parametrize(("module", "n_trained"), [("layers", 4), ("small_cnn", 0)])
    def test_edited_code_of_a_model_makes_its_networks_stale(
        self, ensemble, train, command, edit_code, module, n_trained
    ):
        networks_before, weights_before = trained(ensemble), weights_bytes(ensemble)
        edit_code(f"nn/models/{module}.py")
        status = command("--status", *ENSEMBLE, "--workspace", ensemble).out
        assert (f"train     stale    pipeline/nn/models/{module}.py changed" in status) == bool(n_trained)
        assert train().code == 0
        networks_after = trained(ensemble)
        assert networks_after.keys() == networks_before.keys()
        assert sum(networks_after[name] != networks_before[name] for name in networks_after) == n_trained
        assert weights_bytes(ensemble) == weights_before

    def test_an_interrupted_training_continues_although_a_neutral_setting_is_new(self, ensemble, train, monkeypatch):
        def key_of_earlier_version(spec):
            key = make_key(spec)
            del key["settings"]["train.softmax_before_loss"]
            return key

        make_key = specs.NetworkSpec.key
        with monkeypatch.context() as patch:
            patch.setattr(specs.NetworkSpec, "key", key_of_earlier_version)
            stop_after_epoch(patch)
            assert train("--set", "train.epochs=3").code == 130
        (partial,) = (log.parent for log in ensemble.glob("data/networks/*.partial/log.txt"))
        assert "train.softmax_before_loss" not in json.loads((partial / store.STARTED).read_text())["settings"]
        assert train("--set", "train.epochs=3").code == 0
        log = (partial.with_suffix("") / "log.txt").read_text()
        assert "continuing after epoch 1" in log and log.count("epoch 1,") == 1

    def test_a_network_whose_publication_was_interrupted_is_restored(self, ensemble, train):
        networks_before = trained(ensemble)
        folder = ensemble / "data/networks" / next(iter(networks_before))
        store.write_list(folder, store.own_names(folder), store.STAGED)
        folder.rename(f"{folder}.previous")
        run = train()
        assert run.code == 0 and "train: 4 of 4 networks exist already" in run.out
        assert trained(ensemble) == networks_before

    def test_inputs_that_change_during_the_training_are_noticed(self, ensemble, train, monkeypatch):
        networks_before = trained(ensemble)
        (labels,) = ensemble.glob("data/augmented/*/labels.npy")
        run_pool = Pool.run

        def disturb(*arguments):
            for outcome in run_pool(*arguments):
                labels.write_bytes(labels.read_bytes()[:-1] + b"\x09")
                yield outcome

        monkeypatch.setattr(Pool, "run", disturb)
        run = train("--set", "ensemble.seeds=3")
        assert run.code == 1 and f"{labels} changed while train ran" in run.err
        assert trained(ensemble) == networks_before


class TestEnsembles:
    @pytest.mark.usefixtures("without_pictures")
    def test_all_rows_and_two_models(self, ensemble, command):
        changes = ("ensemble.models=['layers', 'small_cnn']", "train.fit_all=true", "split.folds=0", "ensemble.seeds=1")
        assignments = [word for change in changes for word in ("--set", change)]
        run = command("--stage", "all", *ENSEMBLE, *assignments, "--workspace", ensemble, "--device", "cpu")
        assert run.code == 0, run.err
        assert list(read_weights(ensemble)) == ["layers-seed0", "small_cnn-seed0"]
        assert "accuracy   none: " in run.out and "expected   none: " in run.out

    def test_a_training_that_diverges_is_an_error_with_its_name(self, ensemble, train):
        settings = [f"--set=train.{name}" for name in ("optimizer=sgd", "learning_rate=1e30", "epochs=4")]
        run = train(*settings)
        assert run.code == 2 and run.err.count("\n") == 1
        assert "layers-seed0-fold0: " in run.err and "smaller train.learning_rate" in run.err

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("split.folds=1", "split.folds is 1, which leaves no rows to train on"),
            ("split.folds=399", "split.folds is 399"),
            ("split.folds=60", "requires one row per fold"),
            ("ensemble.models=['no_cnn']", "ensemble.models is ['no_cnn']"),
            ("ensemble.models=['small_cnn', 'small_cnn']", "ensemble.models contains a name twice"),
            ("train.fit_all=true", "split.folds holds out each row once"),
        ],
    )
    def test_settings_that_exclude_each_other_are_refused(self, ensemble, command, setting, message):
        run = command("--stage", "all", *ENSEMBLE, "--set", setting, "--workspace", ensemble)
        assert run.code == 2 and message in run.err and run.err.count("\n") == 1


class TestClean:
    @pytest.fixture
    def clean(self, ensemble, command):
        """`--clean`, which returns the paths below data/ that it names; lock files left out."""

        def run(*arguments):
            run = command("--clean", *ENSEMBLE[2:], "--workspace", ensemble, *arguments)
            assert run.code == 0
            paths = [line.split("/ensemble/data/")[1] for line in run.lines() if "/ensemble/data/" in line]
            return [path for path in paths if not path.endswith(".lock")]

        return run

    def test_removes_networks_that_no_training_refers_to(self, ensemble, train, clean):
        assert clean() == []
        assert train("--set", "ensemble.seeds=1").code == 0
        unused = clean()
        assert [path.rpartition("-")[0] for path in unused] == [f"networks/{name}" for name in NAMES[2:]]
        assert clean("--yes") == unused
        assert sorted(name.rpartition("-")[0] for name in trained(ensemble)) == NAMES[:2]
        assert clean() == []

    def test_keeps_networks_of_an_interrupted_training(self, ensemble, train, clean):
        (seed_1, fold_1), folders = NAMES[2:], sorted(trained(ensemble))
        assert train("--set", "ensemble.seeds=1").code == 0
        network = ensemble / "data/networks" / next(name for name in folders if name.startswith(seed_1))
        interrupted = network.with_name(f"{network.name}.partial")
        shutil.copytree(network, interrupted)
        (interrupted / store.WRITTEN).rename(interrupted / store.STAGED)
        partial = ensemble / "data/runs/quick/train.partial"
        partial.mkdir()
        store.write_json(partial / store.REFERENCES, {"folders": [network.name]})
        (unused,) = clean()
        assert unused.startswith(f"networks/{fold_1}-")
        shutil.rmtree(partial)
        assert {f"networks/{network.name}", f"networks/{network.name}.partial"} < set(clean())


def test_the_progress_of_several_networks_is_shown(command, tmp_path, tables, monkeypatch):
    """In one line for all of them: those that are done, the epochs of the others, the time left."""
    monkeypatch.setattr("pipeline.training.progress.LINE_INTERVAL", 0.01)
    write_tables(tmp_path / "data/raw", tables)
    run = command("--stage", "all", *ENSEMBLE, "--workspace", tmp_path, "--device", "cpu")
    assert run.code == 0, run.err
    pattern = r"train: (\d) of 4 networks(, epochs? [12](, [12])* of 2)?(, \d+ s left)?"
    matches = [match for line in run.lines() if (match := re.fullmatch(pattern, line))]
    assert matches and any(match[2] for match in matches) and any(match[4] for match in matches)
    numbers = [int(match[1]) for match in matches]
    assert numbers == sorted(numbers) and numbers[-1] >= 2


def test_the_progress_is_read_from_the_folders_of_the_trainings(tmp_path, monkeypatch):
    folders = {tmp_path / name: 10 for name in "abcd"}
    for name, n_epochs in (("a", 2), ("b", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.csv").write_text("epoch\n" + "".join(f"{i}\n" for i in range(n_epochs)))
    now = [100.0]
    monkeypatch.setattr("pipeline.training.progress.time.monotonic", lambda: now[0])
    progress = Progress(folders)  # two trainings continue
    assert progress.describe() == "0 of 4 networks, epochs 2, 4 of 10"
    (tmp_path / "a/history.csv").write_text("epoch\n" + "1\n" * 6)
    progress.finished.add(tmp_path / "c")
    now[0] = 240.0  # 14 epochs in 140 s, 20 are left
    assert progress.describe() == "1 of 4 networks, epochs 6, 4 of 10, 3 min left"
