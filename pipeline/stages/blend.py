"""The mean of several recipes' probabilities, in the place of `predict` (`--recipe a,b,c`; see `blending`)."""

import hashlib

import numpy as np

from pipeline import artifacts, metrics
from pipeline.stages import submission


def space(job):
    """Bytes that `run` writes at most: as much as one of its parts."""
    return 2 * job.paths[f"{job.call.recipe.name.split('+')[0]}/probabilities.npy"].stat().st_size


def run(job):
    paths, names = job.paths, job.call.recipe.name.split("+")
    probabilities = _mean([paths[f"{name}/probabilities.npy"] for name in names])
    held_out = [paths.get(f"{name}/held_out.npy") for name in names]
    found = [artifacts.read_json(paths[f"{name}/metrics.json"]) for name in names]
    if all(held_out):
        rows = np.load(paths["validation_rows.npy"])
        labels = np.load(paths["train_labels.npy"])[rows]
        right = int(np.sum(_mean(held_out).argmax(1) == labels))
        evaluated = {
            "rows": len(rows),
            "right": right,
            "accuracy": right / len(rows),
            "interval_95": metrics.wilson(right, len(rows)),
            "chosen_on_these_rows": any(one["chosen_on_these_rows"] for one in found),
            "rests_on": _rests_on(found, len(rows)),
        }
    else:
        whole = [name for name, path in zip(names, held_out, strict=True) if path is None]
        why = f"{', '.join(whole)} was trained on all rows, so none is held out of all"
        evaluated = {"rows": 0, "accuracy": None, "why_none": why, "why_no_record": why}
    hashes = {
        kind: hashlib.sha256("".join(job.key["inputs"][f"{name}/{file}"] for name in names).encode()).hexdigest()
        for kind, file in (("recipe", "metrics.json"), ("weights", "probabilities.npy"))
    }
    submission.leave(job, probabilities, evaluated, hashes["recipe"], hashes["weights"])
    return {"rows": len(probabilities)}


def _rests_on(found, rows):
    """What the accuracy says of the submission, in words; the recipes have one split, so all have folds or none."""
    if "folds" not in found[0]:
        return f"{rows:,} validation rows: the mean of {len(found)} recipes, as in the submission"
    return f"{rows:,} out-of-fold rows: the mean of {len(found)} recipes, each by the networks not trained on a row"


def _mean(paths):
    return sum(np.load(path) for path in paths) / np.float32(len(paths))
