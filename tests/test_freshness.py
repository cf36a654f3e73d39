"""What an edit of the pipeline's own code makes stale, seen through `--status` of an edited copy."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.source_code import syntax_hash
from tests.conftest import SHORT

ROOT = Path(__file__).parent.parent


@pytest.fixture
def edited_copy(_finished, tmp_path):
    """A function that edits a file in a copy of the pipeline, and returns the stale stages with their reasons."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "pipeline", copy / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_pipeline.py", copy)

    def stale(file=None, pattern="", replacement=""):
        if file:
            path = copy / "pipeline" / file
            text, count = re.subn(pattern, replacement, path.read_text(), count=1)
            assert count == 1, f"{pattern} does not occur in {file}"
            path.write_text(text)
        command = [sys.executable, "run_pipeline.py", "--status", *SHORT, "--workspace", _finished]
        run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        rows = [line.split(None, 2) for line in run.stdout.splitlines()[1:]]
        return {row[0]: row[2] for row in rows if row[1] != "fresh"}

    assert stale() == {}
    return stale


def test_an_edited_layer_makes_the_networks_of_this_model_stale(edited_copy):
    stale = edited_copy("nn/models/small_cnn.py", r"_?block\(64, 128, 3\)", "block(64, 128, 2)")
    assert stale["train"] == "pipeline/nn/models/small_cnn.py changed"
    assert list(stale) == ["train", "evaluate", "predict"]


def test_a_reformatted_or_commented_model_and_another_model_make_nothing_stale(edited_copy):
    assert edited_copy("nn/models/small_cnn.py", r"super\(\).__init__\(\)", "super( ).__init__()  # first") == {}
    assert edited_copy("nn/models/small_cnn.py", r'"""[^"]+"""', '"""Another docstring."""') == {}
    assert edited_copy("nn/models/medium_cnn.py", r"block\(1, 64", "block(1, 48") == {}


def test_an_edited_training_loop_makes_networks_stale(edited_copy):
    stale = edited_copy("nn/training_loop.py", r"FULL_EPOCHS = 2", "FULL_EPOCHS = 3")
    assert stale["train"] == "pipeline/nn/training_loop.py changed"


def test_a_new_setting_makes_nothing_stale_and_a_changed_default_does(edited_copy):
    new = "class Train(Section):\n    new_setting: float = 0.5\n"
    assert edited_copy("settings.py", r"class Train\(Section\):\n", new) == {}
    stale = edited_copy("settings.py", r"(swa_fraction: float = Field\(default=)0\.0", r"\g<1>0.25")
    assert stale["train"].startswith("train.swa_fraction 0.0 -> 0.25")


def test_a_new_setting_keeps_a_recorded_estimate_and_a_changed_default_does_not(monkeypatch):
    from pipeline import config

    recipe = config.load_recipe("quick")
    assert config.estimate_difference(recipe) == ""
    settings = {**config.accuracy_settings(recipe), "train.new_setting": 0.5}
    monkeypatch.setattr(config, "accuracy_settings", lambda recipe: settings)
    monkeypatch.setitem(config.DEFAULTS, "train.new_setting", 0.5)
    assert config.estimate_difference(recipe) == ""
    settings["train.swa_fraction"] = 0.25
    assert config.estimate_difference(recipe) == "train.swa_fraction 0.0 -> 0.25"


def test_the_hash_depends_on_the_syntax_tree_alone():
    code = "def f(x):\n    return x + 1\n"
    same = [
        '"""Docstring."""\ndef f(x: int) -> int:\n    """Another."""\n    # comment\n    return (x\n            + 1)\n',
        "def f(\n    x,\n):\n    return x + 1",
    ]
    different = ["def f(x):\n    return x + 2\n", "def f(x, y=1):\n    return x + 1\n", "def g(x):\n    return x + 1\n"]
    assert all(syntax_hash(text) == syntax_hash(code) for text in same)
    assert len({syntax_hash(text) for text in (code, *different)}) == 4
    # The same on every Python version: recorded with Python 3.11.
    assert syntax_hash(code) == "d093199db43588ef"
    assert syntax_hash('f"{x:<{y}} and {x!r}"') == "3ce1d3e44a5606b5"
