"""cli: help, exit codes, one clear line for every mistake, a traceback only with --debug."""

import re
import shlex
import subprocess
import sys

import pytest

from pipeline.cli import arguments
from pipeline.cli.arguments import parse_arguments
from pipeline.cli.main import main
from pipeline.dataset import fetch
from pipeline.recipes import config
from tests.conftest import write_tables
from tests.interference import ROOT


def test_the_script_shows_its_help():
    command = [sys.executable, "run_pipeline.py", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0
    for word in ("download", "prepare", "augment", "train", "evaluate", "predict", "submit", "--status", "--recipe"):
        assert word in run.stdout


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--stage", "nothing"],
        ["--status", "--list"],
        ["--stage", "all", "--epochs"],
        ["--stage", "compare"],
        ["--stage", "recognize"],
    ],
    ids=" ".join,
)
def test_wrong_options_exit_with_2(options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(options)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1


VALUES = {
    "data": "sample",
    "device": "cpu",
    "engine": "dask=tcp://h:1",
    "images": "a.png",
    "recipe": "quick",
    "seeds": "2",
    "set": "train.epochs=1",
    "tracker": "tensorboard",
    "workspace": "w",
}


def has_stage(options):
    """Whether the stage in a command exists; an extra may have been deleted."""
    name = re.search(r"--stage (\w+)", options)
    return not name or name[1] in {"all", *arguments.ENTRIES}


def require_stage(options):
    if not has_stage(options):
        pytest.skip("this extra was deleted")


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ("--list", "data device engine ensemble force images recipe seeds set tracker wait workspace yes"),
        ("--status", "engine ensemble force images seeds tracker wait yes"),
        ("--clean", "data device engine ensemble force images recipe seeds tracker"),
        ("--stage all", "ensemble images seeds yes"),
        ("--stage train", "ensemble images seeds yes"),
        ("--stage evaluate", "engine ensemble images seeds tracker yes"),
        ("--stage compare --recipe quick", "engine images tracker yes"),
        ("--stage generate", "engine ensemble images seeds tracker yes"),
        ("--stage submit", "engine ensemble images seeds tracker yes"),
        ("--stage notebook", "data engine ensemble images seeds tracker yes"),
        ("--stage recognize --images a.png", "engine ensemble force seeds tracker yes"),
    ],
)
def test_an_option_without_effect_is_refused(options, refused, capsys):
    require_stage(options)
    for name in sorted(arguments.USED_BY):
        option = [f"--{name}", VALUES[name]] if name in VALUES else [f"--{name}"]
        if name not in refused.split():
            parse_arguments([*options.split(), *option])
            continue
        with pytest.raises(SystemExit) as stop:
            parse_arguments([*options.split(), *option])
        message = capsys.readouterr().err
        assert stop.value.code == 2 and message.count("\n") == 1
        assert message.startswith(f"error: --{name} does not apply to {' '.join(options.split()[:2])}, only to ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stage trian", "unknown stage 'trian' (nearest: train)"),
        ("--stages all", "unknown option --stages (nearest: --stage)"),
        ("--stage all --sets=train.epochs=1", "unknown option --sets (nearest: --set)"),
        ("--stage all --set train.epoch=3", "unknown setting train.epoch (nearest: train.epochs)"),
        ("--stage all --set epochs=3", "expected section.field=value (nearest: train.epochs, gan.epochs)"),
        ("--stage all --data kagle", "--data kagle: no such file or folder (nearest: kaggle)"),
        ("--stage all --recipe quik", "unknown recipe 'quik' (nearest: quick)"),
    ],
)
def test_the_nearest_name_is_suggested(options, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        sys.exit(main([*options.split(), "--workspace", str(tmp_path), "--device", "cpu"]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_every_option_says_what_it_applies_to():
    options = set(vars(parse_arguments(["--list"])))
    assert options == {*arguments.USED_BY, "stage", "status", "list", "clean", "debug"}


@pytest.mark.parametrize(
    "options",
    [
        ["--recipe", "quik"],
        ["--recipe", "nowhere.toml"],
        ["--recipe", "quick", "--set", "train.epochs=0"],
        ["--recipe", "quick", "--set", "train.epoch=1", "--set", "trian.epochs=1"],
        ["--recipe", "quick", "--data", "nowhere.zip"],
        ["--recipe", "quick", "--device", "cuda"],
        ["--recipe", "quick", "--engine", "dask=localhost"],
        ["--recipe", "quick", "--engine", "dask=tcp://127.0.0.1:9"],
        ["--recipe", "quick", "--set", "train.learning_rate=1" + "0" * 400],
        ["--recipe", "quick", "--set", "augment.angles=" + "[" * 3000],
    ],
    ids=lambda options: " ".join(options)[:60],
)
def test_a_mistake_is_reported_in_one_line_and_changes_nothing(command, tmp_path, monkeypatch, options):
    monkeypatch.setattr(
        "pipeline.machine.devices.why_unusable", lambda device: "" if device == "cpu" else "no such device"
    )
    run = command("--stage", "all", *options, "--workspace", tmp_path)
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


def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_the_log(command, tmp_path, monkeypatch):
    monkeypatch.setitem(fetch.FETCHERS, "sample", lambda folder: 1 / 0)
    run = command("--stage", "all", "--recipe", "quick", "--data", "sample", "--workspace", tmp_path)
    assert run.code == 1 and run.err == "error: ZeroDivisionError: division by zero\n"
    (log,) = (tmp_path / "data/logs").iterdir()
    assert "Traceback" in log.read_text()


def test_a_failed_write_is_reported_with_path_and_cause(command, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    run = command("--stage", "all", "--recipe", "quick", "--data", "sample", "--workspace", tmp_path)
    assert run.code == 1 and run.err.count("\n") == 1
    assert str(tmp_path) in run.err and "No space left on device" in run.err


@pytest.mark.parametrize(("device", "recipe"), [("cpu", "quick"), ("auto", "dropout_cnn"), ("cuda", "dropout_cnn")])
def test_the_first_line_names_the_recipe_whose_default_depends_on_the_device(
    command, tmp_path, tables, monkeypatch, device, recipe
):
    """On a machine with a GPU."""
    write_tables(tmp_path / "data/raw", tables)
    assert command("--stage", "download", "--workspace", tmp_path).code == 0
    monkeypatch.setattr("pipeline.machine.devices.why_unusable", lambda device: "")
    monkeypatch.setattr("pipeline.machine.devices.usable_gpus", lambda: (0,))
    monkeypatch.setattr("torch.cuda.set_device", lambda number: None)
    monkeypatch.setattr(
        "pipeline.workflow.engine.describe_environment", lambda device: {"commit": None, "versions": {}}
    )
    run = command("--stage", "prepare", "--workspace", tmp_path, "--device", device)
    assert run.code == 0 and run.lines()[0].startswith(f"recipe {recipe}: ")
    assert run.lines()[0].endswith("(--recipe chooses another)")
    assert ("--stage all --recipe standard" in run.out) == (recipe == "dropout_cnn")


def test_download_needs_neither_a_recipe_nor_torch(tmp_path, tables):
    write_tables(tmp_path / "tables", tables)
    command = ["--stage", "download", "--data", str(tmp_path / "tables"), "--workspace", str(tmp_path / "work")]
    code = f"import sys; from pipeline.cli.main import main; assert main({command}) == 0; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert lines[0] == "download: running, requested" and lines[-1] == "False", run.stderr


def test_documented_commands_and_recipes_exist():
    """Every command in the documentation parses, every recipe is described, and every relative link has a target."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = {page: page.read_text() for page in pages}
    for name in config.recipe_names():
        assert f"`{name}`" in texts[ROOT / "docs/recipes.md"], name
    for page, text in texts.items():
        for line in text.splitlines():
            if line.strip().startswith("python run_pipeline.py") and has_stage(line):
                parse_arguments(shlex.split(line, comments=True)[2:])
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_a_folder_of_recipes_runs_each_of_them(command, tmp_path, tables):
    write_tables(tmp_path / "data/raw", tables)
    arguments = ("--recipe", "exploration", "--set", "train.epochs=1", "--workspace", tmp_path)
    assert command("--stage", "all", *arguments, "--device", "cpu").code == 0
    names = config.recipes_in("exploration")
    for name in names:
        assert (tmp_path / "submissions" / name / "submission.csv").exists()
    status = command("--status", *arguments)
    assert status.code == 0 and status.out.count("predict   fresh") == len(names)
