"""notebook: the file that is pushed to Kaggle, its metadata, and the options that it passes on."""

import base64
import io
import json
import os
import re
import shutil
import stat
import string
import sys
import tempfile
import zipfile

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slugify import slugify

from pipeline.extras.notebook import notebook_file
from pipeline.extras.notebook.notebook_file import NotebookRun
from pipeline.recipes.settings import Notebook
from tests.conftest import TINY
from tests.test_structure import ROOT

RUN = NotebookRun("quick", ("quick",), ("--stage", "all", "--recipe", "quick"), gpu=True)


@pytest.fixture
def build(command, tmp_path):
    """`--stage notebook`; returns the notebook, its metadata and what was printed."""

    def call(*options):
        run = command("--stage", "notebook", "--workspace", tmp_path, *options)
        assert run.code == 0, run.err
        folder = tmp_path / "data/notebook"
        metadata = json.loads((folder / "kernel-metadata.json").read_text())
        return nbformat.read(folder / "digit-recognizer.ipynb", as_version=4), metadata, run.out

    return call


def packaged_files(notebook):
    """The files in the zip of the first code cell, by name."""
    package = re.search(r'unpack\("([A-Za-z0-9+/=]+)"\)', notebook.cells[1].source)[1]
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(package))) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        return {name: archive.read(name) for name in archive.namelist()}


def run_arguments(notebook):
    """The arguments of run_pipeline.py in the notebook."""
    return json.loads(re.search(r"^ARGUMENTS = (.*)$", notebook.cells[2].source, re.MULTILINE)[1])


def test_notebook_is_valid_and_contains_the_whole_package(build, tmp_path):
    notebook, _, printed = build("--recipe", "best")
    nbformat.validate(notebook)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    expected = {"run_pipeline.py", "LICENSE"}
    for folder, _, names in os.walk(ROOT / "pipeline"):
        if os.path.basename(folder) not in ("__pycache__", "pretrained"):
            expected |= {os.path.relpath(os.path.join(folder, name), ROOT) for name in names if name[0] != "."}
    contents = packaged_files(notebook)
    assert expected <= contents.keys()
    assert all(content == (ROOT / name).read_bytes() for name, content in contents.items())
    assert all(name.split("/")[0] in ("pipeline", "run_pipeline.py", "LICENSE") for name in contents)
    assert run_arguments(notebook) == ["--stage", "all", "--recipe", "best"]
    file = tmp_path / "data/notebook/digit-recognizer.ipynb"
    assert file.stat().st_size < 900_000
    assert f"({file.stat().st_size:,} bytes)" in printed and "notebook.push=true" in printed


def test_equal_trees_give_equal_bytes(build, tmp_path):
    contents = []
    for _ in range(2):
        build("--recipe", "quick")
        contents.append((tmp_path / "data/notebook/digit-recognizer.ipynb").read_bytes())
        (tmp_path / "data/notebook/digit-recognizer.ipynb").unlink()
    assert contents[0] == contents[1]


