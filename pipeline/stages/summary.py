"""The last lines of a run: the accuracy, the submission, how to send it, and what to do next."""

import shlex
from pathlib import Path

from pipeline import artifacts, competition, recipe, sources
from pipeline.stages import STAGES


def show_result(call):
    """The last lines of a run: the validation accuracy, where the submission lies, how to send it."""
    folder = call.place(call.stages["predict"])
    receipt = artifacts.read_json(folder / "submission.json")
    validation, expected = receipt["validation"], receipt["expected_score"]
    if validation["rows"]:
        low, high = validation["interval_95"]
        chosen = "; the epoch was chosen on these rows" if validation["chosen_on_these_rows"] else ""
        call.say(
            f"validation accuracy {validation['accuracy']:.4f} "
            f"(95% interval {low:.4f} to {high:.4f}, {validation['rows']:,} rows{chosen})"
        )
    else:
        call.say(f"validation accuracy: none, {validation['why_none']}")
    if expected:
        low, high = expected["interval_95"]
        call.say(f"expected score {expected['estimate']:.4f} (95% of such scores: {low:.4f} to {high:.4f})")
        call.say(f"it rests on {expected['rests_on']}")
    else:
        call.say(f"expected score: none, {receipt['why_no_expected_score']}")
    if receipt["test_score"] is not None:
        call.say(
            f"score on the {receipt['rows']:,} test rows, whose labels the source has: {receipt['test_score']:.4f}"
        )
    file = shown(folder / "submission.csv")
    call.say(f"submission: {file} ({receipt['rows']:,} rows)")
    if receipt["can_be_submitted"]:
        message = shlex.quote(f"{receipt['message']} {receipt['tag']}")
        call.say(f"send it: kaggle competitions submit -c {competition.SLUG} -f {shlex.quote(file)} -m {message}")
    elif receipt["source"] not in sources.COMPETITION:
        if receipt["source"] != "sample":
            call.say(f"it was made from {receipt['source']} data, not the competition's, and cannot be sent to Kaggle")
    else:
        call.say(f"it cannot be sent: the competition's test set has {competition.TEST_ROWS:,} rows")


def suggest_next(call):
    """After `quick` on the competition's data: recipes that score more, with their recorded accuracies, and `inspect`.

    On the sample, the warning that follows says how to get the competition's data.
    """
    receipt = artifacts.read_json(call.place(call.stages["predict"]) / "submission.json")
    if call.recipe.name != "quick" or not receipt["can_be_submitted"]:
        return
    more = {name: recipe.load(name).estimate.accuracy for name in ("standard", "best")}
    call.say(
        f"next: for a higher score, try --recipe standard (about {more['standard']:.4f}, some minutes) or --recipe "
        f"best (about {more['best']:.4f}, an hour on 2 cores); for pictures of this network, run --stage inspect"
    )


def _is_sample(call):
    manifest, _ = artifacts.read_manifest(call.place(STAGES["download"]))
    return bool(manifest) and manifest["numbers"].get("source") == "sample"


def warn_of_sample(call):
    if _is_sample(call):
        bar = "*" * 78
        call.say(
            f"{bar}\nTHIS IS SAMPLE DATA: 5,000 digits of MNIST. Training on the competition's 42,000 gives a\n"
            "higher score. A submission made from the sample cannot be sent to Kaggle.\n"
            f"For the competition's data, {sources.HOW_TO_GET_REAL_DATA}\n{bar}"
        )


def shown(path):
    """A path as the user would type it from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
