"""evaluate: what the kept weights make of the validation rows."""

import hashlib

import numpy as np
import pandas as pd
import torch

from pipeline import artifacts, inference, metrics, pictures
from pipeline.models import load_weights
from pipeline.stages.engine import accuracy_hash

MISTAKES = 40  # at most so many in the picture
SUSPECTS = 100  # at most so many rows in the table


def run(job):
    network, about = load_weights(job.paths["train/weights.safetensors"], job.call.device)
    measured_with = {"data": _data_hash(job), "settings": accuracy_hash(job.call.recipe)}
    if about["fit_all"]:
        estimate, why = _recorded(job.settings.estimate, measured_with)
        reason = "trained on all rows (train.fit_all): nothing is left to evaluate on"
        numbers = {"rows": 0, "accuracy": None, "why_none": reason, "estimate": estimate, "why_no_estimate": why}
        artifacts.write_json(job.folder / "metrics.json", {**numbers, "measured_with": measured_with})
        job.call.say(f"evaluate: {reason}")
        return numbers

    rows = np.load(job.paths["prepare/validation_rows.npy"])
    images = np.load(job.paths["prepare/train_images.npy"], mmap_mode="r")[rows]
    labels = np.load(job.paths["prepare/train_labels.npy"])[rows]
    probabilities = inference.probabilities(
        network, torch.from_numpy(images), job.settings.predict, job.call.device, about["precision"]
    )
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
        "kept_epoch": about["epoch"],
        "chosen_on_these_rows": about["keep"] == "best",
        "measured_with": measured_with,
    }
    artifacts.write_json(job.folder / "metrics.json", numbers)
    artifacts.write(job.folder / "confusion.png", pictures.confusion(counts))
    wrong = metrics.most_confident_errors(probabilities, labels, MISTAKES)
    picture = pictures.mistakes(images[wrong], labels[wrong], predicted[wrong], probabilities[wrong], rows[wrong] + 1)
    artifacts.write(job.folder / "mistakes.png", picture)
    doubted = metrics.most_doubted(probabilities, labels, SUSPECTS)
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


def _data_hash(job):
    """SHA-256 over the hashes of the training images and labels."""
    names = ("prepare/train_images.npy", "prepare/train_labels.npy")
    return hashlib.sha256("".join(job.key["inputs"][name] for name in names).encode()).hexdigest()


def _recorded(estimate, measured_with):
    """The recipe's recorded estimate and "", or None and why it does not hold here."""
    if not estimate.seeds:
        return None, "the recipe records none"
    for what, here in measured_with.items():
        if getattr(estimate, what) != here:
            return None, f"the recipe's was measured with other {what}"
    return {name: getattr(estimate, name) for name in ("accuracy", "deviation", "seeds", "rows", "date")}, ""
