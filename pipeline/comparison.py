"""Comparison statistics: accuracies over seeds, tests of the steps between recipes, and the table as text."""

import dataclasses
import warnings
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
    step_low: float | None = None  # 95% interval of the step, over seeds and rows
    step_high: float | None = None
    p: float | None = None  # p-value of the step: Welch's t-test over seeds, on these rows
    p_holm: float | None = None  # the same after Holm's correction over the steps of the table
    seconds: float | None = None  # of training, the mean
    distorted: float | None = None  # accuracy on images distorted as in training
    ensemble: float | None = None  # accuracy of the mean of all seeds' probabilities
    published: float | None = None
    difference: float | None = None  # ours less the published figure
    in_deviations: float | None = None  # the same, in deviations over seeds
    note: str = ""

    @property
    def significant(self):
        return self.p_holm is not None and self.p_holm < SIGNIFICANT


SIGNIFICANT = 0.05  # the family-wise error rate of a table's steps


def accuracies(answers, labels):
    """Shares of right answers (seeds, epochs) of answers (seeds, epochs, rows)."""
    return (answers == labels).mean(2)


def mean_and_deviation(values):
    """Mean and standard deviation of a list; the latter None of fewer than two."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Step:
    """The difference of two recipes' mean accuracies, its 95% interval (low, high) and its p-value.

    The interval and the p-value are None where a recipe has one seed; the p-value also where no seed differs.
    """

    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def step(before, after):
    """Compare two recipes by the rows that they classify correctly; returns a Step.

    before, after: bool arrays (seeds, rows) of the same rows; the numbers of seeds may differ.

    The p-value is that of Welch's t-test over seeds, which treats the rows as fixed. The interval is for new seeds and
    new rows: to the two variances of Welch's test it adds that of sampling rows, estimated from the paired differences
    less what the seeds contribute to them, with the degrees of freedom of Welch and Satterthwaite.
    """
    difference = float(after.mean() - before.mean())
    if min(len(before), len(after)) < 2:
        return Step(difference)
    counts = [right.sum(1) for right in (before, after)]  # integers, so that equal seeds have no variance at all
    seeds = [count.var(ddof=1) / before.shape[1] ** 2 / len(count) for count in counts]
    by_row = (after.mean(0) - before.mean(0)).var(ddof=1)
    from_seeds = sum(right.var(0, ddof=1).mean() / len(right) for right in (before, after))
    rows = before.shape[1]
    variances = np.array([*seeds, max(0.0, by_row - from_seeds) / rows])
    if not variances.any():
        return Step(difference, difference, difference)
    freedom = variances.sum() ** 2 / (variances**2 / [len(before) - 1, len(after) - 1, rows - 1]).sum()
    half = float(scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variances.sum()))
    p = None
    if any(seeds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the seeds of one recipe may all be equal
            p = float(scipy.stats.ttest_ind(counts[1], counts[0], equal_var=False).pvalue)
    return Step(difference, difference - half, difference + half, p)


def holm(p_values):
    """Holm's step-down adjustment of p-values, which controls the family-wise error rate.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6 (1979).
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return adjusted.tolist()


def adjust(rows):
    """Fill in the Holm-adjusted p-values of a table's steps."""
    tested = [row for row in rows if row.p is not None]
    for row, p in zip(tested, holm([row.p for row in tested]), strict=True):
        row.p_holm = p


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
    """Sentences on the published steps: which our seeds confirm, which they contradict, and which they leave open."""
    known, confirmed, contradicted, undecided = {row.recipe: row for row in rows}, [], [], []
    for row in rows:
        before = known.get(row.after)
        # A figure on distorted images says nothing about a step.
        if before is None or None in (row.published, before.published) or row.distorted is not None:
            continue
        theirs = row.published - before.published
        interval = "" if row.step_low is None else f", 95% interval {row.step_low:+.4f} to {row.step_high:+.4f}"
        text = f"{row.recipe} (published: {theirs:+.4f} over {before.recipe}; here: {row.step:+.4f}{interval})"
        # The published figures are of other rows: the interval, which covers new rows, must exclude 0 as well.
        if not row.significant or row.step_low <= 0 <= row.step_high:
            undecided.append(text)
        elif theirs * row.step >= 0:
            confirmed.append(row.recipe)
        else:
            contradicted.append(text)
    sentences = [f"Published steps confirmed here: {', '.join(confirmed)}."] if confirmed else []
    sentences += [f"Contradicted: {'; '.join(contradicted)}."] if contradicted else []
    return sentences + ([f"Neither confirmed nor contradicted: {'; '.join(undecided)}."] if undecided else [])


def as_csv(rows):
    """The table with all digits, UTF-8."""
    return pd.DataFrame([dataclasses.asdict(row) for row in rows]).to_csv(index=False, lineterminator="\n").encode()


HEADINGS = {
    "recipe": ("recipe", lambda row: row.recipe),
    "parameters": ("parameters", lambda row: f"{row.parameters:,}"),
    "epochs": ("epochs", lambda row: str(row.epochs)),
    "seeds": ("seeds", lambda row: str(row.seeds)),
    "accuracy": ("accuracy", lambda row: f"{row.accuracy:.4f}"),
    "deviation": ("± over seeds", lambda row: f"{row.deviation:.4f}"),
    "after": ("a change of", lambda row: row.after),
    "step": ("step", lambda row: f"{row.step:+.4f}{' *' if row.significant else ''}"),
    "step_low": ("95% interval of the step", lambda row: f"{row.step_low:+.4f} to {row.step_high:+.4f}"),
    "p": ("p of the step", lambda row: f"{row.p:.1g}"),
    "p_holm": ("p after Holm", lambda row: f"{row.p_holm:.1g}"),
    "distorted": ("on distorted rows", lambda row: f"{row.distorted:.4f}"),
    "ensemble": ("mean of all seeds", lambda row: f"{row.ensemble:.4f}"),
    "published": ("published", lambda row: f"{row.published:.4f}"),
    "difference": ("ours − published", lambda row: f"{row.difference:+.4f}"),
    "in_deviations": ("in deviations", lambda row: f"{row.in_deviations:+.1f}"),
    "seconds": ("training (s)", lambda row: f"{row.seconds:.0f}"),
    "note": ("note", lambda row: row.note),
}


def as_texts(rows):
    """The headings and the cells as they are shown; a column in which no row has anything is left out."""
    shown = [name for name in HEADINGS if any(getattr(row, name) not in (None, "") for row in rows)]
    cells = [["" if getattr(row, name) is None else HEADINGS[name][1](row) for name in shown] for row in rows]
    return [HEADINGS[name][0] for name in shown], cells


def as_markdown(rows):
    """The table as it is shown in a README."""
    headings, cells = as_texts(rows)
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
