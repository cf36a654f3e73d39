"""`--stage compare`: recipes and seeds side by side, and what the table says of them, counted again by hand."""

import io
import json
import os
import re
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import comparison, page, recipe
from pipeline.models import load_weights
from pipeline.stages import comparing
from tests.conftest import Outcome, write_tables
from tests.test_engines import _group as group
from tests.test_engines import start, until

TWO = ("--recipe", "ladder/lenet,ladder/lenet_normalized", "--set", "train.epochs=3", "--set", "train.batch=20")
NAMES = ("ladder/lenet", "ladder/lenet_normalized")
SAMPLE = ("--recipe", "ladder/deeper,keras/linear_augmented", "--set", "train.epochs=2")


def of(workspace, names=""):
    (folder,) = (path for path in (workspace / "data/compare").iterdir() if path.name.startswith(names))
    table = pd.read_csv(folder / "table.csv").set_index("recipe")
    return table, (folder / "table.md").read_text(), (folder / "compare.html").read_text()


@pytest.fixture(scope="module")
def _compared(tmp_path_factory, tables):
    import run_pipeline

    workspace = tmp_path_factory.mktemp("compared")
    write_tables(workspace / "data/raw", tables)
    words = ["--stage", "compare", *TWO, "--seeds", "2", "--ensemble", "--workspace", str(workspace), "--device", "cpu"]
    assert run_pipeline.main(words) == 0
    return workspace


@pytest.fixture
def compared(_compared, tmp_path):
    import shutil

    return shutil.copytree(_compared, tmp_path / "compared")


def runs_of(workspace, name):
    return sorted(path.parent for path in (workspace / "data/runs" / name).glob("seed*/weights.safetensors"))


def probabilities(folder, images):
    ((network, _),) = load_weights(folder / "weights.safetensors", "cpu")
    with torch.inference_mode():
        return torch.cat([network.eval()(one[None, None].float() / 255).softmax(1) for one in images]).numpy()


def test_the_table_by_hand(compared):
    """Validation accuracy of each network image by image, in float32: no row of these is near a tie."""
    split = next((compared / "data/prepared/splits").iterdir())
    rows = np.load(split / "validation_rows.npy")
    images = torch.from_numpy(np.load(compared / "data/prepared/arrays/train_images.npy")[rows])
    labels = np.load(compared / "data/prepared/arrays/train_labels.npy")[rows]
    table, text, _ = of(compared)
    rights = []
    for name in NAMES:
        made = [probabilities(folder, images) for folder in runs_of(compared, name)]
        right = np.stack([one.argmax(1) == labels for one in made])
        rights.append(right)
        accuracies = right.mean(1)
        assert table.accuracy[name] == pytest.approx(accuracies.mean(), abs=0.011)  # trained, and asked, in bf16
        assert table.deviation[name] == pytest.approx(np.std(accuracies, ddof=1), abs=0.011)
        assert table.ensemble[name] == pytest.approx((sum(made).argmax(1) == labels).mean(), abs=0.011)
        assert table.seeds[name] == 2 and table.epochs[name] == 3
        assert table.published[name] == recipe.load(name).published.accuracy
        assert table.difference[name] == pytest.approx(table.accuracy[name] - table.published[name])
        assert table.in_deviations[name] == pytest.approx(table.difference[name] / table.deviation[name])
    assert table.parameters[NAMES[0]] == 44_426
    assert table.step[NAMES[1]] == pytest.approx(table.accuracy[NAMES[1]] - table.accuracy[NAMES[0]])
    assert table.published["ladder/lenet, untrained"] == 0.1 and table.accuracy["ladder/lenet, untrained"] < 0.4
    assert f"Measured on {len(rows)} validation rows" in text and "| ladder/lenet_normalized |" in text


