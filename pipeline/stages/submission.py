"""A submission's files: the ordered table, its probabilities and its receipt, for `predict` and for a blend."""

import hashlib

import numpy as np
import pandas as pd

from pipeline import artifacts, competition, digits, metrics, sources


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
    expected = expected_score(evaluated, len(labels))
    receipt = {
        "recipe": job.call.recipe.name,
        "source": source,
        "can_be_submitted": source in sources.COMPETITION and len(labels) == competition.TEST_ROWS,
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
        "expected_score": expected,
        "why_no_expected_score": "" if expected else evaluated["why_no_record"],
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


def expected_score(evaluated, test_rows):
    """The accuracy to expect on `test_rows` new rows, its 95% prediction interval, and what both rest on; or None.

    evaluated: the content of `metrics.json`: the run's own measurement, the recipe's record, or both.
    """
    own = record = None
    total, population = competition.TRAIN_ROWS, competition.DIGITS
    if evaluated["rows"]:
        own = evaluated["accuracy"], evaluated["rows"]
        chosen = "; the epoch was chosen on these rows too" if evaluated["chosen_on_these_rows"] else ""
        rests_on = evaluated["rests_on"] + chosen
    if recorded := evaluated.get("record"):
        variance = metrics.record_variance(recorded["rows"], recorded["seeds"], total)
        record = recorded["accuracy"], variance, recorded["same_data"]
    if own and record and record[2] and own[1] >= total:
        record = None  # the run has measured all rows of the record itself
    if own and record and metrics.contradicts(own, record, total, population):
        record = None
        rests_on += "; the recipe's record is left out: it is more than four standard errors away"
    if own and record:
        accuracy, interval, weight = metrics.combined_score(own, record, test_rows, total, population)
        rests_on = (
            f"two measurements, with their overlap taken into account: {weight:.0%} on {rests_on}; {1 - weight:.0%} on "
            f"{_record_in_words(recorded)}"
        )
    elif own:
        accuracy, interval = own[0], metrics.expected_score(evaluated["right"], own[1], test_rows)
    elif record:
        accuracy, interval = record[0], metrics.recorded_score(record, test_rows, population)
        rests_on = _record_in_words(recorded)
    else:
        return None
    return {"estimate": accuracy, "interval_95": interval, "rests_on": rests_on}


def _record_in_words(record):
    """What the recipe's record is and where it was measured."""
    how = (
        f"mean of {record['seeds']} seeds, standard deviation {record['deviation']:.4f}, "
        f"{record['rows']:,} rows held out of each training"
        if record["seeds"] > 1
        else f"{record['rows']:,} rows out of fold"
    )
    where = "on the same data" if record["same_data"] else "on another draw of the same digits"
    return f"the recipe's record of {record['date']}: {record['accuracy']:.4f}, {how}, measured {where}"