def test_package_excludes_what_does_not_run(tmp_path):
    files = ["run_pipeline.py", "LICENSE", "README.md", "tests/test_a.py", "docs/a.md", "data/raw/train.csv"]
    files += ["pipeline/cli/main.py", "pipeline/recipes/a.toml", "pipeline/stages/__pycache__/x.pyc"]
    files += ["pipeline/nn/pretrained/best.safetensors"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = ["LICENSE", "pipeline/cli/main.py", "pipeline/recipes/a.toml", "run_pipeline.py"]
    assert list(notebook_file.list_package_files(tmp_path)) == expected


SECRETS = (
    *(".env", "kaggle.json", ".kaggle/access_token", "id_rsa", "server.pem", ".netrc", "nn/token.txt", "cli/main.py~"),
    *("cli/.main.py.swp", ".ipynb_checkpoints/main.py", ".aws/config.toml", "dataset/train.csv", "notes.ipynb"),
)


def test_no_private_file_is_packed(tmp_path):
    home = tmp_path / "home"
    shutil.copytree(ROOT / "pipeline", home / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_pipeline.py", "LICENSE"):
        shutil.copy(ROOT / name, home)
    expected = notebook_file.list_package_files(home).keys()
    for name in SECRETS:
        (home / "pipeline" / name).parent.mkdir(exist_ok=True)
        (home / "pipeline" / name).write_text("secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/own.py").write_text("secret")
    for name, target in (("nn/link.py", "own.py"), ("linked", "."), ("cli/linked.toml", "own.py")):
        (home / "pipeline" / name).symlink_to(tmp_path / "outside" / target)
    (home / "LICENSE").unlink()
    (home / "LICENSE").symlink_to(tmp_path / "outside/own.py")
    files = notebook_file.list_package_files(home)
    assert files.keys() == expected - {"LICENSE"}
    notebook = notebook_file.build_notebook({name: path.read_bytes() for name, path in files.items()}, RUN)
    contents = packaged_files(nbformat.reads(notebook.decode(), as_version=4))
    assert b"secret" not in contents.values()
    assert contents.keys() == files.keys()


def test_each_kernel_unpacks_into_a_new_folder_of_its_own(tmp_path, monkeypatch):
    """A folder in the shared folder for temporary files could contain modules of another user."""
    contents = {"pipeline/own.py": b"own = 1\n", "run_pipeline.py": b""}
    notebook = nbformat.reads(notebook_file.build_notebook(contents, RUN).decode(), as_version=4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path])
            exec(notebook.cells[1].source, namespace := {})
            folders.append(namespace["CODE"])
            assert sys.path[0] == str(folders[-1])
        assert {path.relative_to(folders[-1]).as_posix(): path.read_bytes() for path in folders[-1].rglob("*.py")} == (
            contents
        )
        assert folders[-1].parent == tmp_path and stat.S_IMODE(folders[-1].stat().st_mode) == 0o700
    assert folders[0] != folders[1]


def test_metadata_requests_two_gpus_and_no_internet(build):
    notebook, metadata, _ = build("--recipe", "quick")
    assert metadata == {
        "id": "YOUR-KAGGLE-NAME/digit-recognizer-pipeline",
        "title": "Digit Recognizer pipeline",
        "code_file": "digit-recognizer.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": "NvidiaTeslaT4",
        "dataset_sources": [],
        "competition_sources": ["digit-recognizer"],
        "kernel_sources": [],
        "model_sources": [],
        "keywords": [],
    }
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kaggle.isGpuEnabled and not notebook.metadata.kaggle.isInternetEnabled


def test_device_cpu_requests_no_gpu(build):
    notebook, metadata, _ = build("--recipe", "quick", "--device", "cpu")
    assert not metadata["enable_gpu"] and "machine_shape" not in metadata
    assert not notebook.metadata.kaggle.isGpuEnabled
    assert run_arguments(notebook)[-2:] == ["--device", "cpu"]


def test_recipe_file_blend_and_settings_are_passed_on(build, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('about = "mine"\n[train]\nepochs = 3\n')
    options = ["--set", "train.seed=3", "--set", "notebook.title=My digits"]
    notebook, metadata, _ = build("--recipe", f"quick,{recipe}", *options)
    arguments = ["--stage", "all", "--recipe", "quick,mine.toml", "--set", "train.seed=3"]
    assert run_arguments(notebook) == arguments
    assert packaged_files(notebook)["mine.toml"] == recipe.read_bytes()
    assert (metadata["id"], metadata["title"]) == ("YOUR-KAGGLE-NAME/my-digits", "My digits")
    sources = "".join(cell.source for cell in notebook.cells)
    assert '"data/runs/quick/train/curves.png", "data/runs/mine/train/curves.png"' in sources
    assert "submissions/quick+mine/submission.csv" in sources


def test_without_a_recipe_it_is_quick(build):
    assert run_arguments(build()[0]) == ["--stage", "all", "--recipe", "quick"]


def test_building_uses_no_network(build, kaggle):
    _, metadata, _ = build(*TINY)
    assert metadata["id"] == "demo/digit-recognizer-pipeline"  # KAGGLE_USERNAME
    assert not kaggle.calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "sample"), "--data does not apply"),
        (("--engine", "dask=tcp://localhost:1", "--recipe", "best"), "--engine does not apply"),
        (("--recipe", "ladder"), "one recipe at a time"),
        (("--recipe", "transfer/vgg16"), "starts from ImageNet's weights, which the notebook, without internet"),
        (("--set", "notebook.title=abc"), "at least 5 characters"),
        (("--set", f"notebook.title={'a' * 51}"), "at most 50 characters"),
        (("--set", "notebook.title=Ziffern für alle"), "letters and digits"),
        (("--set", "notebook.title=two  spaces"), "letters and digits"),
    ],
)
def test_options_that_do_not_apply_are_refused(command, tmp_path, capsys, options, message):
    try:
        run = command("--stage", "notebook", "--workspace", tmp_path, *options)
        code, error = run.code, run.err
    except SystemExit as stop:  # the argument parser
        code, error = stop.code, capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1), error
    assert message in error
    assert not (tmp_path / "data/notebook").exists()


def test_notebook_that_is_too_large_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setattr(notebook_file, "MAX_BYTES", 200_000)
    run = command("--stage", "notebook", "--recipe", "quick", "--workspace", tmp_path)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "less than 1 MB" in run.err and "the largest is pipeline/" in run.err
    assert not (tmp_path / "data/notebook/digit-recognizer.ipynb").exists()


def test_limit_counts_the_bytes_of_the_file():
    """A file that cannot be compressed grows by a third in base64."""
    import random

    small, large = ({"pipeline/a.bin": random.Random(0).randbytes(size)} for size in (660_000, 680_000))
    assert 880_000 < len(notebook_file.build_notebook(small, RUN)) <= notebook_file.MAX_BYTES
    with pytest.raises(notebook_file.NotebookTooLarge):
        notebook_file.build_notebook(large, RUN)


TITLES = st.text(string.ascii_letters + string.digits + " -", min_size=5, max_size=50).map(
    lambda text: re.sub("[ -]{2,}", " ", text).strip(" -")
)


@given(TITLES.filter(lambda title: len(title) >= 5))
def test_slug_is_the_one_that_the_client_forms_from_the_title(title):
    """The client's own rule; Kaggle refuses a title with another slug."""
    from pipeline.extras.notebook.command import make_slug

    assert Notebook(title=title).title == title
    assert make_slug(title) == slugify(title)


@given(st.dictionaries(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), st.binary()))
def test_zip_restores_the_files(contents):
    with zipfile.ZipFile(io.BytesIO(notebook_file.zip_files(contents))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == contents