def test_answers_of_each_epoch_are_kept(compared):
    for name in NAMES:
        for folder in runs_of(compared, name):
            answers = np.load(folder / "answers.npy")
            history = pd.read_csv(folder / "history.csv")
            split = next((compared / "data/prepared/splits").iterdir())
            labels = np.load(compared / "data/prepared/arrays/train_labels.npy")[np.load(split / "validation_rows.npy")]
            assert answers.shape == (3, len(labels))
            assert np.allclose((answers == labels).mean(1), history.validation_accuracy, atol=1e-6)


def test_what_is_there_is_kept_and_what_is_not_is_trained(command, compared):
    words = ("--stage", "compare", *TWO, "--workspace", compared, "--device", "cpu")
    again = command(*words, "--seeds", "2")
    assert again.code == 0 and "4 of 4 runs are there" in again.out
    before = {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in runs_of(compared, NAMES[0])}
    lost = runs_of(compared, NAMES[1])[0]
    weights = (lost / "weights.safetensors").read_bytes()
    (lost / "weights.safetensors").write_bytes(b"x")
    third = command(*words, "--seeds", "3")
    assert third.code == 0 and "3 of 6 runs are there" in third.out
    assert (lost / "weights.safetensors").read_bytes() == weights
    assert all((folder / "manifest.json").stat().st_mtime_ns == then for folder, then in before.items())
    assert of(compared)[0].seeds.tolist() == [3, 3, 3]


def test_stopped_it_goes_on(command, compared, monkeypatch):
    from pipeline.stages import fitting

    place = runs_of(compared, NAMES[1])[0]
    weights = (place / "weights.safetensors").read_bytes()
    words = ("--stage", "compare", *TWO, "--seeds", "2", "--workspace", compared, "--device", "cpu")
    (place / "weights.safetensors").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "SAVE", 0)
        seen = []

        def note_and_stop(history):
            seen.append(history)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return as_csv(history)

        as_csv = fitting.as_csv
        patch.setattr(fitting, "as_csv", note_and_stop)
        assert command(*words).code == 130
    assert (place.with_name(f"{place.name}.partial") / "checkpoint.pt").exists()
    checkpoint = (place.with_name(f"{place.name}.partial") / "checkpoint.pt").read_bytes()[fitting.DIGEST :]
    before = torch.load(io.BytesIO(checkpoint), weights_only=True)["seconds"]
    changes = TWO[2:]
    assert place.name not in command("--clean", *changes, "--workspace", compared).out  # these settings resume it
    assert f"{place.name}.partial" in command("--clean", "--workspace", compared).out  # those of the recipes do not
    status = command("--status", "--recipe", NAMES[1], *changes, "--workspace", compared).out
    assert "seed 0    stale    weights.safetensors was deleted; an interrupted run can go on" in status
    assert command("--clean", "--yes", *changes, "--workspace", compared).code == 0
    assert command(*words).code == 0
    assert json.loads((place / "context.json").read_text())["training_seconds"] > before > 0
    assert "going on after epoch" in "".join(log.read_text() for log in (compared / "data/logs").iterdir())
    assert (place / "weights.safetensors").read_bytes() == weights


def test_status_shows_the_runs_of_comparisons(command, compared):
    words = ("--status", "--recipe", NAMES[1], *TWO[2:], "--workspace", compared)
    status = command(*words).out
    assert "seed 0    fresh\n  seed 1    fresh\n" in status and "seed 2" not in status
    (runs_of(compared, NAMES[1])[1] / "history.csv").unlink()
    assert "seed 1    stale    history.csv was deleted" in command(*words).out
    plain = command("--status", "--workspace", compared).out  # which recipes have runs, and with other settings
    assert "recipe ladder/lenet\n" in plain and "2 more comparison runs use different settings (--set)" in plain


def test_five_seeds_are_the_default():
    assert comparing.SEEDS == 5


def test_one_that_was_killed_between_two_renames_is_brought_back(command, compared):
    words = ("--stage", "compare", *TWO, "--seeds", "2", "--workspace", compared, "--device", "cpu")
    place = runs_of(compared, NAMES[0])[0]
    place.rename(place.with_name(f"{place.name}.previous"))
    run = command(*words)
    assert run.code == 0 and "4 of 4 runs are there" in run.out and place.exists()


