"""`--stage compare`: the table against plain computations, reuse, interruptions, test labels, and the page."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.cli.main import main
from pipeline.extras.compare import figures
from pipeline.extras.compare import stage as compare
from pipeline.extras.compare.recipes import _make_title
from pipeline.recipes import config
from pipeline.recipes.settings import Compare
from pipeline.training import task
from tests import oracles
from tests.conftest import TINY, Outcome, mnist_files, write_tables
from tests.contexts import make_context

DRAWS = True
NAMES = ("ladder/lenet", "ladder/lenet_normalized")
SETTINGS = ("--set", "train.epochs=3", "--set", "train.batch_size=20", "--set", "train.precision=fp32")
TWO = ("--recipe", ",".join(NAMES), *SETTINGS)


def read_results(workspace, title=""):
    """The table, its text and the page of a comparison whose title begins with `title`."""
    (folder,) = (path for path in (workspace / "data/compare").iterdir() if path.name.startswith(title))
    table = pd.read_csv(folder / "table.csv").set_index("recipe")
    return table, (folder / "table.md").read_text(), (folder / "compare.html").read_text()


def network_folders(workspace, title=""):
    """The networks of a comparison, in order of recipes, repetitions, seeds and folds."""
    (path,) = (workspace / "data/compare").glob(f"{title}*/manifest.json")
    networks = json.loads(path.read_text())["numbers"]["networks"]
    return [workspace / "data/networks" / network["folder"] for network in networks]


def trained(workspace):
    """Name of each network's folder, and the time its manifest was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in workspace.glob("data/networks/*/manifest.json")}


def read_rows(workspace, name="train"):
    folder = workspace / "data/prepared/arrays"
    return np.load(folder / f"{name}_images.npy"), np.load(folder / "train_labels.npy")


def predict(folder, images):
    ((probabilities, _),) = oracles.predict_each(folder / "weights.safetensors", images)
    return probabilities


@pytest.fixture
def without_pictures(without_pictures, monkeypatch):
    """Neither `evaluate` nor `compare` draws pictures."""
    for name in ("error_bands", "costs"):
        monkeypatch.setattr(figures, name, lambda *arguments: b"")


@pytest.fixture(scope="module")
def _compared(tmp_path_factory, tables):
    workspace = tmp_path_factory.mktemp("compared")
    write_tables(workspace / "data/raw", tables)
    arguments = ["--stage", "compare", *TWO, "--seeds", "2", "--ensemble", "--workspace", str(workspace)]
    assert main([*arguments, "--device", "cpu"]) == 0
    return workspace


@pytest.fixture
def compared(_compared, tmp_path):
    """A workspace of one's own in which TWO were compared with two seeds."""
    return shutil.copytree(_compared, tmp_path / "compared")


@pytest.fixture
def run_compare(command, compared):
    """`--stage compare` with TWO and more arguments."""

    def run(*arguments):
        return command("--stage", "compare", *TWO, *arguments, "--workspace", compared, "--device", "cpu")

    return run


