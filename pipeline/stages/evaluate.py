"""evaluate: predict every training row with the networks that did not see it, and measure the accuracy."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pandas as pd
import sklearn.metrics

from pipeline.kaggle.competition import MEAN_PIXEL, MEAN_PIXEL_TOLERANCE, TEST_ROWS, TRAIN_ROWS
from pipeline.metrics import calibration, classification
from pipeline.nn.networks import load_networks
from pipeline.recipes import config
from pipeline.reports import training_figures
from pipeline.shapes import Float32, Int64, UInt8
from pipeline.training.arrays import read_images
from pipeline.training.held_out import load_training_rows
from pipeline.training.predictions import predict_training_rows
from pipeline.workflow import store
from pipeline.workflow.context import StageContext

MAX_IMAGES = 40  # in a picture of errors
MAX_SUSPECTS = 100  # rows in the table of suspects


def run(context: StageContext) -> dict[str, Any]:
    training_rows = load_training_rows(context.files)
    loaded = load_networks(context.files["train/weights.safetensors"], context.run.device)
    predicted = predict_training_rows(context, loaded, context.recipe.predict)
    metadata, folds = predicted.metadata, training_rows.folds
    measured = _compare_with_measured(context, metadata)
    rows = np.flatnonzero(predicted.n_networks)
    if not len(rows):
        reason = "trained on all rows (train.fit_all), so no rows are left to evaluate on"
        nothing = {"rows": 0, "accuracy": None, "why_none": reason}
        store.write_json(context.output_dir / "metrics.json", nothing | measured)
        context.say(reason)
        return nothing

    labels, probabilities = training_rows.labels[rows], predicted.probabilities[rows]
    predictions = probabilities.argmax(1)
    confusion = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(10))
    n_correct = int(np.trace(confusion))
    numbers = {
        "rows": len(rows),
        "n_correct": n_correct,
        "accuracy": n_correct / len(rows),
        "interval_95": classification.wilson_interval(n_correct, len(rows)),
        "loss": sklearn.metrics.log_loss(labels, probabilities, labels=range(10)),
        "temperature": calibration.fit_temperature(probabilities, labels),
        "classes": _class_metrics(labels, predictions),
        "kept_epoch": metadata[0]["epoch"] if len(metadata) == 1 else [network["epoch"] for network in metadata],
        "chosen_on_these_rows": any(network["checkpoint_selection"] == "best" for network in metadata),
        "rows_left_out": 0,  # of a blend: rows that not every recipe holds out
        "rests_on": _rests_on(metadata, folds, len(rows)),
        **measured,
    }
    if len(metadata) > 1:
        numbers["networks"] = len(metadata)
        numbers["network_accuracy"] = _mean_and_std(predicted.accuracies)
    if folds is not None:
        correct = predictions == labels
        numbers["folds"] = _mean_and_std([float(np.mean(correct[folds == fold])) for fold in range(folds.max() + 1)])
    store.write_json(context.output_dir / "metrics.json", numbers)
    store.write_array(context.output_dir / "probabilities.npy", probabilities)
    store.write_array(context.output_dir / "rows.npy", rows)
    _draw(context, training_rows.images[rows], rows, labels, probabilities)
    store.write(context.output_dir / "confusion.png", training_figures.confusion(confusion))
    return {name: numbers[name] for name in ("rows", "n_correct", "accuracy", "interval_95", "chosen_on_these_rows")}


def _class_metrics(labels: UInt8[np.ndarray, " n"], predictions: Int64[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Precision, recall and number of rows of each digit; None where the denominator is 0."""
    columns = sklearn.metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(10), zero_division=math.nan
    )
    precision, recall, _, rows = (column.tolist() for column in columns)
    return [
        {
            "digit": digit,
            "rows": rows[digit],
            "precision": None if math.isnan(precision[digit]) else precision[digit],
            "recall": None if math.isnan(recall[digit]) else recall[digit],
        }
        for digit in range(10)
    ]


def _rests_on(metadata: list[dict[str, Any]], folds: UInt8[np.ndarray, " n"] | None, n_rows: int) -> str:
    """Which measurement the accuracy is, in words."""
    if folds is None:
        return f"{n_rows:,} validation rows"
    per_row = len(metadata) // (folds.max() + 1)
    text = f"{n_rows:,} out-of-fold rows: each by the {per_row} of {len(metadata)} networks that were not trained on it"
    if any(network["checkpoint_selection"] == "best" for network in metadata):
        return text
    return f"{text}; the submission averages all of them, so this is a lower bound on average"