@pytest.mark.slow
def test_no_worker_outlives_a_killed_run(tmp_path, tables):
    """Also where the shell has set SIGINT to be ignored, as for a job in the background of a script."""
    write_tables(tmp_path / "data/raw", tables)
    words = ("--stage", "compare", *TWO[:2], "--set", "train.epochs=100000", "--seeds", "1", "--workspace", tmp_path)
    here = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start("run_pipeline.py", *words, "--device", "cpu", env=os.environ | {"LOKY_MAX_CPU_COUNT": "2"})
    finally:
        signal.signal(signal.SIGINT, here)
    until(lambda: len(list(tmp_path.glob("data/runs/ladder/*/*.partial/checkpoint.pt"))) == 2, process)
    process.kill()
    process.wait()
    end = time.monotonic() + 7
    while group(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not group(process.pid)


def test_settings_of_a_call_have_places_of_their_own(command, compared):
    words = ("--stage", "compare", "--recipe", "ladder/lenet", "--seeds", "1", "--workspace", compared)
    before = runs_of(compared, NAMES[0])
    assert command(*words, "--device", "cpu", "--set", "train.epochs=1").code == 0
    assert len(runs_of(compared, NAMES[0])) == len(before) + 1
    assert len(list((compared / "data/compare").iterdir())) == 2


def test_on_test_rows_where_their_labels_are(command, tmp_path):
    """The sample has them: all rows are trained on, and the figures are those of test_labels.csv."""
    words = ("--stage", "compare", "--data", "sample", "--workspace", tmp_path, "--device", "cpu", "--seeds", "1")
    run = command(*words, *SAMPLE)
    assert run.code == 0, run.err
    table, text, html = of(tmp_path)
    labels = pd.read_csv(tmp_path / "data/raw/test_labels.csv").Label.to_numpy()
    for name in ("ladder/deeper", "keras/linear_augmented"):
        (folder,) = runs_of(tmp_path, name)
        answers = np.load(folder / "answers.npy")
        assert table.accuracy[name] == pytest.approx((answers[-1] == labels).mean())
        assert json.loads((folder / "manifest.json").read_text())["settings"]["train"]["fit_all"] is True
    assert f"{len(labels):,} test rows of SAMPLE DATA" in text and "THIS IS SAMPLE DATA" in run.out
    assert np.isnan(table.deviation["ladder/deeper"])  # one seed has none
    distorted = table.distorted
    assert np.isnan(distorted["ladder/deeper"]) and 0.1 < distorted["keras/linear_augmented"] < 1
    difference = table.difference["keras/linear_augmented"]
    assert difference == pytest.approx(distorted["keras/linear_augmented"] - 0.7361)
    assert html.count("<img") == 3 and "ladder/deeper" in html


def test_a_training_that_fails_is_said_in_the_table(command, tmp_path, tables):
    write_tables(tmp_path / "data/raw", tables)
    words = ("--recipe", "keras/linear,quick", "--set", "train.learning_rate=1e30", "--set", "train.optimizer=sgd")
    more = ("--set", "train.epochs=2", "--set", "train.precision=fp32", "--seeds", "1", "--device", "cpu")
    run = command("--stage", "compare", *words, *more, "--workspace", tmp_path)
    assert run.code == 0, run.err
    table, text, _ = of(tmp_path)
    assert "try a smaller train.learning_rate" in table.note["quick"] and np.isnan(table.accuracy["quick"])
    assert "try a smaller train.learning_rate" in text


def test_where_no_test_label_is_known_rows_are_held_out(command, tmp_path, tables):
    write_tables(tmp_path / "data/raw", tables)
    words = ("--recipe", "keras/linear", "--set", "train.fit_all=true", "--set", "train.epochs=1", "--seeds", "1")
    run = command("--stage", "compare", *words, "--workspace", tmp_path, "--device", "cpu")
    assert run.code == 0, run.err
    assert "100 validation rows" in of(tmp_path)[1]


def test_recipes_of_one_name_are_refused(command, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text("[train]\nepochs = 1\n")
    names = f"{tmp_path}/x/mine.toml,{tmp_path}/y/mine.toml"
    run = command("--stage", "compare", "--recipe", names, "--workspace", tmp_path / "w")
    assert run.code == 2 and "two recipes are called mine" in run.err


def test_folders_stand_for_their_recipes_in_order():
    ladder = recipe.expand("ladder")
    assert ladder[0] == "ladder/lenet" and ladder[-1] == "ladder/deeper_sgd" and len(ladder) == 7
    assert recipe.expand("quick,ladder,ladder/lenet") == ["quick", *ladder]
    assert set(recipe.expand("keras")) == {name for name in recipe.names() if name.startswith("keras/")}


@pytest.mark.slow
def test_a_folder_of_recipes_is_each_of_them(command, tmp_path, tables):
    write_tables(tmp_path / "data/raw", tables)
    words = ("--recipe", "exploration", "--set", "train.epochs=1", "--workspace", tmp_path)
    assert command("--stage", "all", *words, "--device", "cpu").code == 0
    for name in recipe.expand("exploration"):
        assert (tmp_path / "submissions" / name / "submission.csv").exists()
    status = command("--status", *words)
    assert status.code == 0 and status.out.count("predict   fresh") == len(recipe.expand("exploration"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--stage", "compare"), "wants --recipe"),
        (("--stage", "compare", "--recipe", "laddr"), "there is no recipe 'laddr'"),
        (("--stage", "compare", "--recipe", "best"), "best trains several networks"),
        (("--stage", "compare", "--recipe", "quick", "--seeds", "0"), "from 1 to 1000"),
        (("--stage", "compare", "--recipe", "quick", "--engine", "dask=tcp://127.0.0.1:9"), "leave --engine out"),
        (("--stage", "compare", "--recipe", "quick", "--seeds", "1", "--ensemble"), "--seeds 2 or more"),
        (("--stage", "compare", "--recipe", "quick", "--set", "split.folds=3"), "trains several networks"),
        (
            ("--stage", "compare", "--recipe", "ladder/lenet", "--set", "model.layers=['max_pool 9', 'max_pool 9']"),
            "lenet",
        ),
        (("--stage", "all", "--seeds", "2"), "for --stage compare"),
        (("--stage", "submit", "--recipe", "ladder"), "one recipe at a time"),
        (("--stage", "train", "--ensemble"), "for --stage compare"),
    ],
)
def test_mistakes_are_one_line(command, capsys, tmp_path, words, said):
    try:
        run = command(*words, "--workspace", tmp_path)
    except SystemExit as stop:  # of the parser
        run = Outcome(stop.code, *capsys.readouterr())
    assert run.code == 2 and said in run.err and run.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


class TestPage:
    def test_of_a_comparison_holds_everything(self, compared):
        _, _, html = of(compared)
        assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html
        assert len(re.findall(r'<img src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}" alt="[^"]+">', html)) == 2
        assert html.count("<tr>") == 1 + 3

    def test_what_is_shown_is_escaped(self):
        bad = '<script>alert("x")</script>&'
        html = page.page(bad, [page.heading(bad), page.text(bad), page.table([bad], [[bad]]), page.picture(b"x", bad)])
        assert b"<script" not in html and html.count(b"&lt;script&gt;") == 7

    def test_a_table_in_markdown_keeps_its_columns(self):
        rows = [comparison.Row("a|b", note="x | y"), comparison.Row("c", accuracy=0.5)]
        lines = comparison.as_markdown(rows).splitlines()
        assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [5] * 4
        assert lines[0] == "| recipe | seeds | accuracy | note |"


def test_titles_are_folders(tmp_path):
    assert comparing.title("ladder/lenet,quick", []) == "ladder-lenet+quick"
    assert comparing.title("quick", ["train.epochs=1"]) != comparing.title("quick", ["train.epochs=2"])
    long = comparing.title(",".join(recipe.names()), [])
    assert len(long) < 120 and comparing.title("../x/mine.toml", []) == "mine"
