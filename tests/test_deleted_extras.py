"""Extras can be deleted: the folder, its tests and its line in the table."""

import shutil
import subprocess
import sys

import pytest

from pipeline import ROOT
from pipeline.extras import NAMES
from tests.conftest import SHORT

COPIED = ("pipeline", "tests", "docs", "examples", "requirements", "run_pipeline.py", "pyproject.toml", "README.md")


@pytest.fixture
def delete(tmp_path):
    """A function that deletes extras in a copy of the checkout, and returns the copy."""

    def delete(names):
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / name)
        table = tmp_path / "pipeline/extras/__init__.py"
        for name in names:
            shutil.rmtree(tmp_path / "pipeline/extras" / name)
            shutil.rmtree(tmp_path / "tests/extras" / name)
            line = f'    "{name}",\n'
            assert table.read_text().count(line) == 1
            table.write_text(table.read_text().replace(line, ""))
        return tmp_path

    return delete


@pytest.mark.parametrize("names", [NAMES, *(pytest.param((name,), marks=pytest.mark.slow) for name in NAMES)], ids=str)
def test_the_rest_works_without_an_extra(delete, tmp_path_factory, names):
    copy, workspace = delete(names), str(tmp_path_factory.mktemp("work"))

    def run(*arguments):
        process = subprocess.run([sys.executable, *arguments], cwd=copy, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr
        return process.stdout

    text = run("run_pipeline.py", "--help")
    assert "recognize" in text or "recognize" in names
    assert "quick" in run("run_pipeline.py", "--list")
    options = (*SHORT, "--set", "inspect.rows=20", "--data", "sample", "--device", "cpu", "--workspace", workspace)
    assert "submission.csv (" in run("run_pipeline.py", "--stage", "all", *options)
    if names == ("explore",):  # to whose page inspect links
        run("run_pipeline.py", "--stage", "inspect", *options)
    assert "stale" not in run("run_pipeline.py", "--status", *options)
    run("-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow")
