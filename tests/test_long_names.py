"""Names that are longer than a file system accepts: of recipes, of several recipes together, and in recorded texts."""

import itertools
from pathlib import Path

import pytest

from pipeline.extras import EXTRAS
from pipeline.recipes import config
from pipeline.workflow import store
from pipeline.workflow.engine import Workflow
from tests.conftest import TINY, write_tables

LONG = "x" * 300  # most file systems allow 255 bytes


@pytest.fixture
def recipe_files(tmp_path):
    """The value of --recipe for two files that no folder can have both names of."""
    files = [tmp_path / f"{letter * 150}.toml" for letter in "ab"]
    for file in files:
        file.write_bytes((config.RECIPES / "quick.toml").read_bytes())
    return ",".join(map(str, files))


@pytest.mark.usefixtures("without_pictures")
def test_the_mean_of_recipes(command, tmp_path, tables, recipe_files):
    pytest.importorskip("pipeline.extras.blend")
    write_tables(tmp_path / "data/raw", tables)
    options = (*TINY[2:], "--workspace", tmp_path)
    for _ in range(2):  # the second time, results are replaced
        run = command("--stage", "all", "--recipe", recipe_files, *options, "--device", "cpu", "--force")
        assert run.code == 0, run.err
    status = command("--status", "--recipe", recipe_files, *options)
    assert status.code == 0 and sum(" fresh" in line for line in status.lines()) == 2 * 6 + 1
    (submission,) = tmp_path.glob("submissions/*+*/submission.csv")
    assert submission.read_bytes().count(b"\n") == 101
    lines = command("--status", "--workspace", tmp_path).lines()
    assert f"blend {submission.parent.name}: fresh" in lines
    assert command("--clean", *options[-2:]).out == "nothing is unused\n"


def test_the_name_of_a_blend_depends_on_all_of_its_recipes():
    stage = pytest.importorskip("pipeline.extras.blend.stage")
    quick = config.load_recipe("quick")

    def name(*names):
        runs = [Workflow({}, Path(), quick.model_copy(update={"name": name})) for name in names]
        return stage.join(EXTRAS["blend"], names, runs, download=False).name

    recipes = ["a" * 200, "b" * 200, "c" * 240, "d" * 240]
    names = [name(*part) for count in (2, 3, 4) for part in itertools.permutations(recipes, count)]
    assert len(set(names)) == len(names) and max(map(len, names)) <= config.MAX_NAME
    assert name("a/b", "c") == "a/b+c"


def test_a_recipe_file_with_a_name_that_its_results_cannot_have(command, tmp_path):
    """Folders of results are named "NAME.previous" for a moment."""
    file = tmp_path / f"{'x' * 245}.toml"
    file.write_text("")
    run = command("--stage", "prepare", "--recipe", file, "--workspace", tmp_path)
    assert run.code == 2 and "at most 240 letters" in run.err and run.err.count("\n") == 1


@pytest.mark.parametrize(
    "text", [None, LONG, f"{LONG}.toml", f"{'/a' * 3000}.toml", f"~{LONG},~{LONG}.toml", "," * 300, "ladder," * 99]
)
def test_recorded_recipes(command, tmp_path, recipe_files, text):
    for place in (
        "data/runs/a+b/train",
        "data/runs/a/evaluate",
        "data/compare/a",
        "data/generated/a",
        "submissions/a+b",
    ):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        recorded = {"recipe": text or recipe_files, "recipes": text.split(",") if text else recipe_files.split(",")}
        store.write_json(folder / store.CONTEXT, {"stage": "compare" if "compare" in place else "blend", **recorded})
    for action in ("--status", "--clean"):
        run = command(action, "--workspace", tmp_path)
        assert run.code == 0 and not run.err
        assert text or "too long" not in run.out


@pytest.mark.parametrize("option", ["--data", "--workspace"])
def test_a_path_that_is_too_long_is_a_mistake_in_the_call(command, tmp_path, option):
    options = {"--workspace": tmp_path, "--data": "sample", option: tmp_path / LONG}
    run = command("--stage", "download", *itertools.chain(*options.items()))
    assert run.code == 2 and str(tmp_path / LONG) in run.err and run.err.count("\n") == 1
