"""The table of a comparison as CSV, Markdown and cells of text, and sentences on published steps."""

import dataclasses
from collections.abc import Callable, Sequence

import pandas as pd

from pipeline.extras.compare.statistics import SIGNIFICANCE_LEVEL, Row
from pipeline.reports import markdown

# By the column's name in table.csv: its heading, and the format of a value.
COLUMNS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "recipe": ("recipe", lambda row: row.recipe),
    "parameters": ("parameters", lambda row: f"{row.parameters:,}"),
    "epochs": ("epochs", lambda row: f"{row.epochs}"),
    "seeds": ("seeds", lambda row: f"{row.seeds}"),
    "accuracy": ("accuracy", lambda row: f"{row.accuracy:.4f}"),
    "std": ("standard deviation over seeds", lambda row: f"{row.std:.4f}"),
    "baseline": ("baseline", lambda row: f"{row.baseline}"),
    "step": ("difference from baseline", lambda row: f"{row.step:+.4f}{' *' if row.significant else ''}"),
    "step_low": ("95% interval of the difference", lambda row: f"{row.step_low:+.4f} to {row.step_high:+.4f}"),
    "step_p_value": ("p-value", lambda row: f"{row.step_p_value:.1g}"),
    "step_p_value_holm": ("p-value after Holm's correction", lambda row: f"{row.step_p_value_holm:.1g}"),
    "distorted_accuracy": ("accuracy on distorted images", lambda row: f"{row.distorted_accuracy:.4f}"),
    "ensemble_accuracy": ("accuracy of all seeds averaged", lambda row: f"{row.ensemble_accuracy:.4f}"),
    "published_accuracy": ("published accuracy", lambda row: f"{row.published_accuracy:.4f}"),
    "published_difference": ("difference from published", lambda row: f"{row.published_difference:+.4f}"),
    "std_units": ("in standard deviations", lambda row: f"{row.std_units:+.1f}"),
    "training_seconds": ("training time (s)", lambda row: f"{row.training_seconds:.0f}"),
    "note": ("note", lambda row: row.note),
}

NOTES = (
    "Accuracy: the mean over seeds, each with the epoch that its recipe keeps, without shifted copies of the images. "
    "The standard deviation is over seeds, too.",
    "Difference from baseline: the accuracy minus that of the recipe that this recipe changes. The p-value is that of "
    f"Welch's t-test over seeds on these rows; * marks a p-value below {SIGNIFICANCE_LEVEL} after Holm's correction "
    "over the differences in this table. The 95% interval is wider than the test: it covers new seeds and new rows.",
    "Training time: includes validation, with several networks trained in parallel. Compare these "
    "times only with each other. The features of frozen layers, which are computed once, are not included.",
)


def as_csv(rows: Sequence[Row]) -> bytes:
    """All columns with all digits, UTF-8."""
    table: bytes = pd.DataFrame(map(dataclasses.asdict, rows)).to_csv(index=False, lineterminator="\n").encode()
    return table


def as_texts(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The headings and the formatted cells, without columns that are empty in every row."""

    def is_empty(row: Row, name: str) -> bool:
        return getattr(row, name) in (None, "")

    names = [name for name in COLUMNS if not all(is_empty(row, name) for row in rows)]
    cells = [["" if is_empty(row, name) else COLUMNS[name][1](row) for name in names] for row in rows]
    return [COLUMNS[name][0] for name in names], cells


def as_markdown(rows: Sequence[Row]) -> str:
    """The formatted table in Markdown."""
    headings, cells = as_texts(rows)
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
    return "".join("| " + " | ".join(map(markdown.escape, line)) + " |\n" for line in lines)


def describe_published_steps(rows: Sequence[Row]) -> list[str]:
    """Sentences on the published steps: which are confirmed here, which are contradicted, and which are neither."""
    by_recipe = {row.recipe: row for row in rows}
    confirmed, contradicted, undecided = [], [], []
    for row in rows:
        baseline = by_recipe.get(row.baseline or "")
        # A figure on distorted images does not measure a step.
        if baseline is None or row.step is None or row.distorted_accuracy is not None:
            continue
        if row.published_accuracy is None or baseline.published_accuracy is None:
            continue
        published = row.published_accuracy - baseline.published_accuracy
        text, excludes_zero = f"{row.step:+.4f}", False
        if row.step_low is not None and row.step_high is not None:
            text += f", 95% interval {row.step_low:+.4f} to {row.step_high:+.4f}"
            excludes_zero = not row.step_low <= 0 <= row.step_high
        text = f"{row.recipe} (published: {published:+.4f} over {baseline.recipe}; here: {text})"
        # The published figures are for other rows: the interval, which covers new rows, must exclude 0 as well.
        if not (row.significant and excludes_zero):
            undecided.append(text)
        elif published * row.step >= 0:
            confirmed.append(row.recipe)
        else:
            contradicted.append(text)
    sentences = [f"Published steps confirmed here: {', '.join(confirmed)}."] if confirmed else []
    sentences += [f"Contradicted: {'; '.join(contradicted)}."] if contradicted else []
    return sentences + ([f"Neither confirmed nor contradicted: {'; '.join(undecided)}."] if undecided else [])
