"""export: the trained network for other programs: an ONNX graph, a model card, and a page to draw digits on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.errors import PipelineError, StageError, display_path
from pipeline.extras.export import demo_page, model_card
from pipeline.extras.export.graph import NotOnPage, compare_graph, to_onnx, to_page_network
from pipeline.nn import pretrained
from pipeline.nn.networks import LoadedNetwork, load_networks
from pipeline.shapes import UInt8
from pipeline.training.arrays import read_images
from pipeline.workflow import schemas, store
from pipeline.workflow.context import StageContext

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED_ROWS = 1000  # of train.csv, on which the graph is compared with PyTorch
TOLERANCE = 1e-4  # of the probabilities, in float32
# With a view other than "plain": it rounds to whole gray levels, so that the last bit of a number can change a pixel.
VIEW_TOLERANCE = 1e-2
PICTURES = ("errors.png", "confusion.png")


def run(context: StageContext) -> dict[str, Any]:
    _require_packages()
    files, folder, recipe = context.files, context.output_dir, context.recipe
    loaded = load_networks(files["train/weights.safetensors"], "cpu")
    evaluation = store.require_json(files["evaluate/metrics.json"], schemas.Metrics)
    temperature = pretrained.choose_temperature(evaluation)
    images = read_images(context.files, "prepare/train_images.npy")[:CHECKED_ROWS]
    difference, n_rows = _export_graph(context, loaded, np.array(images)), len(images)
    page_note = _write_page(context, loaded, temperature)
    for name in PICTURES:
        if picture := files.get(f"evaluate/{name}"):
            store.write(folder / name, picture.read_bytes())
    source = context.manifests["download"]["numbers"].get("source", "files")
    facts = {
        "input of `model.onnx`": "`images`: uint8 (n, 28, 28), white on black; n is free",
        "output": "`probabilities`: float32 (n, 10)"
        + ("" if len(context.recipe.predict.shifts) == 1 else ", the mean over shifted copies"),
        "difference to PyTorch": f"{difference:.1e} at most, on {n_rows:,} rows in float32",
        "temperature": "not measured" if temperature is None else f"{temperature:.3f} (calibrates the probabilities)",
        "trained on": "the sample of 5,000 digits only" if source == "sample" else f"data of the source {source}",
        "data": f"SHA-256 of train_images.npy: `{context.hashes['prepare/train_images.npy']}`",
        "commit": str(context.environment["commit"]),
        "date": context.environment["time"][:10],
    }
    known = pretrained.find_pretrained(evaluation)
    card = model_card.render(recipe, [network.metadata for network in loaded], evaluation, known, facts)
    store.write(folder / "MODEL_CARD.md", card)
    context.say(f"model.onnx equals PyTorch within {difference:.1e} on {n_rows:,} rows")
    context.say(page_note)
    context.run.report("folder", display_path(context.published_dir))
    return {"difference": difference, "temperature": temperature, "page": page_note}


def _require_packages() -> None:
    """Raise StageError if a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise StageError(f"--stage export requires {', '.join(missing)}: pip install -r requirements/onnx.txt")


def _export_graph(
    context: StageContext, loaded: Sequence[LoadedNetwork], images: UInt8[np.ndarray, "n 28 28"]
) -> float:
    """Write model.onnx; returns its largest difference to PyTorch. Raises PipelineError if that is large."""
    graph = to_onnx(loaded, context.recipe.predict)
    difference = compare_graph(graph, loaded, context.recipe.predict, torch.from_numpy(images))
    views = {network.metadata["model"]["view"] for network in loaded}
    tolerance = TOLERANCE if views == {"plain"} else VIEW_TOLERANCE
    if not difference <= tolerance:
        raise PipelineError(f"model.onnx differs from PyTorch by {difference:.1e}, more than {tolerance:.0e}")
    store.write(context.output_dir / "model.onnx", graph)
    return difference


def _write_page(context: StageContext, loaded: Sequence[LoadedNetwork], temperature: float | None) -> str:
    """Write demo.html if the page can run a network of the recipe; returns a sentence about it."""
    try:
        network = to_page_network(loaded[0])
    except NotOnPage as error:
        return f"no demo.html: {error}"
    which = "the network" if len(loaded) == 1 else f"the first of {len(loaded)} networks"
    title = f"{which} of the recipe {context.recipe.name}"
    page = demo_page.render(network.layers, network.weights, loaded[0].metadata, title, temperature)
    store.write(context.output_dir / "demo.html", page)
    return f"demo.html runs {which} in any browser ({len(page) / 1e6:.1f} MB)"