class TestTable:
    def test_single_networks_on_validation_rows(self, _compared):
        (path,) = _compared.glob("data/prepared/splits/*/validation_rows.npy")
        rows, (images, labels) = np.load(path), read_rows(_compared)
        images, labels = images[rows], labels[rows]
        table, text, _ = read_results(_compared)
        folders = network_folders(_compared)
        for name, pair in zip(NAMES, (folders[:2], folders[2:]), strict=True):
            probabilities = [predict(folder, images) for folder in pair]
            accuracies = [(item.argmax(1) == labels).mean() for item in probabilities]
            row = table.loc[name]
            assert row.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
            assert row["std"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-12)
            assert row.ensemble_accuracy == (sum(probabilities).argmax(1) == labels).mean()
            assert (row.seeds, row.epochs) == (2, 3)
            assert row.published_accuracy == config.load_recipe(name).published.accuracy
            assert row.published_difference == pytest.approx(row.accuracy - row.published_accuracy)
            assert row.std_units == pytest.approx(row.published_difference / row["std"])
            seconds = [json.loads((folder / "context.json").read_text())["training_seconds"] for folder in pair]
            assert row.training_seconds == pytest.approx(np.mean(seconds))
        assert table.parameters[NAMES[0]] == 44_426
        assert table.baseline[NAMES[1]] == NAMES[0]
        assert table.step[NAMES[1]] == pytest.approx(table.accuracy[NAMES[1]] - table.accuracy[NAMES[0]])
        untrained = table.loc["ladder/lenet, untrained"]
        assert untrained.published_accuracy == 0.1 and untrained.accuracy < 0.4
        assert "Measured on 100 validation rows" in text and "| ladder/lenet_normalized |" in text

    @pytest.mark.usefixtures("without_pictures")
    def test_an_ensemble_with_folds_beside_a_single_network(self, command, tables, tmp_path):
        """Each row is predicted by the networks of a repetition that did not see it."""
        recipe, workspace = tmp_path / "folded.toml", tmp_path / "workspace"
        text = (config.RECIPES / "quick.toml").read_text()
        recipe.write_text(f'baseline = "quick"\n{text}\n[split]\nfolds = 2\n\n[ensemble]\nseeds = 2\n')
        write_tables(workspace / "data/raw", tables)
        settings = (*TINY[2:], "--set", "train.precision=fp32", "--set", "train.epochs=1")
        options = (*settings, "--workspace", workspace, "--device", "cpu")
        run = command("--stage", "compare", "--recipe", f"quick,{recipe}", *options, "--seeds", "2", "--ensemble")
        assert run.code == 0, run.err
        assert "predict.shifts=[[0, 0]] has no effect: networks are compared without shifted copies" in run.out
        table, text, html = read_results(workspace)
        folders, (images, labels) = network_folders(workspace), read_rows(workspace)
        (path,) = workspace.glob("data/prepared/splits/*/folds.npy")
        folds, repetitions = np.load(path), []
        for repetition in (folders[2:6], folders[6:]):
            names = [re.fullmatch(r"layers-seed(\d)-fold(\d)-\w+", folder.name).groups() for folder in repetition]
            first = 2 * len(repetitions)
            assert names == [(str(seed), str(fold)) for seed in (first, first + 1) for fold in (0, 1)]
            probabilities = np.zeros((400, 10))
            for folder, (_, fold) in zip(repetition, names, strict=True):
                held_out = folds == int(fold)
                probabilities[held_out] += predict(folder, images[held_out]) / 2
            repetitions.append(probabilities)
        accuracies = [(probabilities.argmax(1) == labels).mean() for probabilities in repetitions]
        row = table.loc["folded"]
        assert row.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
        assert row["std"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-12)
        assert row.ensemble_accuracy == (sum(repetitions).argmax(1) == labels).mean()
        assert row.parameters == 4 * table.parameters["quick"]
        assert np.isnan(row.step)  # its baseline is measured on other rows
        assert "100 validation rows (split seed 0): quick" in text
        assert "400 out-of-fold rows (split seed 0): folded" in text
        assert html.count("<img") == 2  # the curves of quick, and costs

        train = command("--stage", "train", "--recipe", recipe, *options)
        assert train.code == 0 and "train: 4 of 4 networks exist already" in train.out

    @pytest.mark.usefixtures("without_pictures")
    def test_a_training_that_diverges_is_noted(self, command, tmp_path, tables):
        write_tables(tmp_path / "data/raw", tables)
        settings = ("learning_rate=1e30", "optimizer=sgd", "epochs=2", "precision=fp32")
        assignments = [f"--set=train.{setting}" for setting in settings]
        options = ("--seeds", "1", "--workspace", tmp_path, "--device", "cpu")
        run = command("--stage", "compare", "--recipe", "keras/linear,quick", *assignments, *options)
        assert run.code == 0, run.err
        table, text, _ = read_results(tmp_path)
        assert "try a smaller train.learning_rate" in table.note["quick"] and np.isnan(table.accuracy["quick"])
        assert "quick, small_cnn-seed0 failed" in run.out and "try a smaller train.learning_rate" in text

    @pytest.mark.usefixtures("without_pictures")
    def test_recipes_that_train_on_all_rows_hold_out_rows_if_no_test_label_is_known(self, command, compared):
        recipe = ("--recipe", "keras/linear", "--set", "train.fit_all=true", "--set", "train.epochs=1", "--seeds", "1")
        run = command("--stage", "compare", *recipe, "--workspace", compared, "--device", "cpu")
        assert run.code == 0, run.err
        assert "100 validation rows" in read_results(compared, "keras-linear")[1]

    def test_the_default_number_of_seeds(self):
        assert config.load_recipe("quick").compare == Compare(seeds=5, ensemble=False)


