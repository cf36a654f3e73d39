"""evaluate: what the kept weights make of the validation rows."""

import numpy as np
import pandas as pd
import torch

from pipeline import artifacts, inference, metrics, pictures
from pipeline.models import load_weights

MISTAKES = 40  # at most so many in the picture
SUSPECTS = 100  # at most so many rows in the table


def run(job):
    rows = np.load(job.paths["prepare/validation_rows.npy"])
    images = np.load(job.paths["prepare/train_images.npy"], mmap_mode="r")[rows]
    labels = np.load(job.paths["prepare/train_labels.npy"])[rows]
    network, about = load_weights(job.paths["train/weights.safetensors"], job.call.device)
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
