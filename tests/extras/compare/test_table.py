"""The table of a comparison: its formats, and the sentences on published steps."""

import io
import re

import pandas as pd

from pipeline.extras.compare import page
from pipeline.extras.compare.statistics import Row
from pipeline.extras.compare.table import as_csv, as_markdown, as_texts, describe_published_steps
from tests.reports.test_markdown import HOSTILE, require_harmless

STEPS = [
    Row("a", step=0.01, step_low=0.005, step_high=0.015, step_p_value=0.001, step_p_value_holm=0.002),
    Row("b", step=0.001, step_low=-0.001, step_high=0.003, step_p_value=0.03, step_p_value_holm=0.06),
]


def test_significant_steps_are_marked():
    text = as_markdown(STEPS)
    assert "| +0.0100 * | +0.0050 to +0.0150 | 0.001 | 0.002 |" in text
    assert "| +0.0010 | -0.0010 to +0.0030 | 0.03 | 0.06 |" in text


def test_markdown_escapes_vertical_bars_and_omits_empty_columns():
    lines = as_markdown([Row("a|b", note="x | y"), Row("c", accuracy=0.5)]).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [5] * 4
    assert lines[0] == "| recipe | seeds | accuracy | note |"


def test_texts_of_recipes_are_only_text():
    row = Row("mine", baseline=HOSTILE, note=HOSTILE)
    _, table, html = page.render(HOSTILE, [f"Published: {HOSTILE}."], [row], {}, {})
    require_harmless(table)
    assert b"<script" not in html and b"&lt;script" in html


def test_csv_has_all_columns_and_digits():
    table = pd.read_csv(io.BytesIO(as_csv([Row("a", accuracy=1 / 3), Row("b", note="failed")])))
    assert list(table.columns) == list(vars(Row("a")))
    assert table.accuracy[0] == 1 / 3 and table.note.tolist()[1] == "failed"


def test_every_column_has_a_heading_and_a_format():
    values = {"parameters": 1234, "epochs": 3, "seeds": 5, "baseline": "b", "note": "n"}
    values = {name: 0.5 for name in vars(Row("a")) if name != "recipe"} | values
    headings, (cells,) = as_texts([Row("a", **values)])
    assert len(headings) == len(set(headings)) == len(cells) == len(vars(Row("a"))) - 1  # one cell for the interval
    assert "1,234" in cells and "+0.5000 to +0.5000" in cells


def test_published_steps_are_confirmed_contradicted_or_undecided():
    def row(name, published, step=None, interval=(None, None), p_value=None, **more):
        low, high = interval
        return Row(
            name,
            published_accuracy=published,
            step=step,
            step_low=low,
            step_high=high,
            step_p_value_holm=p_value,
            **more,
        )

    rows = [
        row("one", 0.97),
        row("two", 0.98, 0.002, (0.001, 0.003), 0.01, baseline="one"),
        row("three", 0.99, -0.002, (-0.003, -0.001), 0.04, baseline="two"),
        row("four", 0.98, -0.001, (-0.003, 0.001), 0.2, baseline="three"),
        row("five", 0.5, -0.001, p_value=0.2, baseline="four", distorted_accuracy=0.5),
    ]
    assert describe_published_steps(rows) == [
        "Published steps confirmed here: two.",
        "Contradicted: three (published: +0.0100 over two; here: -0.0020, 95% interval -0.0030 to -0.0010).",
        "Neither confirmed nor contradicted: four (published: -0.0100 over three; here: -0.0010, 95% interval -0.0030 "
        "to +0.0010).",
    ]
    rows[1].step_low = -0.001  # significant on these rows, but perhaps not on others
    assert describe_published_steps(rows[:2])[0].startswith("Neither confirmed nor contradicted: two")
    assert describe_published_steps(rows[:1]) == []