@pytest.mark.usefixtures("without_pictures")
class TestReuse:
    def test_existing_networks_are_kept_and_missing_ones_are_trained(self, compared, run_compare, monkeypatch):
        before, folders = trained(compared), network_folders(compared)
        accuracies = {}
        monkeypatch.setattr(figures, "error_bands", lambda curves: accuracies.update(curves) or b"png")
        run = run_compare("--seeds", "2")
        assert run.code == 0 and "compare: 4 of 4 networks exist already" in run.out and trained(compared) == before
        for name, pair in zip(NAMES, (folders[:2], folders[2:]), strict=True):
            histories = [pd.read_csv(folder / "history.csv").validation_accuracy for folder in pair]
            assert np.allclose(accuracies[name], histories, rtol=1e-12)  # pandas before 3 loses the last digit

        damaged = folders[2] / "weights.safetensors"
        weights = damaged.read_bytes()
        damaged.write_bytes(b"x")
        run = run_compare("--seeds", "3")
        assert run.code == 0 and "compare: 3 of 6 networks exist already" in run.out
        assert damaged.read_bytes() == weights
        after = trained(compared)
        assert {name for name in before if after[name] != before[name]} == {damaged.parent.name}
        assert read_results(compared)[0].seeds.tolist() == [3, 3, 3]

    def test_an_interrupted_comparison_continues(self, compared, run_compare, command, monkeypatch):
        folder = network_folders(compared)[2]
        weights = (folder / "weights.safetensors").read_bytes()
        (folder / "weights.safetensors").unlink()
        monkeypatch.setattr(task, "MAX_SAVE_INTERVAL", 0)
        save = task._Checkpoints.save

        def save_and_stop(checkpoints, checkpoint):
            save(checkpoints, checkpoint)
            if checkpoint["epoch"] == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(task._Checkpoints, "save", save_and_stop)
            assert run_compare("--seeds", "2", "--ensemble").code == 130
        partial = folder.with_name(f"{folder.name}.partial")
        assert (partial / "checkpoint.pt").exists()
        (published,) = (path.parent for path in compared.glob("data/compare/*/table.csv"))
        assert command("--status", "--workspace", compared).lines()[-1] == f"compare {published.name}: fresh"
        shutil.rmtree(published)
        status = command("--status", "--workspace", compared).lines()[-1]
        assert status == f"compare {published.name}: missing (an interrupted run can continue)"
        unused = command("--clean", "--yes", "--workspace", compared).out
        assert folder.name not in unused and partial.exists()
        run = run_compare("--seeds", "2", "--ensemble")
        assert run.code == 0 and "compare: continuing after epoch 2" in run.out
        assert (folder / "weights.safetensors").read_bytes() == weights and not partial.exists()

    def test_clean_keeps_the_networks_of_comparisons(self, compared, command):
        networks_before = trained(compared)
        assert "data/networks" not in command("--clean", "--workspace", compared).out
        shutil.rmtree(next((compared / "data/compare").iterdir()))
        unused = command("--clean", "--yes", "--workspace", compared).out
        assert all(f"data/networks/{name}" in unused for name in networks_before) and not trained(compared)

    def test_status_names_what_changed(self, compared, command, edit_code):
        def status():
            return command("--status", "--workspace", compared).lines()[-1]

        assert status().endswith(": fresh")
        edit_code("nn/models/layers.py")
        assert status().endswith(": stale (pipeline/nn/models/layers.py changed)")
        edit_code()
        (folder,) = (compared / "data/compare").iterdir()
        (folder / "table.md").unlink()
        assert status().endswith(": stale (table.md was deleted)")

    def test_settings_of_the_call_have_a_comparison_and_networks_of_their_own(self, compared, command):
        networks_before = trained(compared)
        arguments = ("--recipe", NAMES[0], "--seeds", "1", "--set", "train.epochs=1", "--set", "train.precision=fp32")
        run = command("--stage", "compare", *arguments, "--workspace", compared, "--device", "cpu")
        assert run.code == 0
        assert len(trained(compared)) == len(networks_before) + 1
        assert len(list((compared / "data/compare").iterdir())) == 2


