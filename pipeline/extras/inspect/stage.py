"""inspect: pictures of a trained network, and one page with all pictures of its recipe."""

from __future__ import annotations

import os
from typing import Any

from pipeline.errors import StageError, display_path
from pipeline.extras.inspect import report
from pipeline.extras.inspect.study import NetworkStudy
from pipeline.metrics.classification import calibration
from pipeline.nn.networks import LoadedNetwork, load_networks
from pipeline.nn.precision import library_settings
from pipeline.reports import page
from pipeline.training.held_out import load_training_rows
from pipeline.workflow import schemas, store
from pipeline.workflow.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    files, settings, device = context.files, context.recipe, context.run.device
    training_rows = load_training_rows(files)
    if settings.inspect.image > len(training_rows.labels):
        n_rows = f"{len(training_rows.labels):,} rows"
        raise StageError(f"inspect.image is {settings.inspect.image}: train.csv has {n_rows}")
    loaded, name = _load_network(context)
    recorded = files.get("train/record.json")
    record = store.require_json(recorded, schemas.Record, schemas.MAX_RECORD)["rows"] if recorded else []
    with library_settings(device), context.show_progress("inspect") as on_progress:
        study = NetworkStudy(loaded, training_rows, settings.inspect, device, record, on_progress)
    numbers, pictures = {"network": name} | study.numbers(), report.draw(study)
    if "evaluate/probabilities.npy" in files:
        rows = store.read_array(files["evaluate/rows.npy"], "int64", (None,), below=len(training_rows.labels))
        probabilities = store.read_array(files["evaluate/probabilities.npy"], "float32", (len(rows), 10))
        calibrated = calibration(probabilities, training_rows.labels[rows])
        numbers["calibration_error"] = calibrated.error
        pictures |= report.draw_calibration(calibrated)
    folder = context.output_dir
    for name, picture in pictures.items():
        store.write(folder / name, picture)
    store.write_json(folder / "inspect.json", numbers)

    pictures |= {path.name: path.read_bytes() for path in files.values() if path.suffix == ".png"}
    evaluation = store.require_json(files["evaluate/metrics.json"], schemas.Metrics)
    training, why_no_record = context.manifests["train"], _why_no_record(context)
    about_data = _describe_data(context)
    html = report.render(context.recipe, pictures, numbers, evaluation, training, why_no_record, about_data)
    store.write(folder / "report.html", html)
    context.say(" ".join(report.summarize(numbers)))
    if not record:
        context.say(why_no_record)
    context.run.report("page", display_path(context.published_dir / "report.html"))
    return {name: numbers[name] for name in ("network", "rows", "accuracy", "tsne")}


def _load_network(context: StageContext) -> tuple[LoadedNetwork, str]:
    """The network to inspect, and, if the recipe has several, which one it is."""
    loaded = load_networks(context.files["train/weights.safetensors"], context.run.device)
    number, count = context.recipe.inspect.network, len(loaded)
    if number > count:
        n_networks = f"{count} network{'s' if count > 1 else ''}"
        raise StageError(f"inspect.network is {number}: {context.recipe.name} has {n_networks}")
    metadata = loaded[number - 1].metadata
    if count == 1:
        return loaded[0], ""
    fold = "" if metadata["fold"] is None else f", fold {metadata['fold']} held out"
    description = f"{metadata['model']['name']}, {metadata['model']['view']} view, seed {metadata['seed']}{fold}"
    return loaded[number - 1], f"{number} of {count} ({description})"


def _why_no_record(context: StageContext) -> str:
    """Why there are no pictures of the weights and gradients over the epochs."""
    if len(context.manifests["train"]["numbers"].get("networks", ())) > 1:
        return "Weights and gradients are recorded for single networks, not for ensembles."
    command = f"--stage train{context.run.arguments} --set train.record=true"
    return f"Weights and gradients were not recorded during training: {command} records them."


def _describe_data(context: StageContext) -> str:
    """A paragraph about the page with pictures of the data, which `explore` makes."""
    data_page = os.path.relpath(
        store.resolve(context.run.workspace / "data/explore") / "explore.html", context.published_dir
    )
    return page.link("Statistics and pictures of the data: ", data_page.replace(os.sep, "/"), ", from --stage explore.")
