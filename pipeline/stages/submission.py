"""A submission's files: the ordered table, its probabilities and its receipt, for `predict` and for a blend."""

import hashlib

import numpy as np
import pandas as pd

from pipeline import artifacts, digits, metrics, sources


def leave(job, probabilities, evaluated, recipe, weights):
    """Write them into the job's folder, read the table back, and score it where the source has the answers.

    probabilities: (n, 10), in the order of test.csv.
    evaluated: what `metrics.json` says of the rows that were held out.
    recipe, weights: the hashes of the settings and of the weights, for the receipt.
    """
    labels = probabilities.argmax(1).astype(np.uint8)
    table = pd.DataFrame({"ImageId": np.arange(1, len(labels) + 1), "Label": labels})
    content = table.to_csv(index=False, lineterminator="\n").encode()
    file = job.folder / "submission.csv"
    artifacts.write(file, content)
    # prepare held sample_submission.csv to the same check: ids 1 to N in order, as many as test.csv has rows.
    if not np.array_equal(digits.read_submission(digits.Table(file), len(labels)), labels):
        raise OSError(f"{file}: reads back otherwise than it was written")
    artifacts.write_array(job.folder / "probabilities.npy", probabilities.shape, probabilities.dtype, [probabilities])

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
            "weights.safetensors": weights,
            "recipe": recipe,
            "data": job.manifests["download"]["outputs"],
        },
        "validation": {
            name: evaluated.get(name)
            for name in ("accuracy", "interval_95", "rows", "chosen_on_these_rows", "rests_on", "why_none")
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
        + (f"validation {evaluated['accuracy']:.4f}" if evaluated["rows"] else "no row held out"),
        "tag": f"[{digest[:12]}]",
        # What was ever sent to Kaggle from this folder outlives a new prediction.
        "sent": (artifacts.read_json(job.place / "submission.json") or {}).get("sent", []),
    }
    answers = job.paths.get(f"download/{sources.TEST_LABELS}")
    if answers:
        truth = digits.read_submission(digits.Table(answers), len(labels))
        receipt["test_score"] = float(np.mean(truth == labels))
    artifacts.write_json(job.folder / "submission.json", receipt)


def _basis(evaluated):
    """What the expected score rests on: accuracy, right answers of so many rows, and in words; None for nothing."""
    if evaluated["rows"]:
        chosen = "; the epoch was chosen on these rows too" if evaluated["chosen_on_these_rows"] else ""
        return {**evaluated, "rests_on": evaluated["rests_on"] + chosen}
    recorded = evaluated["estimate"]
    return recorded and {
        "accuracy": recorded["accuracy"],
        "right": round(recorded["accuracy"] * recorded["rows"]),
        "rows": recorded["rows"],
        "rests_on": f"the recipe's record of {recorded['date']}: mean of {recorded['seeds']} seeds, deviation "
        f"{recorded['deviation']:.4f}, {recorded['rows']:,} rows held out of each training",
    }
