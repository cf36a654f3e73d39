"""markdown: whatever a text contains, its reader sees the text and nothing else."""

import html
import re

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.errors import printable
from pipeline.reports import markdown

RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
FRAGMENTS = (
    *("\\", "`", "*", "_", "[", "]", "(", ")", "<", ">", "&", "#", "|", "~", "!", "-", "1.", "=", " ", "\n", "a", "é"),
    *("<script>alert(1)</script>", "![x](http://e/x.png)", "&lt;", "# ", "---", "```", "[a]: b", "<!--", "http://a.b"),
    *("**", "__", "~~", "\t", "\r\n\r\n", "\x1b[31m", "\u2028", "\u202e", "\0"),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=8).map("".join)


@given(TEXTS)
@example("<script>alert(1)</script>")
@example("![](http://example.com/x.png)")
@example("a\n\n# Heading\n\n| a |\n|---|")
@example("recipe_of_mine, *, a * b, **bold**, ~~x~~, _x_")
def test_a_text_is_shown_as_it_is(text):
    shown = html.escape(printable(" ".join(text.split())), quote=False)
    escaped = markdown.escape(text)
    rendered = RENDERER.render(f"About: {escaped}.").replace("&quot;", '"')
    assert rendered == f"<p>About: {shown}.</p>\n"
    rendered = RENDERER.render(f"| a | b |\n|---|---|\n| {escaped} | {escaped} |\n").replace("&quot;", '"')
    assert re.findall(r"<td>(.*?)</td>", rendered, re.DOTALL) == [shown, shown]


HOSTILE = "a\n\n# Forged\n<script>alert(1)</script> ![x](http://e/x.png) | **b** \x1b[2J"


def require_harmless(content):
    """Raise AssertionError if HOSTILE, in the Markdown of a result, is more than text."""
    rendered = RENDERER.render(content.decode())
    assert "Forged" in rendered and rendered.count("<h1>") <= 1 and "**b**" in rendered
    assert not re.search("<(script|img|a|strong)[ >]|<h1>Forged|\x1b", rendered)


def test_names_and_numbers_are_easy_to_read():
    for text in ("ladder/lenet_normalized", "+0.0100 *", "0.9931 (+0.01, -0.02)", "A CNN; see https://example.com/a-b"):
        assert markdown.escape(text) == text
