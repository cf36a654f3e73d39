"""The command line itself: help, exit codes, one clear line for every mistake, a traceback with --debug alone."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import run_pipeline
from tests.conftest import write_tables

ROOT = Path(__file__).parent.parent


def test_help_names_the_stages():
    run = subprocess.run([sys.executable, "run_pipeline.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    for word in ("download", "prepare", "augment", "train", "evaluate", "predict", "submit", "--status", "--recipe"):
        assert word in run.stdout


@pytest.mark.parametrize("words", [[], ["--stage", "nothing"], ["--status", "--list"], ["--stage", "all", "--epochs"]])
def test_wrong_calls_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        run_pipeline.main(words)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--recipe", "quik"],
        ["--recipe", "nowhere.toml"],
        ["--recipe", "quick", "--set", "train.epochs=0"],
        ["--recipe", "quick", "--set", "train.epoch=1", "--set", "trian.epochs=1"],
        ["--recipe", "quick", "--data", "nowhere.zip"],
        ["--recipe", "quick", "--device", "cuda"],
        ["--recipe", "quick", "--set", "train.learning_rate=1" + "0" * 400],
        ["--recipe", "quick", "--set", "augment.angles=" + "[" * 3000],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_mistakes_are_one_line_and_change_nothing(command, tmp_path, words):
    import torch

    if "cuda" in words and torch.cuda.is_available():
        words = [*words[:-1], "mps"]
    run = command("--stage", "all", *words, "--workspace", tmp_path)
    assert run.code == 2
    assert run.err.startswith("error: ") and run.err.count("\n") == 1 and "Traceback" not in run.out + run.err
    assert not (tmp_path / "data" / "raw").exists()


def test_a_workspace_that_is_a_file(command, tmp_path):
    (tmp_path / "file").write_text("")
    run = command("--stage", "all", "--recipe", "quick", "--workspace", tmp_path / "file")
    assert (run.code, run.err.count("\n")) == (2, 1) and "not a folder" in run.err


def test_debug_shows_the_traceback(command, tmp_path):
    run = command("--stage", "all", "--recipe", "quick", "--data", "nowhere.zip", "--workspace", tmp_path, "--debug")
    assert run.code == 2 and "Traceback" in run.err and run.err.splitlines()[-1].startswith("error: ")


def test_an_unforeseen_error_is_one_line_and_in_the_log(command, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.from_sample", lambda folder: 1 / 0)
    run = command("--stage", "all", "--recipe", "quick", "--data", "sample", "--workspace", tmp_path)
    assert run.code == 1 and run.err == "error: ZeroDivisionError: division by zero\n"
    (log,) = (tmp_path / "data/logs").iterdir()
    assert "Traceback" in log.read_text()


def test_what_cannot_be_written_names_the_path_and_the_cause(command, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    run = command("--stage", "all", "--recipe", "quick", "--data", "sample", "--workspace", tmp_path)
    assert run.code == 1 and run.err.count("\n") == 1
    assert str(tmp_path) in run.err and "No space left on device" in run.err


def test_the_first_line_says_which_recipe(command, finished):
    run = command("--stage", "prepare", "--workspace", finished, "--device", "cpu")
    assert run.lines()[0].startswith("recipe ") and "--recipe chooses another" in run.lines()[0]


@pytest.mark.parametrize(("device", "recipe"), [("cpu", "quick"), ("auto", "dropout_cnn"), ("cuda", "dropout_cnn")])
def test_the_default_recipe_is_for_the_device_that_is_chosen(command, finished, monkeypatch, device, recipe):
    """On a machine with a GPU."""
    monkeypatch.setattr("pipeline.stages.engine.has", lambda device: device in ("cpu", "cuda"))
    run = command("--stage", "prepare", "--workspace", finished, "--device", device)
    assert run.code == 0 and run.lines()[0].startswith(f"recipe {recipe}: ")


def test_downloading_needs_neither_a_recipe_nor_torch(tmp_path, tables):
    write_tables(tmp_path / "given", tables)
    words = ["--stage", "download", "--data", str(tmp_path / "given"), "--workspace", str(tmp_path / "work")]
    code = f"import sys, run_pipeline; assert run_pipeline.main({words!r}) == 0; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert lines[0] == "download: running, asked for" and lines[-1] == "False", run.stderr


def test_documented_commands_and_recipes_exist():
    """Every command in the documentation parses, every recipe is described, and every relative link has a target."""
    from pipeline import recipe

    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = {page: page.read_text() for page in pages}
    for name in recipe.names():
        assert f"`{name}`" in texts[ROOT / "docs/recipes.md"], name
    for page, text in texts.items():
        for line in text.splitlines():
            if line.strip().startswith("python run_pipeline.py"):
                run_pipeline.parse(shlex.split(line, comments=True)[2:])
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
