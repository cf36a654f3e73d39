"""MODEL_CARD.md: what an exported network is, what it was measured with, and what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.recipes.settings import Recipe
from pipeline.reports import markdown


def render(
    recipe: Recipe,
    networks: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    pretrained: Mapping[str, Any] | None,
    facts: Mapping[str, str],
) -> bytes:
    """The card as Markdown.

    networks: the metadata of each network. evaluation: the content of metrics.json.
    pretrained: of the pretrained network with the same settings, which is used if `evaluation` has no rows.
    facts: further rows of the first table, by title.
    """
    held_out = evaluation if evaluation["rows"] else (pretrained or {}).get("held_out")
    lines = [
        f"# Model card: {recipe.name}",
        "",
        "| | |",
        "|---|---|",
        *([f"| recipe | {markdown.escape(recipe.about)} |"] if recipe.about else []),
        *(f"| {title} | {text} |" for title, text in {**_facts(networks), **facts}.items()),
        "",
        "## Accuracy",
        "",
        *_accuracy(recipe, evaluation, held_out),
        "",
        *(_classes(held_out) if held_out else ()),
        "## Known failures",
        "",
        *_failures(evaluation),
        "",
        "## Use and limits",
        "",
        "For single handwritten digits in MNIST's form: 28x28 gray levels, white on black, scaled to a box of 20x20 "
        "pixels and centred by the centre of mass (`--stage recognize` and `demo.html` prepare other images). The "
        "digits of MNIST were written in the United States, by employees of the Census Bureau and by students, before "
        "1995: digits of other writers, printed digits, and digits that touch each other or a line are recognized less "
        "reliably. The network has no class for non-digits: it assigns a digit to any image, sometimes with a "
        "high probability. Do not use it where errors can harm people.",
        "",
        "## License",
        "",
        "MIT for the code. The digits of MNIST (Y. LeCun, C. Cortes, C. Burges): CC BY-SA 3.0. Data of your own keep "
        "their own license.",
        "",
    ]
    return "\n".join(lines).encode()


def _facts(networks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    models = ", ".join(dict.fromkeys(network["model"]["name"] for network in networks))
    count = "one network" if len(networks) == 1 else f"the mean of {len(networks)} networks"
    if all(network["fit_all"] for network in networks):
        rows = "all rows of train.csv"
    elif all(network["fold"] is not None for network in networks):
        rows = "all rows of train.csv; the networks of each fold hold out the rows of that fold"
    else:
        rows = "the rows of train.csv that were not held out"
    return {
        "network": f"{count} ({models})",
        "trained on": rows,
        "precision of the training": ", ".join(dict.fromkeys(network["precision"] for network in networks)),
    }


def _accuracy(recipe: Recipe, evaluation: Mapping[str, Any], held_out: Mapping[str, Any] | None) -> list[str]:
    measured = recipe.measured
    if held_out is None:
        return [f"Not measured: {evaluation['why_none']}."]
    low, high = held_out["interval_95"]
    text = (
        f"{held_out['accuracy']:.4f} (95% interval {low:.4f} to {high:.4f}): {held_out['n_correct']:,} of "
        f"{held_out['rows']:,} rows that were held out."
    )
    if held_out is not evaluation:
        text += (
            " This was measured by a training with the same settings that held out these rows; the exported network "
            "was trained on all rows."
        )
    elif evaluation["chosen_on_these_rows"]:
        text += " Slightly optimistic: the epoch was chosen on these rows."
    if evaluation.get("measured") or (held_out is not evaluation and measured.seeds):
        text += (
            f" The recipe's measured accuracy is {measured.accuracy:.4f} (standard deviation {measured.std:.4f}, "
            f"{measured.seeds} {'seed' if measured.seeds == 1 else 'seeds'}, {measured.date})."
        )
    return [text]


def _classes(held_out: Mapping[str, Any]) -> list[str]:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    return [
        "| digit | rows | precision | recall |",
        "|---|---|---|---|",
        *(
            f"| {row['digit']} | {row['rows']:,} | {share(row['precision'])} | {share(row['recall'])} |"
            for row in held_out["classes"]
        ),
        "",
    ]


def _failures(evaluation: Mapping[str, Any]) -> list[str]:
    if not evaluation["rows"]:
        return [
            f"There is no picture of failures: {evaluation['why_none']}. A training with `--set train.fit_all=false` "
            "holds rows out."
        ]
    n_errors = evaluation["rows"] - evaluation["n_correct"]
    return [
        f"{n_errors:,} of the {evaluation['rows']:,} held-out rows, the most confident first, and which digits are "
        "mistaken for which:",
        "",
        "![The most confident errors on held-out rows](errors.png)",
        "",
        "![The confusion matrix](confusion.png)",
    ]
