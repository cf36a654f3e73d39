"""predict: the ordered submission, its probabilities and its receipt."""

import hashlib

import numpy as np
import pandas as pd
import torch

from pipeline import artifacts, digits, inference, metrics, sources
from pipeline.models import load_weights
from pipeline.stages.engine import recipe_hash


def run(job):
    images = np.load(job.paths["prepare/test_images.npy"])
    network, about = load_weights(job.paths["train/weights.safetensors"], job.call.device)
    probabilities = inference.probabilities(
        network, torch.from_numpy(images), job.settings.predict, job.call.device, about["precision"]
    )
    labels = probabilities.argmax(1).astype(np.uint8)
    table = pd.DataFrame({"ImageId": np.arange(1, len(labels) + 1), "Label": labels})
    content = table.to_csv(index=False, lineterminator="\n").encode()
    file = job.folder / "submission.csv"
    artifacts.write(file, content)
    # prepare held sample_submission.csv to the same check: ids 1 to N in order, as many as test.csv has rows.
    if not np.array_equal(digits.read_submission(digits.Table(file), len(images)), labels):
        raise OSError(f"{file}: reads back otherwise than it was written")
    artifacts.write_array(job.folder / "probabilities.npy", probabilities.shape, probabilities.dtype, [probabilities])

    evaluated = artifacts.read_json(job.paths["evaluate/metrics.json"])
    source = job.manifests["download"]["numbers"]["source"]
    digest = hashlib.sha256(content).hexdigest()
    basis = _basis(evaluated)
    receipt = {
        "recipe": job.call.recipe.name,
        "source": source,
        "can_be_submitted": source in sources.COMPETITION,
        "rows": len(labels),
        "sha256": {
            "submission.csv": digest,
            "weights.safetensors": job.key["inputs"]["train/weights.safetensors"],
            "recipe": recipe_hash(job.call.recipe),
            "data": job.manifests["download"]["outputs"],
        },
        "validation": {
            name: evaluated.get(name)
            for name in ("accuracy", "interval_95", "rows", "chosen_on_these_rows", "why_none")
        },
        "expected_score": basis
        and {
            "estimate": basis["accuracy"],
            "interval_95": metrics.expected_score(basis["right"], basis["rows"], len(labels)),
            "rests_on": basis["rests_on"],
        },
        "why_no_expected_score": evaluated.get("why_no_estimate", ""),
        "test_score": None,
        "commit": job.context["commit"],
        "versions": job.context["versions"],
        # The tag ties Kaggle's list of submissions to this file, also where it is sent by hand.
        "message": f"{job.call.recipe.name}, "
        + (f"validation {evaluated['accuracy']:.4f}" if evaluated["rows"] else "trained on all rows"),
        "tag": f"[{digest[:12]}]",
        # What was ever sent to Kaggle from this folder outlives a new prediction.
        "sent": (artifacts.read_json(job.place / "submission.json") or {}).get("sent", []),
    }
    answers = job.paths.get(f"download/{sources.TEST_LABELS}")
    if answers:
        truth = digits.read_submission(digits.Table(answers), len(labels))
        receipt["test_score"] = float(np.mean(truth == labels))
    artifacts.write_json(job.folder / "submission.json", receipt)
    return {"rows": len(labels)}


def _basis(evaluated):
    """What the expected score rests on: accuracy, right answers of so many rows, and in words; None for nothing."""
    if evaluated["rows"]:
        chosen = ", on which the epoch was chosen too" if evaluated["chosen_on_these_rows"] else ""
        return {**evaluated, "rests_on": f"{evaluated['rows']} validation rows{chosen}"}
    recorded = evaluated["estimate"]
    return recorded and {
        "accuracy": recorded["accuracy"],
        "right": round(recorded["accuracy"] * recorded["rows"]),
        "rows": recorded["rows"],
        "rests_on": f"the recipe's record of {recorded['date']}: mean of {recorded['seeds']} seeds, deviation "
        f"{recorded['deviation']:.4f}, {recorded['rows']:,} rows held out of each training",
    }
