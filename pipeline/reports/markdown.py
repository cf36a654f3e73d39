"""Texts of users, such as a recipe's description, within Markdown."""

import re

from pipeline.errors import printable

# What can begin HTML, an entity, a link, a picture, code, a formula, emphasis or a table's cell. An asterisk between
# spaces and an underscore within a word, as in the names of recipes, are none of these.
_SPECIAL = re.compile(r"[\\`\[\]<>&|~$]|\*(?=\S)|(?<=\S)\*|(?<![^\W_])_|_(?![^\W_])")


def escape(text: str) -> str:
    """Return Markdown that shows a text as it is within a line, but not at its start, or in a table's cell.

    Line breaks become spaces, and other control characters are shown as in "\\x1b".
    """
    return _SPECIAL.sub(r"\\\g<0>", printable(" ".join(text.split())))
