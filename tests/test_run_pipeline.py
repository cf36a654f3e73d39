"""run_pipeline.py: interpreters that are too old or lack packages, and interruptions of its imports."""

import ast
import re
import shutil
import signal
import subprocess
import sys
from importlib import metadata

import pytest

from pipeline.errors import REQUIRED
from tests.interference import ROOT

INSTALL = "-m venv .venv && .venv/bin/pip install -r requirements.txt"
# Runs the script after a statement; `on_import` calls a function at the first import of a module.
PREPARED = """
import os, runpy, signal, sys
def on_import(module, action):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == module:
                sys.meta_path.remove(self)
                action()
    sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, "")
exec(sys.argv.pop(1))
sys.argv[0] = "run_pipeline.py"
runpy.run_path("run_pipeline.py", run_name="__main__")
"""


def start(statement, *arguments):
    command = [sys.executable, "-c", PREPARED, statement, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# Old interpreters


def check_refused(run, version):
    assert run.returncode == 2 and run.stdout == "" and run.stderr.count("\n") == 1
    assert run.stderr.startswith(f"error: this is Python {version}, and the pipeline requires Python 3.11 or newer")
    assert INSTALL in run.stderr


def test_an_old_interpreter_is_refused():
    check_refused(start("sys.version_info = (3, 10, 12, 'final', 0)", "--stage", "all"), "3.10")


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8", "3.9", "3.10"])
def test_an_old_interpreter_of_this_machine_is_refused(version):
    python = shutil.which(f"python{version}")
    if not python or subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip(f"there is no Python {version}")
    command = [python, "run_pipeline.py", "--list"]
    check_refused(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False), version)


def test_the_script_has_the_syntax_of_old_interpreters():
    text = (ROOT / "run_pipeline.py").read_text()
    assert text.isascii()  # otherwise, Python 2.7 requires a declaration of the encoding
    newer = ast.JoinedStr | ast.AnnAssign | ast.NamedExpr | ast.Starred | ast.Nonlocal | ast.Match
    tree = ast.parse(text, feature_version=(3, 4))
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports == ["import sys"]  # others can be interrupted
    for node in ast.walk(tree):
        assert not isinstance(node, newer), ast.unparse(node)
        assert not getattr(node, "annotation", None) and not getattr(node, "returns", None), ast.unparse(node)
        assert not getattr(node, "kwonlyargs", None) and not getattr(node, "cause", None), ast.unparse(node)


# Missing packages


def test_the_message_names_the_command_of_the_readme():
    assert f"python3 {INSTALL}" in (ROOT / "README.md").read_text()


def test_the_required_modules_are_those_of_the_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.match(r"[A-Za-z0-9-]+", line)[0].lower() for line in lines if not line.startswith("#")}
    packages = metadata.packages_distributions()
    assert {name.lower() for module in REQUIRED for name in packages[module]} == required


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("pydantic", ["--list"]),
        ("filelock", ["--list"]),
        ("torch", ["--stage", "train", "--device", "cpu"]),  # imported by the stage
    ],
)
def test_a_missing_package_is_named(module, arguments, tmp_path):
    workspace = ["--workspace", tmp_path] if "--stage" in arguments else []
    run = start(f"sys.modules[{module!r}] = None", *arguments, *workspace)
    expected = (
        f"error: {sys.executable} lacks the package {module}: run `python3 {INSTALL}`, then use .venv/bin/python\n"
    )
    assert (run.returncode, run.stderr) == (2, expected)


@pytest.mark.parametrize("module", ["pipeline.recipes.settings", "tomllib"])
def test_another_failed_import_is_not_called_a_missing_package(module):
    run = start(f"sys.modules[{module!r}] = None", "--list")
    assert run.returncode == 1 and run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: ModuleNotFoundError: ") and module in run.stderr and "venv" not in run.stderr
    assert "Traceback" in start(f"sys.modules[{module!r}] = None", "--list", "--debug").stderr


# Interruptions


@pytest.mark.parametrize("module", ["pipeline.cli.main", "pydantic", "filelock", "pipeline.workflow.stage"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_of_the_imports_takes_one_line(module, number, code):
    run = start(f"on_import({module!r}, lambda: os.kill(os.getpid(), {int(number)}))", "--list")
    stopped = "stopped: finished work is kept; the same command continues from there\n"
    assert (run.returncode, run.stdout, run.stderr) == (code, "", stopped)


def test_the_handler_of_the_calling_process_stays():
    import run_pipeline

    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_pipeline.main(["--help"])
    assert signal.getsignal(signal.SIGTERM) is previous
