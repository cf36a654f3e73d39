"""`--stage explore`: what it writes, when it runs, and the rows that it names."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from pipeline.extras import EXTRAS
from pipeline.extras.explore import report
from pipeline.extras.explore.entry import CAPTIONS
from pipeline.metrics import embedding
from tests.conftest import TINY

DRAWS = True
OPTIONS = (*TINY, "--set", "explore.rows=60")
PICTURES = [name for name in EXTRAS["explore"].outputs if name.endswith(".png")]


@pytest.fixture
def without_pictures(monkeypatch):
    """Empty pictures, since drawing takes most of the time."""
    monkeypatch.setattr(report, "draw", lambda study: dict.fromkeys(CAPTIONS, b""))


@pytest.fixture(scope="module")
def _explored(_tiny, tmp_path_factory):
    """The run with TINY, explored; tests leave it as it is."""
    import shutil

    import run_pipeline

    workspace = shutil.copytree(_tiny, tmp_path_factory.mktemp("explored") / "workspace")
    assert run_pipeline.main(["--stage", "explore", *OPTIONS, "--workspace", str(workspace)]) == 0
    return workspace


def test_the_stage_writes_pictures_numbers_and_a_page(_explored):
    folder = _explored / "data/explore"
    assert all((folder / name).exists() for name in EXTRAS["explore"].outputs)
    for name in PICTURES:
        height, width, _ = imread(folder / name).shape
        assert 250 < height < 1200 and 500 < width < 1300, name
    numbers = json.loads((folder / "explore.json").read_text())
    labels = np.load(_explored / "data/prepared/arrays/train_labels.npy")
    assert [digit["rows"] for digit in numbers["by_digit"]] == np.bincount(labels, minlength=10).tolist()
    points = np.load(folder / "tsne.npy")
    assert numbers["tsne"]["neighbour_accuracy"] == embedding.neighbour_accuracy(points, labels[:60])
    html = (folder / "explore.html").read_text()
    assert html.count("<img") == len(PICTURES) and f"{len(labels):,} training rows" in html
    assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html
    assert (pd.read_csv(folder / "copies.csv").columns == ["table", "row", "other_table", "other_row"]).all()


def test_it_runs_only_on_demand_and_its_state_is_shown(command, tiny, without_pictures):
    options = (*OPTIONS, "--workspace", tiny)
    assert "explore" not in command("--status", *options).out
    assert "explore:" not in command("--stage", "all", *options, "--device", "cpu").out
    run = command("--stage", "explore", *options)
    assert run.code == 0 and "400 training rows and 100 test rows" in run.out
    assert "explore   fresh" in command("--status", *options).out
    assert "explore.rows 60 -> 50" in command("--status", *options, "--set", "explore.rows=50").out
    assert command("--clean", "--yes", "--workspace", tiny).code == 0
    assert (tiny / "data/explore/explore.html").exists()
    again = command("--stage", "explore", *options, "--set", "explore.rows=50")
    assert again.code == 0 and np.load(tiny / "data/explore/tsne.npy").shape == (50, 2)


def test_copies_are_named_by_their_rows(command, tiny, tables, without_pictures):
    """Row 7 of train.csv again at its end."""
    lines = tables["train.csv"].splitlines()
    (tiny / "data/raw/train.csv").write_bytes(b"\n".join([*lines, lines[7]]) + b"\n")
    options = (*OPTIONS, "--workspace", tiny)
    for stage in ("download", "prepare", "explore"):
        assert command("--stage", stage, *options).code == 0
    table = pd.read_csv(tiny / "data/explore/copies.csv")
    assert table.to_dict("records") == [{"table": "train", "row": 7, "other_table": "train", "other_row": len(lines)}]
    numbers = json.loads((tiny / "data/explore/explore.json").read_text())
    assert numbers["copies"] == {"train-train": 1, "test-test": 0, "train-test": 0}
    nearest = [(pair["train"], pair["nearest_train"]) for pair in numbers["nearest_train_train"]]
    assert nearest and (7, len(lines)) not in nearest and all(row < other_row for row, other_row in nearest)


@pytest.mark.parametrize(("rows", "code"), [(1, 2), (9, 2), (10, 0)])
def test_too_few_rows_for_tsne_are_refused(command, tiny, without_pictures, rows, code):
    run = command("--stage", "explore", *TINY, "--set", f"explore.rows={rows}", "--workspace", tiny)
    assert run.code == code and run.err.count("\n") == (code > 0)
    assert not code or ("explore.rows" in run.err and "10" in run.err)


@pytest.mark.slow
def test_the_same_data_give_the_same_pictures(command, _explored):
    folder = _explored / "data/explore"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}
    assert command("--stage", "explore", *OPTIONS, "--workspace", _explored).code == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}