class TestTestLabels:
    RECIPES = ("ladder/deeper", "keras/linear_augmented")

    @pytest.fixture
    def compare_on_test_rows(self, command, tmp_path):
        """A comparison on a source with 20 test labels; `offset` makes them wrong."""
        workspace = tmp_path / "workspace"

        def run(*arguments, recipes=self.RECIPES, offset=0):
            files, labels = mnist_files(60, 20, offset)
            source = write_tables(tmp_path / "mnist", files)
            settings = ("--set", "train.epochs=2", "--set", "train.precision=fp32", "--set", "ensemble.threads=1")
            options = ("--data", source, "--workspace", workspace, "--device", "cpu")
            stage = () if "--stage" in arguments else ("--stage", "compare", "--seeds", "1")
            run = command(*stage, "--recipe", ",".join(recipes), *settings, *options, *arguments)
            assert run.code == 0, run.err
            return run, labels

        run.workspace = workspace
        return run

    def test_networks_are_trained_on_all_rows_and_measured_on_the_test_rows(self, compare_on_test_rows):
        _, labels = compare_on_test_rows()
        workspace = compare_on_test_rows.workspace
        table, text, html = read_results(workspace)
        images, _ = read_rows(workspace, "test")
        for name, folder in zip(self.RECIPES, network_folders(workspace), strict=True):
            assert table.accuracy[name] == (predict(folder, images).argmax(1) == labels).mean()
            assert pd.read_csv(folder / "history.csv").test_accuracy.iloc[-1] == pytest.approx(table.accuracy[name])
            assert json.loads((folder / "manifest.json").read_text())["settings"]["train.fit_all"] is True
        assert "Measured on 20 test rows, with all training rows used for training: all." in text
        assert table["std"].isna().all()  # of one seed
        distorted = table.distorted_accuracy
        assert np.isnan(distorted["ladder/deeper"]) and distorted["keras/linear_augmented"] * 20 % 1 == pytest.approx(0)
        difference = table.published_difference["keras/linear_augmented"]
        assert difference == pytest.approx(distorted["keras/linear_augmented"] - 0.7361)
        assert html.count("<img") == 3 and "ladder/deeper" in html

    @pytest.mark.usefixtures("without_pictures")
    def test_the_test_accuracy_is_an_observation(self, compare_on_test_rows):
        """Networks that lack it, or that have it of other rows, are trained again; the weights are the same."""
        recipes, fit_all = self.RECIPES[1:], ("--set", "train.fit_all=true")
        workspace = compare_on_test_rows.workspace
        for stage in ("download", "prepare", "augment", "train"):
            compare_on_test_rows("--stage", stage, *fit_all, recipes=recipes)
        (weights,) = workspace.glob("data/networks/*/weights.safetensors")
        before, accuracies = weights.read_bytes(), []
        for offset in (0, 1):
            run, labels = compare_on_test_rows(recipes=recipes, offset=offset)
            assert "exists without its test accuracy; training it again" in run.out
            assert weights.read_bytes() == before
            accuracies.append(pd.read_csv(weights.with_name("history.csv")).test_accuracy.iloc[-1])
            images, _ = read_rows(workspace, "test")
            assert accuracies[-1] == pytest.approx((predict(weights.parent, images).argmax(1) == labels).mean())
        assert accuracies[0] != accuracies[1]

        networks = trained(workspace)
        run, _ = compare_on_test_rows(recipes=recipes, offset=1)
        assert "training it again" not in run.out
        compare_on_test_rows("--stage", "train", *fit_all, recipes=recipes, offset=1)
        assert trained(workspace) == networks
        (path,) = workspace.glob("data/runs/**/history.csv")
        assert pd.read_csv(path).columns.tolist() == ["epoch", "learning_rate", "train_loss"]

    @pytest.mark.parametrize(
        ("settings", "has_test_labels", "description"),
        [
            (["split.seed=3"], False, "1,250 validation rows of SAMPLE DATA (split seed 3)"),
            (
                ["train.checkpoint_selection=best"],
                True,
                "1,250 validation rows of SAMPLE DATA (split seed 0), by which the epoch was chosen",
            ),
            (["split.folds=2"], False, "1,250 out-of-fold rows of SAMPLE DATA (split seed 0)"),
            (
                ["split.folds=2"],
                True,
                "1,250 test rows of SAMPLE DATA, with all training rows used for training",
            ),
        ],
    )
    def test_description_of_the_rows(self, settings, has_test_labels, description):
        class Measurement(compare.Measurement):
            labels = np.zeros(1250, np.uint8)

        recipe = config.load_recipe("quick", settings)
        files = {"download/test_labels.csv": Path()} if has_test_labels else {}
        context = make_context(recipe, files, manifests={"download": {"numbers": {"source": "sample"}}})
        assert Measurement(context).description() == description