def _mean_and_std(values: list[float]) -> dict[str, Any]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "each": values}


def _draw(
    context: StageContext,
    images: UInt8[np.ndarray, "n 28 28"],
    rows: Int64[np.ndarray, " n"],
    labels: UInt8[np.ndarray, " n"],
    probabilities: Float32[np.ndarray, "n 10"],
) -> None:
    """Write the pictures of errors and suspects, and the table of the rows whose own label is least likely."""
    predictions = probabilities.argmax(1)

    def draw_errors(selected: Any, title: str, empty: str) -> bytes:
        # Rows are counted from 1 in train.csv.
        return training_figures.errors(
            images[selected], labels[selected], probabilities[selected], rows[selected] + 1, title, empty
        )

    wrong = classification.most_confident_errors(probabilities, labels, MAX_IMAGES)
    title = "The most confident errors on held-out rows (row of train.csv)"
    store.write(
        context.output_dir / "errors.png", draw_errors(wrong, title, "none: every row was classified correctly")
    )
    suspects = classification.least_likely_labels(probabilities, labels, MAX_SUSPECTS)
    title = "Labels that are most likely wrong: those with the lowest probability (row of train.csv)"
    store.write(context.output_dir / "suspects.png", draw_errors(suspects[:MAX_IMAGES], title, "none"))
    table = pd.DataFrame(
        {
            "row": rows[suspects] + 1,
            "label": labels[suspects],
            "label_probability": probabilities[suspects, labels[suspects]],
            "prediction": predictions[suspects],
            "prediction_probability": probabilities[suspects, predictions[suspects]],
        }
    )
    text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    store.write(context.output_dir / "suspects.csv", text.encode())


def _compare_with_measured(context: StageContext, metadata: list[dict[str, Any]]) -> dict[str, Any]:
    """The recipe's measured accuracy, or why it does not apply to this run, and what this run is measured with."""
    recipe = context.recipe
    names = ("prepare/train_images.npy", "prepare/train_labels.npy")
    data = hashlib.sha256("".join(context.hashes[name] for name in names).encode()).hexdigest()
    settings = config.accuracy_settings(recipe)
    measured_with = {"data": data, "settings": settings, "digest": config.digest(settings)}
    reason = _why_not_measured(context, metadata)
    measured = None
    if not reason:
        fields = ("accuracy", "std", "seeds", "rows", "training_rows", "date")
        measured = {name: getattr(recipe.measured, name) for name in fields}
        measured["same_data"] = recipe.measured.data == data
    return {"measured": measured, "why_not_measured": reason, "measured_with": measured_with}


def _why_not_measured(context: StageContext, metadata: list[dict[str, Any]]) -> str:
    """Why the recipe's measured accuracy does not apply to this run, or ""."""
    recipe, sizes = context.recipe, context.manifests["prepare"]["numbers"]
    if not recipe.measured.seeds:
        return "the recipe has no measured accuracy"
    if difference := config.measured_difference(recipe):
        return f"the recipe's accuracy was measured with other settings ({difference})"
    n_rows, n_test_rows = sizes.get("train_rows", 0), sizes.get("test_rows", 0)
    if (n_rows, n_test_rows) != (TRAIN_ROWS, TEST_ROWS):
        return (
            f"the recipe's measured accuracy applies only to {TRAIN_ROWS:,} training and {TEST_ROWS:,} test rows; "
            f"this data set has {n_rows:,} and {n_test_rows:,}"
        )
    training_rows = n_rows if metadata[0]["fit_all"] else sizes.get("training_rows", 0)
    if folds := context.files.get("prepare/folds.npy"):
        training_rows -= int(np.bincount(store.read_array(folds, "uint8", (None,))).max())
    if training_rows < recipe.measured.training_rows:
        return f"the recipe's measured accuracy requires at least {recipe.measured.training_rows:,} training rows"
    mean = read_images(context.files, "prepare/train_images.npy").mean()
    if abs(mean - MEAN_PIXEL) > MEAN_PIXEL_TOLERANCE:
        return f"the images are not MNIST's: their mean pixel is {mean:.2f} instead of {MEAN_PIXEL:.2f}"
    return ""
