"""The Kaggle notebook of a recipe: the pipeline's source code, and the cells that run it and show its results."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

MAX_BYTES = 900_000  # Kaggle refuses notebooks of 1 MB
ENDINGS = {".py", ".toml", ".css", ".html", ".js"}  # of the package's files: users publish notebooks
EXCLUDED = {"pretrained", "__pycache__"}  # folders of the package
GPU_SHAPE = "NvidiaTeslaT4"  # two T4, for everybody
# Digit Recognizer in the metadata of Kaggle's own notebooks; it attaches the competition to an imported notebook.
COMPETITION_SOURCE = {"databundleVersionId": 861823, "sourceId": 3004, "sourceType": "competition"}


class NotebookTooLarge(UserError):
    """The notebook would be larger than Kaggle accepts."""


@dataclass(frozen=True)
class NotebookRun:
    """What a notebook runs, and where the results are."""

    name: str  # of the recipe, or "a+b"
    recipes: tuple[str, ...]  # several for a blend
    arguments: tuple[str, ...]  # of run_pipeline.py
    gpu: bool


def list_package_files(home: Path) -> dict[str, Path]:
    """The files that the pipeline needs to run, below the repository's folder `home`, by name in the zip.

    Neither links nor hidden files are among them.
    """
    paths = [home / "run_pipeline.py", home / "LICENSE", *(home / "pipeline").rglob("*")]
    names = {path.relative_to(home).as_posix(): path for path in paths if path.is_file() and not path.is_symlink()}
    return {
        name: path
        for name, path in sorted(names.items())
        if (path.suffix in ENDINGS or name == "LICENSE")
        and not any(part in EXCLUDED or part.startswith(".") for part in name.split("/"))
    }


def zip_files(contents: Mapping[str, bytes]) -> bytes:
    """A zip of files; equal contents give equal bytes (with the same version of zlib)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(contents.items()):
            member = zipfile.ZipInfo(name)  # its date is 1980-01-01
            member.compress_type, member.create_system, member.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(member, content)
    return buffer.getvalue()


def build_notebook(contents: Mapping[str, bytes], run: NotebookRun) -> bytes:
    """The notebook as bytes. Raises NotebookTooLarge.

    contents: the files of the package, by name.
    """
    metadata: dict[str, Any] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "kaggle": {
            "accelerator": "nvidiaTeslaT4" if run.gpu else "none",
            "dataSources": [COMPETITION_SOURCE],
            "isGpuEnabled": run.gpu,
            "isInternetEnabled": False,
            "language": "python",
            "sourceType": "notebook",
        },
    }
    notebook = {"cells": _cells(contents, run), "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}
    content = (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
    if len(content) > MAX_BYTES:
        largest = max(contents, key=lambda name: len(zip_files({name: contents[name]})))
        raise NotebookTooLarge(
            f"the notebook would have {len(content):,} bytes, and Kaggle accepts less than 1 MB (the limit here is "
            f"{MAX_BYTES:,}): move large files out of the pipeline's folder; the largest is {largest}"
        )
    return content


def kernel_metadata(notebook: str, title: str, code_file: str, competition: str, gpu: bool) -> dict[str, Any]:
    """The content of `kernel-metadata.json` for the official client; `notebook` is "user/slug"."""
    return {
        "id": notebook,
        "title": title,
        "code_file": code_file,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_tpu": False,
        "enable_internet": False,
        **({"machine_shape": GPU_SHAPE} if gpu else {}),
        "dataset_sources": [],
        "competition_sources": [competition],
        "kernel_sources": [],
        "model_sources": [],
        "keywords": [],
    }


def _cells(contents: Mapping[str, bytes], run: NotebookRun) -> list[dict[str, Any]]:
    package = zip_files(contents)
    curves = [f"data/runs/{recipe}/train/curves.png" for recipe in run.recipes]
    pictures = product(run.recipes, ("confusion", "errors"))
    evaluation = [f"data/runs/{recipe}/evaluate/{name}.png" for recipe, name in pictures]
    digest = hashlib.sha256(package + repr(run).encode()).hexdigest()
    unpack = UNPACK.format(n_files=len(contents), digest=digest[:16], package=base64.b64encode(package).decode())
    accelerator = "GPU T4 x2" if run.gpu else "None"
    return [
        _text(INTRODUCTION.format(name=run.name, accelerator=accelerator)),
        _code(unpack, hidden=True),
        _code(RUN.format(arguments=_as_list(run.arguments))),
        _text("## Training curves"),
        _code(SHOW.format(pictures=_as_list(curves))),
        _text("## Confusion matrix and the most confident errors, on held-out rows"),
        _code(f"show({_as_list(evaluation)})"),
        _text(SUBMIT_TEXT),
        _code(SUBMIT.format(path=f"submissions/{run.name}/submission.csv")),
    ]


def _as_list(values: Sequence[str]) -> str:
    """A list as Python code."""
    return json.dumps(list(values), ensure_ascii=False)


def _text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def _code(source: str, hidden: bool = False) -> dict[str, Any]:
    metadata = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}} if hidden else {}
    return {"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": [], "source": source}


INTRODUCTION = """\
# Digit Recognizer: recipe `{name}`

This notebook checks the competition's data, trains the networks of the recipe, measures their accuracy on held-out
rows, and writes `submission.csv`. It contains the pipeline's source code, installs nothing and needs no internet.

To run it in the editor: add the competition under *Add Input*, choose the accelerator *{accelerator}*, then *Run All*.
"""

UNPACK = """\
# Unpacks the pipeline's source code: a zip of {n_files} files (build {digest})
import base64
import io
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

CODE = Path(tempfile.mkdtemp(prefix="digit-recognizer-"))


def unpack(package):
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(package))) as archive:
        archive.extractall(CODE)
        print(f"{{len(archive.namelist())}} files unpacked to {{CODE}}")


unpack("{package}")
sys.path.insert(0, str(CODE))"""

RUN = """\
import subprocess

from pipeline.kaggle import machine

WORKING = machine.working_root() or CODE
ARGUMENTS = {arguments}

if shutil.which("nvidia-smi"):
    print(subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout, end="")
else:
    print("no GPU: the CPU is used, which takes longer")
command = [sys.executable, "run_pipeline.py", *ARGUMENTS]
with subprocess.Popen(command, cwd=CODE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
    for line in process.stdout:
        print(line, end="")
if process.returncode:
    raise RuntimeError(f"the pipeline failed with exit code {{process.returncode}}: see the last line above")"""

SHOW = """\
from IPython.display import Image, display


def show(names):
    for name in names:
        if (WORKING / name).exists():
            display(Image(str(WORKING / name)))
        else:
            print(f"no {{name}}: the recipe trains on all rows and holds none out")


show({pictures})"""

SUBMIT_TEXT = """\
## Submission

`submission.csv` is now in the output folder. In the editor, choose *Save Version*, and then *Submit to Competition* on
the page of the saved version."""

SUBMIT = """\
import pandas as pd

shutil.copy(WORKING / "{path}", WORKING / "submission.csv")
submission = pd.read_csv(WORKING / "submission.csv")
print(f"{{len(submission):,}} rows in {{WORKING / 'submission.csv'}}")
submission.head()"""
