"""Weights trained on ImageNet, as torchvision publishes them: finding, downloading, checking and reading the file."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.declarations import InputFile, StageContext
from pipeline.errors import StageError
from pipeline.settings import Model, Recipe
from pipeline.specs import variants
from pipeline.store import Manifest

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.workflow import Workflow

ADDRESS = "https://download.pytorch.org/models/"
# The names contain the first digits of the SHA-256.
FILES = {"vgg16": "vgg16-397923af.pth", "alexnet": "alexnet-owt-7be5be79.pth"}
FOLDER = "data/pretrained"  # below the workspace
LAST_LAYER = "classifier.6"  # of ImageNet's 1,000 classes; not used
TIMEOUT = 30  # seconds without an answer of the server
MAX_BYTES = 600 << 20  # of a download; vgg16 has 528 MB


class MissingWeights(StageError):
    """The file does not exist and cannot be downloaded."""


def find_weights(model: Model, workspace: Path, download: bool = True) -> InputFile:
    """The file with the weights of a model: `model.weights_file`, or the published one, downloaded if it is missing.

    Raises MissingWeights, and StageError if the file's hash is not the one in its name.
    """
    if model.weights_file:
        path = Path(model.weights_file).expanduser().absolute()
        if not path.is_file():
            raise MissingWeights(f"model.weights_file: {path} is not a file")
    else:
        path = (workspace / FOLDER / FILES[model.name]).absolute()
        if not path.exists():
            if not download:
                raise MissingWeights(f"the weights of {model.name} are not in {path.parent}")
            _download(model.name, path)
    digest = store.sha256(path)
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if expected and not digest.startswith(expected[1]):
        advice = "rename it if that is intended" if model.weights_file else "delete it to download it again"
        raise StageError(f"{path}: its SHA-256 begins with {digest[:8]}, but its name says {expected[1]}: {advice}")
    return InputFile(path, digest)


def _download(name: str, path: Path) -> None:
    """Download the published weights of a model."""
    import torch

    address = f"{ADDRESS}{FILES[name]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    store.require_disk_space(path.parent, MAX_BYTES, f"the download of {FILES[name]}")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # urllib has none
    try:
        torch.hub.load_state_dict_from_url(
            address,
            str(path.parent),
            map_location="cpu",
            progress=sys.stderr.isatty(),
            check_hash=True,
            weights_only=True,
        )
    except Exception as error:  # of many kinds: RuntimeError for a wrong hash, OSError, HTTPException
        if path.exists():
            return  # complete, but not weights: loading it names the error
        raise MissingWeights(
            f"the weights of {name} are missing, and {address} cannot be downloaded ({_first_line(error)}): put the "
            f"file into {path.parent}, or pass its path with --set model.weights_file=PATH"
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
    models = {model.name: model for model, _, _ in variants(recipe)}
    return [model for name, model in models.items() if name in FILES and model.pretrained == "imagenet"]


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
                reasons[recipe.name] = str(error).partition(", or pass its path")[0]  # not valid for the other recipes
    return reasons


def add_inputs(context: StageContext) -> dict[str, Any]:
    """Add the files with ImageNet's weights to a stage's inputs; returns what the manifest records for `why_stale`."""
    added = {}
    for part in context.parts:
        for model in pretrained_models(part.settings):
            weights = find_weights(model, context.workflow.workspace)
            part.files[input_name(model)] = weights.path
            added[input_name(model)] = part.hashes[input_name(model)] = weights.sha256
    return {"initial_weights": added} if added else {}


def why_stale(workflow: Workflow, manifest: Manifest) -> str:
    """Why a result that recorded what `add_inputs` returned is stale; "" if it is not.

    The published file may be deleted: its name contains its hash.
    """
    hashes = manifest["numbers"].get("initial_weights", {})
    for model in (model for recipe in workflow.recipes for model in pretrained_models(recipe)):
        digest = hashes.get(input_name(model), "")
        if model.weights_file:
            path = Path(model.weights_file).expanduser()
            if not path.is_file():
                return f"model.weights_file: {path} is not a file"
            if store.sha256(path) != digest:
                return f"{path.name} contains other weights than those of the training"
        elif not digest.startswith(FILES[model.name].rpartition("-")[2].removesuffix(".pth")):
            return f"it started from other weights than {FILES[model.name]}"
    return ""


def read_weights(path: Path, model: Model) -> dict[str, Tensor]:
    """The weights in a file, by name, for all layers of a network except the last.

    Raises StageError if it is no such file, or if a weight is missing, unknown, or has another shape.
    """
    import torch

    from pipeline.nn.models import require_trainable

    if not path.is_file():  # on a machine of a cluster with a disk of its own
        raise StageError(f"{path} does not exist on the machine that trains: put the file there")
    try:
        with open(path, "rb") as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        raise StageError(
            f"{path}: not weights that PyTorch saved, or an incomplete file ({_first_line(error)})"
        ) from None
    if not isinstance(loaded, dict):
        raise StageError(f"{path}: contains a {type(loaded).__name__}, expected a dict from names to weights")
    own = require_trainable(model, batch_size=2).state_dict()
    own = {key: value for key, value in own.items() if not key.startswith(f"{LAST_LAYER}.")}
    loaded = {key: value for key, value in loaded.items() if not str(key).startswith(f"{LAST_LAYER}.")}
    for key, value in own.items():
        if key not in loaded:
            raise StageError(f"{path}: {key} is missing; is this another network than {model.name}?")
        if not isinstance(loaded[key], torch.Tensor) or loaded[key].shape != value.shape:
            shape = tuple(getattr(loaded[key], "shape", ()))
            raise StageError(f"{path}: {key} has shape {shape}, but {model.name} requires {tuple(value.shape)}")
    if unknown := sorted(map(str, loaded.keys() - own.keys())):
        raise StageError(f"{path}: {model.name} has no {unknown[0]}; is this another network?")
    return loaded
