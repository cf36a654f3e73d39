"""Weights trained on ImageNet, as torchvision publishes them: finding, downloading, checking and reading the file."""

from __future__ import annotations

import socket
import sys
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.recipes.config import expand_home
from pipeline.recipes.settings import Model, Recipe
from pipeline.workflow import store
from pipeline.workflow.context import StageContext
from pipeline.workflow.run import Run
from pipeline.workflow.stage import InputFile
from pipeline.workflow.store import Manifest

ADDRESS = "https://download.pytorch.org/models/"
# The names contain the first digits of the SHA-256.
FILES = {"vgg16": "vgg16-397923af.pth", "alexnet": "alexnet-owt-7be5be79.pth"}
FOLDER = "data/pretrained"  # below the workspace
TIMEOUT = 30  # seconds without an answer of the server
MAX_BYTES = 600 << 20  # of a download; vgg16 has 528 MB


class MissingWeights(StageError):
    """The file does not exist and cannot be downloaded; `reason` is the message without advice for one recipe."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason + advice)
        self.reason = reason


def find_weights(model: Model, workspace: Path, download: bool = True) -> InputFile:
    """The file with the weights of a model: `model.weights_file`, or the published one, downloaded if it is missing.

    Raises MissingWeights, and StageError if the file's hash is not the one in its name.
    """
    if model.weights_file:
        path = Path(expand_home(model.weights_file)).absolute()
        if not path.is_file():
            raise MissingWeights(f"model.weights_file: {path} is not a file")
    else:
        path = store.resolve(workspace / FOLDER) / FILES[model.name]
        if not path.exists():
            if not download:
                raise MissingWeights(f"the weights of {model.name} are not in {path.parent}")
            _download(model.name, path)
    digest = store.sha256(path)
    if path.name in FILES.values() and not digest.startswith(_hash_in_name(path.name)):
        advice = "rename it if that is intended" if model.weights_file else "delete it to download it again"
        raise StageError(f"{path}: its SHA-256 begins with {digest[:8]}, other than its name says: {advice}")
    return InputFile(path, digest, "imagenet")


def _hash_in_name(name: str) -> str:
    """The first digits of the SHA-256 of a published file."""
    return name.rpartition("-")[2].removesuffix(".pth")


def _download(name: str, path: Path) -> None:
    """Download the published weights of a model."""
    import torch

    address = f"{ADDRESS}{FILES[name]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    store.require_disk_space(path.parent, MAX_BYTES, f"the download of {FILES[name]}")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # urllib has none
    try:
        hash_prefix = Path(address).stem.rpartition("-")[2]
        torch.hub.download_url_to_file(address, str(path), hash_prefix, progress=sys.stderr.isatty())
    except Exception as error:  # of many kinds: RuntimeError for a wrong hash, OSError, HTTPException
        raise MissingWeights(
            f"the weights of {name} are missing, and {address} cannot be downloaded ({_first_line(error)}): put the "
            f"file into {path.parent}",
            ", or pass its path with --set model.weights_file=PATH",  # of one recipe, not of all that are compared
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


def _first_line(error: Any) -> str:
    return (str(error).strip(" \n<>") or type(error).__name__).splitlines()[0][:200]


def input_name(model: Model) -> str:
    """The name of the weights file among a stage's inputs."""
    return f"imagenet/{model.name}"


def pretrained_models(recipe: Recipe) -> list[Model]:
    """The models of a recipe that start from ImageNet's weights, each once."""
    by_name = {model.name: model for model in recipe.models}
    return [model for name, model in by_name.items() if name in FILES and model.pretrained == "imagenet"]


def find_unavailable(
    recipes: Iterable[Recipe], required: Container[str], workspace: Path, download: bool = True
) -> dict[str, str]:
    """The recipes that lack their weights, and why, by name.

    required: names or files of recipes. If `download` is true, MissingWeights is raised for these.
    """
    reasons = {}
    for recipe in recipes:
        for model in pretrained_models(recipe):
            try:
                find_weights(model, workspace, download)
            except MissingWeights as error:
                if download and (recipe.file or recipe.name) in required:
                    raise
                reasons[recipe.name] = error.reason
    return reasons


def add_inputs(context: StageContext) -> dict[str, Any]:
    """Add the files with ImageNet's weights to a stage's inputs; returns what the manifest records for `why_stale`."""
    added = {}
    for each in context.members or [context]:
        for model in pretrained_models(each.recipe):
            weights = find_weights(model, context.run.workspace)
            each.files[input_name(model)] = weights.path
            added[input_name(model)] = each.hashes[input_name(model)] = weights.sha256
    return {"initial_weights": added} if added else {}


def why_stale(run: Run, manifest: Manifest) -> str:
    """Why a result that recorded what `add_inputs` returned is stale; "" if it is not.

    The published file may be deleted: its name contains its hash.
    """
    hashes = manifest["numbers"].get("initial_weights", {})
    for model in pretrained_models(run.recipe):
        digest = hashes.get(input_name(model), "")
        if model.weights_file:
            path = Path(expand_home(model.weights_file))
            if not path.is_file():
                return f"model.weights_file: {path} is not a file"
            if store.sha256(path) != digest:
                return f"{path.name} contains other weights than those of the training"
        elif not digest.startswith(_hash_in_name(FILES[model.name])):
            return f"it started from other weights than {FILES[model.name]}"
    return ""
