"""recognize: the digits in photos and drawings, with the recipe's trained network or a pretrained one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.errors import StageError, UserError, display_path
from pipeline.extras.recognize import figure
from pipeline.extras.recognize.image_files import NoDigit, list_image_files
from pipeline.extras.recognize.photos import PreparedDigit, read_digit
from pipeline.machine.environment import describe_environment
from pipeline.metrics.calibration import UNSURE_BELOW, calibrate
from pipeline.nn import pretrained
from pipeline.nn.inference import predict_probabilities
from pipeline.nn.networks import LoadedNetwork, load_networks
from pipeline.shapes import UInt8
from pipeline.workflow import publishing, schemas, store
from pipeline.workflow.engine import Workflow
from pipeline.workflow.stage import State

FOLDER = "data/recognized"  # below the workspace
CHUNK = 64  # images that are prepared before their digits are predicted and shown
MAX_PICTURED = 300  # images in recognized.png


class Prediction(NamedTuple):
    """The two most probable digits in an image file."""

    file: str
    digit: int
    probability: float
    runner_up: int
    runner_up_probability: float
    unsure: bool

    def __str__(self) -> str:
        unsure = "unsure, " if self.unsure else ""
        return (
            f"{self.file}: {unsure}{self.digit} ({self.probability:.1%}), "
            f"then {self.runner_up} ({self.runner_up_probability:.1%})"
        )


@dataclass
class Recognizer:
    """Networks, and the temperature that calibrates the mean of their probabilities."""

    loaded: Sequence[LoadedNetwork]
    temperature: float
    about: str


def recognize(run: Workflow) -> None:
    recognizer = _load_recognizer(run)
    run.say(recognizer.about)
    predictions: list[Prediction] = []
    pictured: list[UInt8[np.ndarray, "28 28"]] = []
    faults: list[str] = []
    digits = _read_digits(run, faults)
    while chunk := list(itertools.islice(digits, CHUNK)):
        for prediction in _predict(run, recognizer, chunk):
            run.say(str(prediction))
            predictions.append(prediction)
        pictured += [digit.image for _, digit in chunk[: MAX_PICTURED - len(pictured)]]
    if predictions:
        shown = predictions[: len(pictured)]
        picture = figure.draw(
            pictured,
            [prediction.file for prediction in shown],
            [f"{prediction.digit}  {prediction.probability:.1%}" for prediction in shown],
            [prediction.unsure for prediction in shown],
            len(predictions),
        )
        folder = store.resolve(run.workspace / FOLDER)
        _publish(run, folder, recognizer, predictions, picture)
        run.report("table", display_path(folder / "recognized.csv"))
        run.report("picture", display_path(folder / "recognized.png"))
    if faults:
        n_images = len(faults) + len(predictions)
        raise UserError(f"{len(faults)} of {n_images} images could not be recognized: see the lines above")


def _load_recognizer(run: Workflow) -> Recognizer:
    """The recipe's trained networks if they are fresh, otherwise the pretrained one. Raises StageError."""
    recipe, device, known = run.recipe, run.device, dict[tuple[str, str], State]()
    state, evaluate = (run.state(run.stages[name], known) for name in ("train", "evaluate"))
    on_sample = (run.manifest("download") or {"numbers": {}})["numbers"].get("source") == "sample"
    has_pretrained = recipe.name in pretrained.pretrained_recipes()
    if state.fresh and not (on_sample and has_pretrained):
        used = {"train": ("weights.safetensors",)} | ({"evaluate": ("metrics.json",)} if evaluate.fresh else {})
        run.require_intact(run.list_outputs(used))
        weights = run.published_dir("train") / "weights.safetensors"
        file = run.published_dir("evaluate") / "metrics.json"
        metrics = store.require_json(file, schemas.Metrics) if evaluate.fresh else None
        temperature = pretrained.choose_temperature(metrics) if metrics else None
        reason = "no rows were held out" if metrics else f"evaluate is {evaluate}"
        note = "" if temperature else f"; its probabilities are not calibrated, since {reason}"
        note += "; it was trained on the sample of 5,000 digits only" if on_sample else ""
        return Recognizer(load_networks(weights, device), temperature or 1.0, f"using {weights}{note}")
    if not has_pretrained:
        raise StageError(
            f"recipe {recipe.name} has no trained network ({state}): run `python run_pipeline.py --stage all"
            f"{run.arguments}` first, or use a pretrained one: "
            + " or ".join(f"--recipe {name}" for name in pretrained.pretrained_recipes())
        )
    network = pretrained.load_pretrained(recipe.name, device)
    why = "was trained on the sample only" if state.fresh else f"is {state}"
    about = f"using the pretrained network, since the recipe's own {why}"
    return Recognizer([network], network.metadata[pretrained.FACTS]["temperature"], about)


def _read_digits(run: Workflow, faults: list[str]) -> Iterator[tuple[str, PreparedDigit]]:
    """The digits in the files and folders of --images; a file that cannot be read is reported and noted in `faults`."""
    for path in run.images:
        try:
            files, note = list_image_files(path)
        except NoDigit as error:
            run.say(str(error))
            faults.append(str(error))
            continue
        if note:
            run.say(note)
        for file in files:
            try:
                yield str(file), read_digit(file)
            except NoDigit as error:
                run.say(str(error))
                faults.append(str(error))


def _predict(
    run: Workflow, recognizer: Recognizer, digits: Sequence[tuple[str, PreparedDigit]]
) -> Iterator[Prediction]:
    """The calibrated predictions for digits with the names of their files."""
    batch, device = torch.from_numpy(np.stack([digit.image for _, digit in digits])), run.device
    each = [predict_probabilities(loaded, batch, run.recipe.predict, device) for loaded in recognizer.loaded]
    probabilities = calibrate(np.mean(each, axis=0), recognizer.temperature)
    for (file, digit), row in zip(digits, probabilities, strict=True):
        second, first = np.argsort(row, kind="stable")[-2:].tolist()
        unsure = digit.is_doubtful or bool(row[first] < UNSURE_BELOW)
        yield Prediction(file, first, float(row[first]), second, float(row[second]), unsure)


def _publish(
    run: Workflow, folder: Path, recognizer: Recognizer, predictions: Sequence[Prediction], picture: bytes
) -> None:
    """Write the table and the picture, and replace the results of an earlier call."""
    publishing.restore(folder)
    staging, lines = publishing.create_staging_dir(folder), [",".join(Prediction._fields)]
    for p in predictions:
        file = p.file.replace('"', '""')  # always quoted: csv.writer does not quote a carriage return
        rest = f"{p.digit},{p.probability:.6f},{p.runner_up},{p.runner_up_probability:.6f},{p.unsure:d}"
        lines.append(f'"{file}",{rest}')
    store.write(staging / "recognized.csv", "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    store.write(staging / "recognized.png", picture)
    numbers = {
        "recipe": run.recipe.name,
        "network": recognizer.about,
        "temperature": recognizer.temperature,
        "images": len(predictions),
        "unsure": sum(prediction.unsure for prediction in predictions),
    }
    environment = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **describe_environment(run.device)}
    key = {"format": store.FORMAT, "stage": "recognize", "inputs": {}}
    store.write_manifest(staging, key, ["recognized.csv", "recognized.png"], numbers, environment)
    publishing.publish(folder)
