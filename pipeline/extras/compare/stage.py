"""compare: train several recipes, each with several seeds, and compare them in a table and in pictures.

If the source has test labels, a recipe that keeps its last epoch trains on all rows of train.csv and is measured on
test.csv, as published figures are. Otherwise each row of train.csv is predicted by the networks that did not see it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pipeline.dataset import files
from pipeline.dataset.affine import random_affine
from pipeline.dataset.files import TableFile
from pipeline.dataset.tables import read_submission_table
from pipeline.dataset.views import apply_view
from pipeline.errors import display_path
from pipeline.extras.compare import page, statistics
from pipeline.extras.compare.statistics import Row, compare_recipes
from pipeline.nn.inference import as_input, predict_logits
from pipeline.nn.initialization import make_initial_network, seed_everything
from pipeline.nn.networks import load_networks
from pipeline.nn.precision import inference_precision, library_settings
from pipeline.recipes import config
from pipeline.recipes.settings import Predict, Published, Recipe
from pipeline.shapes import Bool, Float, Float32, Int64, UInt8
from pipeline.training import imagenet, plan, specs
from pipeline.training.arrays import TrainingArrays, load_arrays, read_digits, read_images, read_rows
from pipeline.training.ensure import Request, TrainedNetwork, ensure, network_summary
from pipeline.training.pool import make_pool
from pipeline.training.predictions import predict_test_rows, predict_training_rows
from pipeline.workflow import schemas, store
from pipeline.workflow.context import StageContext
from pipeline.workflow.joint import JointWorkflow


@dataclass
class Measurement:
    """The rows that the runs of a recipe are measured on, and the results."""

    context: StageContext
    runs: list[list[TrainedNetwork]] = field(default_factory=list)  # the networks of each seed
    # Of the runs without errors:
    correct: list[Bool[np.ndarray, " n"]] = field(default_factory=list)
    probabilities: list[Float32[np.ndarray, "n 10"]] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        return self.context.recipe

    @property
    def on_test_rows(self) -> bool:
        """Whether the rows are those of test.csv, whose labels the source has."""
        trains_on_all = self.recipe.train.fit_all or bool(self.recipe.split.folds)
        last = self.recipe.train.checkpoint_selection == "last"
        return f"download/{files.TEST_LABELS}" in self.context.files and trains_on_all and last

    @functools.cached_property
    def rows(self) -> Int64[np.ndarray, " n"]:
        """The numbers of the rows, from 0."""
        if self.on_test_rows:
            return np.arange(len(self.labels))
        return read_rows(self.context.files, len(read_digits(self.context.files)[1]))

    @property
    def images(self) -> UInt8[np.ndarray, "n 28 28"]:
        if self.on_test_rows:
            return read_images(self.context.files, "prepare/test_images.npy")
        images: UInt8[np.ndarray, "n 28 28"] = read_digits(self.context.files)[0][self.rows]
        return images

    @functools.cached_property
    def labels(self) -> UInt8[np.ndarray, " n"]:
        if self.on_test_rows:
            path = self.context.files[f"download/{files.TEST_LABELS}"]
            return read_submission_table(TableFile(path), len(self.images))
        labels: UInt8[np.ndarray, " n"] = read_digits(self.context.files)[1][self.rows]
        return labels

    def description(self) -> str:
        """The rows in words."""
        is_sample = self.context.manifests["download"]["numbers"].get("source") == "sample"
        sample = " of SAMPLE DATA" if is_sample else ""
        n_rows = len(self.labels)
        if self.on_test_rows:
            return f"{n_rows:,} test rows{sample}, with all training rows used for training"
        if self.recipe.split.folds:
            return f"{n_rows:,} out-of-fold rows{sample} (split seed {self.recipe.split.seed})"
        chosen = ", by which the epoch was chosen" if self.recipe.train.checkpoint_selection == "best" else ""
        return f"{n_rows:,} validation rows{sample} (split seed {self.recipe.split.seed}){chosen}"

    def arrays(self) -> TrainingArrays:
        """The arrays to train with; with the test rows, if these are measured."""
        training = load_arrays(self.context.recipe, self.context.files)
        if not self.on_test_rows:
            return training
        return replace(training, test_images=self.images, test_labels=self.labels)

    def test_data(self) -> str:
        """A hash of the test rows, if these are measured."""
        names = ("prepare/test_images.npy", f"download/{files.TEST_LABELS}") if self.on_test_rows else ()
        return config.digest({name: self.context.hashes[name] for name in names}) if names else ""

    def predict(self) -> None:
        """Predict the rows with the networks of each run that has no errors."""
        device = self.context.run.device
        for run in self.complete_runs():
            loaded = [item for network in run for item in load_networks(network.folder / "weights.safetensors", device)]
            if self.on_test_rows:
                probabilities = predict_test_rows(self.context, loaded, Predict())
            else:
                probabilities = predict_training_rows(self.context, loaded, Predict()).probabilities[self.rows]
            self.probabilities.append(probabilities)
            self.correct.append(probabilities.argmax(1) == self.labels)

    def networks(self) -> list[TrainedNetwork]:
        return [network for run in self.runs for network in run]

    def complete_runs(self) -> list[list[TrainedNetwork]]:
        return [run for run in self.runs if not any(network.error for network in run)]

    def errors(self) -> list[str]:
        """A message for each network whose training diverged."""
        return [f"seed {network.spec.seed}: {network.error}" for network in self.networks() if network.error]

    def accuracy_curves(self) -> Float[np.ndarray, "seeds epochs"] | None:
        """Accuracies of the runs, NaN where not measured; None for ensembles and without complete runs."""
        runs = self.complete_runs()
        if not runs or len(runs[0]) > 1:
            return None
        column = "test_accuracy" if self.on_test_rows else "validation_accuracy"
        return np.array([[row.get(column, np.nan) for row in network.history()] for (network,) in runs])


def run(context: StageContext) -> dict[str, Any]:
    measurements = [Measurement(each) for each in context.members]
    weights = imagenet.add_inputs(context)
    trained = ensure(context, list(_requests(context, measurements)), keep_going=True)
    remaining = iter(trained)
    for measurement in measurements:
        recipe = measurement.recipe
        size = recipe.n_networks
        measurement.runs = [[next(remaining) for _ in range(size)] for _ in range(recipe.compare.seeds)]
        measurement.predict()
    _write_report(context, measurements)
    _, table, html = (display_path(context.published_dir / name) for name in context.stage.outputs)
    context.run.report("table", table)
    context.run.report("page", html)
    summary = network_summary([network for network in trained if not network.error])
    return {"networks": summary} | weights


def _requests(context: StageContext, measurements: Sequence[Measurement]) -> Iterator[Request]:
    """The networks of all recipes and seeds, in order."""
    pool = make_pool(context)
    parallel = len(measurements) > 1 or measurements[0].recipe.compare.seeds > 1
    for measurement in measurements:
        recipe, training = measurement.recipe, measurement.arrays()
        for number in range(recipe.compare.seeds):
            for spec in plan.network_specs(recipe, measurement.context, pool, number, parallel):
                label = f"{measurement.recipe.name}, {spec.name}"
                yield Request(spec, training, measurement.context, label=label, test_data=measurement.test_data())


# The table and the page


def _write_report(context: StageContext, measurements: Sequence[Measurement]) -> None:
    """Write the table, as CSV and Markdown, and the page with pictures."""
    rows, curves, costs = [], {}, {}
    for measurement in measurements:
        if measurement.recipe.published.untrained:
            rows.append(_untrained_row(measurement, context.run.device))
        row = _row(measurement, context.run.device)
        rows.append(row)
        context.say(f"{row.recipe}: {_describe(row)}")
        if measurement.correct:
            costs[row.recipe] = row
            if (accuracies := measurement.accuracy_curves()) is not None:
                curves[row.recipe] = accuracies
    _add_steps(rows, measurements)
    statistics.adjust_p_values(rows)

    by_rows: dict[str, list[str]] = {}
    for measurement in measurements:
        by_rows.setdefault(measurement.description(), []).append(measurement.recipe.name)
    about = [
        f"Measured on {text}: {', '.join(names) if len(by_rows) > 1 else 'all'}." for text, names in by_rows.items()
    ]
    sources = dict.fromkeys(measurement.recipe.published.source for measurement in measurements)
    about += [f"Published: {source}." for source in sources if source]
    left_out = context.run.left_out if isinstance(context.run, JointWorkflow) else ()
    about += [f"Left out, since ImageNet's weights are not available: {', '.join(left_out)}."] if left_out else []
    contents = page.render(context.published_dir.name, about, rows, curves, costs)
    for name, content in zip(context.stage.outputs, contents, strict=True):
        store.write(context.output_dir / name, content)


def _row(measurement: Measurement, device: str) -> Row:
    """The row of a recipe without its step."""
    recipe, runs = measurement.recipe, measurement.complete_runs()
    row = statistics.Row(recipe.name, epochs=recipe.train.epochs, seeds=len(runs), note="; ".join(measurement.errors()))
    if not runs:
        return row
    row.accuracy, row.std = statistics.mean_and_std([float(correct.mean()) for correct in measurement.correct])
    row.parameters = sum(network.numbers().get("parameters", 0) for network in runs[0])
    contexts = [
        [store.read_json(network.folder / store.CONTEXT, schemas.Context) or {} for network in run] for run in runs
    ]
    seconds = [sum(context.get("training_seconds", np.nan) for context in run) for run in contexts]
    row.training_seconds = None if np.isnan(seconds).any() else float(np.mean(seconds))
    if recipe.compare.ensemble and len(runs) > 1:
        row.ensemble_accuracy = float(
            np.mean(np.mean(measurement.probabilities, axis=0).argmax(1) == measurement.labels)
        )
    distorted = _accuracies_on_distorted_images(measurement, device) if recipe.published.distorted else []
    statistics.compare_with_published(row, recipe.published, distorted)
    return row


def _accuracies_on_distorted_images(measurement: Measurement, device: str) -> list[float]:
    """The accuracy of the first network of each run on images that are distorted as in training, once for all runs."""
    model = measurement.recipe.models[0]
    seed_everything(0)
    images = apply_view(torch.from_numpy(measurement.images).to(device), model.view)
    batches = [random_affine(as_input(batch), measurement.recipe.affine) for batch in images.split(1000)]
    distorted = torch.cat(batches).squeeze(1).mul(255).round().to(torch.uint8)
    accuracies = []
    for run in measurement.complete_runs():
        (loaded,) = load_networks(run[0].folder / "weights.safetensors", device)
        with library_settings(device):
            precision = inference_precision(loaded.metadata["precision"], device)
            predictions = predict_logits(loaded.network, distorted, device, precision).argmax(1)
        accuracies.append(float(np.mean(predictions.cpu().numpy() == measurement.labels)))
    return accuracies


def _untrained_row(measurement: Measurement, device: str) -> Row:
    """The row of a recipe's network before training, with each seed."""
    recipe, (model, _, fold) = measurement.recipe, specs.variants(measurement.recipe)[0]
    weights_file = measurement.context.files.get(imagenet.input_name(model))
    training_images = torch.from_numpy(measurement.arrays().split(fold).images)
    images = apply_view(torch.from_numpy(measurement.images).to(device), model.view)
    accuracies = []
    for run in measurement.runs:
        network = make_initial_network(model, run[0].spec.seed, weights_file, training_images).to(device)
        with library_settings(device):
            predictions = predict_logits(network, images, device, "fp32").argmax(1).cpu().numpy()
        accuracies.append(float(np.mean(predictions == measurement.labels)))
    row = statistics.Row(f"{recipe.name}, untrained", epochs=0, seeds=len(accuracies))
    row.accuracy, row.std = statistics.mean_and_std(accuracies)
    statistics.compare_with_published(row, Published(accuracy=recipe.published.untrained))
    return row


def _add_steps(rows: Sequence[Row], measurements: Sequence[Measurement]) -> None:
    """Compare each recipe with its baseline, if both are measured on the same rows."""
    measured = {measurement.recipe.name: measurement for measurement in measurements if measurement.correct}
    by_name = {row.recipe: row for row in rows}
    for name, after in measured.items():
        before = measured.get(after.recipe.baseline)
        if not before or before.on_test_rows != after.on_test_rows or not np.array_equal(before.rows, after.rows):
            continue
        if before.networks() == after.networks():  # they differ in what compare does not use
            continue
        row, step = by_name[name], compare_recipes(np.stack(before.correct), np.stack(after.correct))
        row.baseline, row.step, row.step_p_value = after.recipe.baseline, step.difference, step.p_value
        row.step_low, row.step_high = step.low, step.high


def _describe(row: Row) -> str:
    if row.accuracy is None:
        return row.note
    std = "" if row.std is None else f" ± {row.std:.4f}"
    return f"{row.accuracy:.4f}{std} ({row.seeds} {'seed' if row.seeds == 1 else 'seeds'})"
