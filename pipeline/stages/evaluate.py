"""evaluate: what the kept weights make of the validation rows."""

import hashlib

import numpy as np
import pandas as pd
import torch

from pipeline import artifacts, competition, inference, metrics
from pipeline.models import load_weights
from pipeline.pictures import training as pictures
from pipeline.stages.engine import accuracy_hash

SHOWN = 40  # at most so many in a picture
SUSPECTS = 100  # at most so many rows in the table


def space(job):
    """Bytes that `run` writes at most, beside pictures: ten float32 a row."""
    return 40 * len(np.load(job.paths["prepare/validation_rows.npy"], mmap_mode="r"))


def run(job):
    networks = load_weights(job.paths["train/weights.safetensors"], job.call.device)
    measured_with = {"data": _data_hash(job), "settings": accuracy_hash(job.settings)}
    abouts = [about for _, about in networks]
    folds = np.load(job.paths["prepare/folds.npy"]) if "prepare/folds.npy" in job.paths else None
    record, why = _recorded(job, measured_with, _training_rows(job, abouts, folds))
    recorded = {"record": record, "why_no_record": why, "measured_with": measured_with}
    if abouts[0]["fit_all"]:
        reason = "trained on all rows (train.fit_all): nothing is left to evaluate on"
        numbers = {"rows": 0, "accuracy": None, "why_none": reason}
        artifacts.write_json(job.folder / "metrics.json", numbers | recorded)
        job.call.say(f"evaluate: {reason}")
        return numbers

    rows = np.load(job.paths["prepare/validation_rows.npy"])
    images = np.load(job.paths["prepare/train_images.npy"], mmap_mode="r")[rows]
    labels = np.load(job.paths["prepare/train_labels.npy"])[rows]
    probabilities, accuracies = _held_out(job, networks, images, labels, folds)
    predicted = probabilities.argmax(1)
    counts = metrics.confusion(predicted, labels)
    right = int(np.trace(counts))
    numbers = {
        "rows": len(rows),
        "right": right,
        "accuracy": right / len(rows),
        "interval_95": metrics.wilson(right, len(rows)),
        "loss": metrics.cross_entropy(probabilities, labels),
        "classes": metrics.by_class(counts),
        "kept_epoch": abouts[0]["epoch"] if len(abouts) == 1 else [about["epoch"] for about in abouts],
        "chosen_on_these_rows": any(about["keep"] == "best" for about in abouts),
        "rests_on": _rests_on(abouts, len(rows), folds),
        **recorded,
    }
    if len(networks) > 1:
        numbers["networks"] = len(networks)
        numbers["network_accuracy"] = _mean_and_deviation(accuracies)
    if folds is not None:
        numbers["folds"] = _mean_and_deviation(
            [float(np.mean((predicted == labels)[folds == fold])) for fold in range(folds.max() + 1)]
        )
    artifacts.write_json(job.folder / "metrics.json", numbers)
    artifacts.write_array(job.folder / "probabilities.npy", probabilities.shape, probabilities.dtype, [probabilities])
    artifacts.write(job.folder / "confusion.png", pictures.confusion(counts))
    wrong = metrics.most_confident_errors(probabilities, labels, SHOWN)
    shown = (images, labels, predicted, probabilities, rows + 1)
    picture = pictures.mistakes(
        *(each[wrong] for each in shown),
        "The most confident mistakes on validation rows (row of train.csv)",
        "none: every validation row was right",
    )
    artifacts.write(job.folder / "mistakes.png", picture)
    doubted = metrics.most_doubted(probabilities, labels, SUSPECTS)
    picture = pictures.mistakes(
        *(each[doubted[:SHOWN]] for each in shown),
        "The labels most likely wrong: those of the least probability (row of train.csv)",
        "none",
    )
    artifacts.write(job.folder / "suspects.png", picture)
    table = pd.DataFrame(
        {
            "row": rows[doubted] + 1,  # of train.csv, the first row under the header being 1
            "label": labels[doubted],
            "label_probability": probabilities[doubted, labels[doubted]],
            "prediction": predicted[doubted],
            "prediction_probability": probabilities[doubted, predicted[doubted]],
        }
    )
    text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    artifacts.write(job.folder / "suspects.csv", text.encode())
    return {name: numbers[name] for name in ("rows", "right", "accuracy", "interval_95", "chosen_on_these_rows")}


def _held_out(job, networks, images, labels, folds):
    """Mean probabilities (n, 10) of the networks that were not trained on a row; and each network's accuracy."""
    total, seen, accuracies = np.zeros((len(images), 10), np.float32), np.zeros((len(images), 1)), []
    for network, about in networks:
        mine = slice(None) if folds is None else folds == about["fold"]
        shown = torch.from_numpy(images[mine])
        made = inference.of_file(network, about, shown, job.settings.predict, job.call.device)
        total[mine] += made
        seen[mine] += 1
        accuracies.append(float(np.mean(made.argmax(1) == labels[mine])))
    return (total / seen).astype(np.float32), accuracies


def _rests_on(abouts, rows, folds):
    """What the accuracy says of the submission, in words."""
    if folds is None:
        return f"{rows:,} validation rows"
    held_by = len(abouts) // (folds.max() + 1)
    words = f"{rows:,} out-of-fold rows: each by the {held_by} of {len(abouts)} networks that were not trained on it"
    if any(about["keep"] == "best" for about in abouts):
        return words
    return f"{words}; the submission averages all of them, so this is a lower bound on average"


def _mean_and_deviation(values):
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation, "each": values}


def _data_hash(job):
    """SHA-256 over the hashes of the training images and labels."""
    names = ("prepare/train_images.npy", "prepare/train_labels.npy")
    return hashlib.sha256("".join(job.key["inputs"][name] for name in names).encode()).hexdigest()


def _training_rows(job, abouts, folds):
    """The rows of train.csv that each network was trained on; the fewest, where folds differ in size."""
    sizes = job.manifests["prepare"]["numbers"]
    if abouts[0]["fit_all"]:
        return sizes["train_rows"]
    return sizes["training_rows"] if folds is None else len(folds) - int(np.bincount(folds).max())


def _recorded(job, measured_with, training_rows):
    """The recipe's recorded estimate, with whether it was measured on the same data, and "", or None and why not."""
    estimate, sizes = job.settings.estimate, job.manifests["prepare"]["numbers"]
    if not estimate.seeds:
        return None, "the recipe has no recorded accuracy"
    if estimate.settings != measured_with["settings"]:
        return None, "the recipe's recorded accuracy was measured with different settings"
    if (sizes["train_rows"], sizes["test_rows"]) != (competition.TRAIN_ROWS, competition.TEST_ROWS):
        return None, (
            f"the recipe's recorded accuracy applies only to {competition.TRAIN_ROWS:,} training and "
            f"{competition.TEST_ROWS:,} test rows; this data set has {sizes['train_rows']:,} and {sizes['test_rows']:,}"
        )
    if training_rows < estimate.training_rows:
        return None, f"the recipe's recorded accuracy requires at least {estimate.training_rows:,} training rows"
    mean = np.load(job.paths["prepare/train_images.npy"], mmap_mode="r").mean()
    if abs(mean - competition.MEAN_PIXEL) > competition.MEAN_PIXEL_TOLERANCE:
        return None, f"the images are not MNIST's: their mean pixel is {mean:.2f}, not {competition.MEAN_PIXEL:.2f}"
    names = ("accuracy", "deviation", "seeds", "rows", "training_rows", "date")
    same = estimate.data == measured_with["data"]
    return {name: getattr(estimate, name) for name in names} | {"same_data": same}, ""
