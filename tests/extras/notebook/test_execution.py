"""The notebook is executed as on Kaggle: read-only inputs, a kernel without the optional packages, no internet."""

import contextlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from pipeline.cli.main import main
from pipeline.kaggle import machine as kaggle_machine
from tests.conftest import TINY, write_tables
from tests.test_structure import ROOT

# What Kaggle's image may lack. The pipeline needs none of it for attached data.
OPTIONAL = ("openTSNE", "mlxtend", "jaxtyping", "beartype", "kaggle", "kagglesdk", "tensorboard", "distributed")
BLOCK = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


class Machine:
    """A machine like Kaggle's: `execute` runs a notebook there and returns it with its outputs."""

    def __init__(self, root, tables, mount, monkeypatch):
        self.root, self.working, self.input = root, root / "working", root / "input"
        write_tables(self.input / mount, tables)
        self.working.mkdir()
        (root / "tmp").mkdir()
        monkeypatch.setenv(kaggle_machine.INPUT_VARIABLE, str(self.input))
        monkeypatch.setenv(kaggle_machine.WORKING_VARIABLE, str(self.working))
        monkeypatch.setenv("TMPDIR", str(root / "tmp"))
        monkeypatch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        monkeypatch.setenv("IPYTHONDIR", str(root / "ipython"))
        monkeypatch.setenv("MPLCONFIGDIR", str(root / "matplotlib"))

    def install_kernel(self, python):
        """The kernel "python3" is the one of this interpreter."""
        specification = {"argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
        folder = self.root / "jupyter/kernels/python3"
        folder.mkdir(parents=True)
        specification |= {"display_name": "Python 3", "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(specification))

    def execute(self, file):
        notebook = nbformat.read(file, as_version=4)
        paths = [self.input, *self.input.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}
        try:
            client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources={})
            client.execute(cwd=str(self.working))
        finally:
            for path in paths:
                path.chmod(0o755)
            nbformat.write(notebook, self.root / "executed.ipynb")
        assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths} == before
        return notebook


@pytest.fixture
def build(tmp_path):
    """The notebook of a recipe as a file."""

    def call(*options):
        assert main(["--stage", "notebook", *options, "--workspace", str(tmp_path / "user")]) == 0
        return tmp_path / "user/data/notebook/digit-recognizer.ipynb"

    return call


def printed_text(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def picture_count(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture
def machine(tmp_path, tables, monkeypatch):
    """With this interpreter, in which the optional packages cannot be imported."""
    kaggle_like = Machine(tmp_path / "kaggle", tables, "competitions/digit-recognizer", monkeypatch)
    kaggle_like.install_kernel(sys.executable)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/sitecustomize.py").write_text(BLOCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "blocked"), prepend=os.pathsep)
    return kaggle_like


@pytest.mark.slow
def test_executed_notebook_writes_the_submission_of_a_local_run(machine, build, tiny):
    notebook = machine.execute(build(*TINY, "--device", "cpu"))
    submission = machine.working / "submission.csv"
    assert submission.read_bytes() == (tiny / "submissions/quick/submission.csv").read_bytes()
    text = printed_text(notebook)
    for part in ("predict: done", "accuracy   0.", f"reading {machine.input}", "100 rows in"):
        assert part in text
    assert "\r" not in text and len(text.splitlines()) < 60, "progress bars"
    assert "kaggle competitions submit" not in text  # not 28,000 rows
    assert picture_count(notebook) == 3
    # All that was written is in the working folder, apart from the unpacked package.
    assert {path.name for path in machine.working.iterdir()} == {"data", "submissions", "submission.csv"}
    (unpacked,) = (path for path in (machine.root / "tmp").iterdir() if path.is_dir())
    assert unpacked.name.startswith("digit-recognizer-")


@pytest.mark.slow
def test_failed_run_fails_the_session(machine, build):
    """Kaggle reports ERROR only if a cell raises."""
    table = next(machine.input.rglob("train.csv"))
    table.write_bytes(table.read_bytes().replace(b"\n", b"\nx", 1))
    with pytest.raises(CellExecutionError, match="exit code 2"):
        machine.execute(build(*TINY))
    executed = nbformat.read(machine.root / "executed.ipynb", as_version=4)
    assert "error: " in printed_text(executed) and "train.csv" in printed_text(executed)


@pytest.fixture(scope="session")
def kaggle_python(tmp_path_factory):
    """An interpreter with the packages of Kaggle's image that the pipeline uses, and without the optional ones.

    DIGIT_RECOGNIZER_KAGGLE_PYTHON names an existing one.
    """
    if python := os.environ.get("DIGIT_RECOGNIZER_KAGGLE_PYTHON"):
        return Path(python)
    folder = tmp_path_factory.mktemp("image")
    venv.create(folder, with_pip=True)
    packages = ["ipykernel", "torch", "numpy==2.0.*", "scipy", "scikit-learn==1.6.*", "pandas==2.2.*", "matplotlib"]
    packages += ["pillow", "pydantic==2.12.*", "safetensors==0.7.*", "joblib==1.5.*", "tqdm==4.67.*", "filelock"]
    constraints = folder / "constraints.txt"
    torch = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch=="))
    constraints.write_text(torch.partition("#")[0] + "\n")
    install = [folder / "bin/pip", "install", "--quiet", "-c", constraints, *packages]
    subprocess.run(install, check=True, timeout=1200)
    return folder / "bin/python"


@pytest.mark.slow
@pytest.mark.parametrize("mount", ["competitions/digit-recognizer", "digit-recognizer"])
def test_in_an_environment_without_the_optional_packages(kaggle_python, build, command, tmp_path, monkeypatch, mount):
    """The sample under the competition's names; the submission equals that of a local run with the same packages."""
    for name in OPTIONAL:
        check = subprocess.run([kaggle_python, "-c", f"import {name}"], capture_output=True, check=False)
        assert check.returncode, f"{name} is installed"
    assert command("--stage", "download", "--data", "sample", "--workspace", tmp_path / "sample").code == 0
    names = ("train.csv", "test.csv", "sample_submission.csv")
    tables = {name: (tmp_path / "sample/data/raw" / name).read_bytes() for name in names}
    machine = Machine(tmp_path / "kaggle", tables, mount, monkeypatch)
    machine.install_kernel(kaggle_python)
    options = ("--recipe", "quick", "--set", "train.epochs=3", "--device", "cpu")
    notebook = machine.execute(build(*options))
    assert picture_count(notebook) == 3
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.delenv(kaggle_machine.INPUT_VARIABLE)
        patch.delenv(kaggle_machine.WORKING_VARIABLE)
        local = tmp_path / "local"
        data = ("--data", machine.input / mount, "--workspace", local)
        subprocess.run(
            list(map(str, [kaggle_python, "run_pipeline.py", "--stage", "all", *options, *data])), cwd=ROOT, check=True
        )
    # And with the packages that the tests run with.
    newest = tmp_path / "newest"
    assert command("--stage", "all", *options, "--data", machine.input / mount, "--workspace", newest).code == 0
    submission = (machine.working / "submission.csv").read_bytes()
    assert submission.count(b"\n") == 1251
    assert submission == (local / "submissions/quick/submission.csv").read_bytes()
    assert submission == (newest / "submissions/quick/submission.csv").read_bytes()
    receipt = json.loads((machine.working / "submissions/quick/submission.json").read_bytes())
    assert receipt["validation"]["accuracy"] > 0.9
