"""What a comparison says: accuracies of runs, whether a step helps, and the table as CSV and Markdown."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats


@dataclass
class Row:
    """One recipe in the table; a figure that there is none of is None."""

    recipe: str
    parameters: int | None = None
    epochs: int | None = None
    seeds: int = 0
    accuracy: float | None = None  # the mean over seeds
    deviation: float | None = None  # the standard deviation over seeds
    after: str | None = None  # the recipe that it is a change of
    step: float | None = None  # the accuracy less that one's
    p: float | None = None  # of the step, were there none
    seconds: float | None = None  # of training, the mean
    distorted: float | None = None  # accuracy on images distorted as in training
    ensemble: float | None = None  # accuracy of the mean of all seeds' probabilities
    published: float | None = None
    difference: float | None = None  # ours less the published figure
    in_deviations: float | None = None  # the same, in deviations over seeds
    note: str = ""


def accuracies(answers, labels):
    """Shares of right answers (seeds, epochs) of answers (seeds, epochs, rows)."""
    return (answers == labels).mean(2)


def mean_and_deviation(values):
    """Mean and standard deviation of a list; the latter None of fewer than two."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def step(before, after):
    """How much more of the rows is right after than before, and the p value of that, were there no difference.

    before, after: right or not (seeds, rows), the same rows. The share of seeds that are right on a row is compared
    row by row: Student's t-test of the differences, which of one seed is nearly McNemar's test.
    """
    differences = after.mean(0) - before.mean(0)
    if not differences.any():
        return 0.0, 1.0
    return float(differences.mean()), float(scipy.stats.ttest_1samp(differences, 0).pvalue)


def against_published(row, published, distorted=()):
    """Fill in what a row's accuracy is beside the published figure.

    distorted: each seed's accuracy on images distorted as in training, where that is what was published.
    """
    ours, deviation = row.accuracy, row.deviation
    if distorted:
        ours, deviation = mean_and_deviation(distorted)
        row.distorted = ours
    if published.accuracy:
        row.published, row.difference = published.accuracy, ours - published.accuracy
        row.in_deviations = row.difference / deviation if deviation else None


def published_steps(rows):
    """A sentence for each step whose published figures go the other way, or one that says that none does."""
    known, told, seen = {row.recipe: row for row in rows}, [], 0
    for row in rows:
        before = known.get(row.after)
        # A figure on distorted images says nothing of a step.
        if before is None or None in (row.published, before.published) or row.distorted is not None:
            continue
        seen += 1
        theirs = row.published - before.published
        if theirs * row.step <= 0:
            told.append(
                f"{row.recipe} is published {theirs:+.4f} from {row.after}; here it is {row.step:+.4f} (p {row.p:.1g})."
            )
    if seen and not told:
        told.append(f"All {seen} steps go the way of the published ones.")
    return told


def as_csv(rows):
    """The table with all digits, UTF-8."""
    return pd.DataFrame([dataclasses.asdict(row) for row in rows]).to_csv(index=False, lineterminator="\n").encode()


HEADINGS = {
    "recipe": ("recipe", str),
    "parameters": ("parameters", "{:,}".format),
    "epochs": ("epochs", str),
    "seeds": ("seeds", str),
    "accuracy": ("accuracy", "{:.4f}".format),
    "deviation": ("± over seeds", "{:.4f}".format),
    "after": ("a change of", str),
    "step": ("step", "{:+.4f}".format),
    "p": ("p of the step", "{:.1g}".format),
    "distorted": ("on distorted rows", "{:.4f}".format),
    "ensemble": ("mean of all seeds", "{:.4f}".format),
    "published": ("published", "{:.4f}".format),
    "difference": ("ours − published", "{:+.4f}".format),
    "in_deviations": ("in deviations", "{:+.1f}".format),
    "seconds": ("training (s)", "{:.0f}".format),
    "note": ("note", str),
}


def as_texts(rows):
    """The headings and the cells as they are shown; a column in which no row has anything is left out."""
    shown = [name for name in HEADINGS if any(getattr(row, name) not in (None, "") for row in rows)]
    cells = [
        ["" if getattr(row, name) is None else HEADINGS[name][1](getattr(row, name)) for name in shown] for row in rows
    ]
    return [HEADINGS[name][0] for name in shown], cells


def as_markdown(rows):
    """The table as it is shown in a README."""
    headings, cells = as_texts(rows)
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