class TestCommandLine:
    def test_recipes_of_equal_names_are_refused(self, command, tmp_path):
        for folder in ("x", "y"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "mine.toml").write_text("[train]\nepochs = 1\n")
        names = f"{tmp_path}/x/mine.toml,{tmp_path}/y/mine.toml"
        run = command("--stage", "compare", "--recipe", names, "--workspace", tmp_path / "w")
        assert run.code == 2 and "two recipes have the name mine" in run.err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--stage", "compare"), "requires --recipe"),
            (("--stage", "compare", "--recipe", "laddr"), "unknown recipe 'laddr'"),
            (("--stage", "compare", "--recipe", "quick", "--seeds", "0"), "argument --seeds: 0 is not a positive"),
            (("--stage", "compare", "--recipe", "quick", "--seeds", "x"), "argument --seeds: x is not a positive"),
            (
                ("--stage", "compare", "--recipe", "quick", "--engine", "dask=tcp://127.0.0.1:9"),
                "--engine does not apply to --stage compare",
            ),
            (
                ("--stage", "compare", "--recipe", "quick", "--seeds", "1", "--ensemble"),
                "compare.seeds (--seeds) to 2 or more",
            ),
            (("--stage", "compare", "--recipe", "quick", "--set", "train.record=true"), "omit train.record"),
            (
                ("--stage", "compare", "--recipe", NAMES[0], "--set", "model.layers=['max_pool 9', 'max_pool 9']"),
                "ladder/lenet: ",
            ),
            (("--stage", "submit", "--recipe", "ladder"), "one recipe at a time"),
        ],
    )
    def test_mistakes_are_one_line(self, command, capsys, tmp_path, arguments, message):
        try:
            run = command(*arguments, "--workspace", tmp_path)
        except SystemExit as stop:  # of the parser
            run = Outcome(stop.code, *capsys.readouterr())
        assert run.code == 2 and message in run.err and run.err.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_titles_are_folder_names(self):
        assert _make_title(["ladder/lenet", "quick"], []) == "ladder-lenet+quick"
        assert _make_title(["quick"], ["train.epochs=1"]) != _make_title(["quick"], ["train.epochs=2"])
        assert len(_make_title(config.recipe_names(), [])) < 120
        assert _make_title(["../x/mine.toml"], ["compare.seeds=3"]) == "mine"


def test_the_page_contains_everything_that_it_shows(_compared):
    _, _, html = read_results(_compared)
    assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html
    assert len(re.findall(r'<img src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}" alt="[^"]+">', html)) == 2
    assert html.count("<tr>") == 1 + 3
