"""The table of a comparison in two formats, and its page with pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.extras.compare import figures, table
from pipeline.extras.compare.statistics import Row
from pipeline.reports import markdown, page
from pipeline.shapes import Float


def render(
    title: str,
    about: Sequence[str],
    rows: Sequence[Row],
    curves: Mapping[str, Float[np.ndarray, "seeds epochs"]],
    costs: Mapping[str, Row],
) -> tuple[bytes, bytes, bytes]:
    """The table of a comparison as CSV and as Markdown, and its page.

    about: sentences above the table.
    curves, costs: accuracies of each epoch, and the row, by recipe; only of recipes that were measured.
    """
    about = [*about, *table.describe_published_steps(rows)]
    text = "\n\n".join([*map(markdown.escape, about), table.as_markdown(rows).rstrip(), *table.NOTES])
    parts = [page.paragraph(sentence) for sentence in about]
    parts += [page.table(*table.as_texts(rows)), *map(page.paragraph, table.NOTES)]
    for group in dict.fromkeys(name.rpartition("/")[0] for name in curves):
        in_group = {name: values for name, values in curves.items() if name.rpartition("/")[0] == group}
        parts.append(page.heading(f"Error by epoch{f': {group}' if group else ''}"))
        parts.append(page.picture(figures.error_bands(in_group), "error of each recipe by epoch"))
    if costs:
        parts.append(page.heading("Cost"))
        parts.append(page.picture(figures.costs(costs), "error by training time and by number of parameters"))
    return table.as_csv(rows), f"{text}\n".encode(), page.render(f"Comparison: {title}", parts)
