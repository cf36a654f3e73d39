"""A self-contained HTML page of text, tables and pictures, which needs no network and adapts to dark mode."""

import base64
import html
import urllib.parse
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
@media print { body { max-width: none; margin: 0; } img, table { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def render(title: str, parts: Iterable[str]) -> bytes:
    """The page as bytes; `parts` are the results of the functions below."""
    title = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    icon = '<link rel="icon" href="data:,">'  # otherwise, browsers request one
    body = "\n".join([f"<h1>{title}</h1>", *parts])
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}{icon}<style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    ).encode()


def heading(text: str, level: int = 2) -> str:
    """A heading of level 2 or 3."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text, with the first column aligned to the left."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def picture(content: bytes, description: str) -> str:
    """A PNG or GIF image."""
    data, kind = base64.b64encode(content).decode(), "gif" if content.startswith(b"GIF8") else "png"
    return f'<p><img src="data:image/{kind};base64,{data}" alt="{html.escape(description, quote=True)}"></p>'


def link(before: str, address: str, after: str) -> str:
    """A paragraph with a link to another file, given relative to the page."""
    name, target = html.escape(address.rpartition("/")[2]), html.escape(urllib.parse.quote(address), quote=True)
    return f'<p>{html.escape(before)}<a href="{target}">{name}</a>{html.escape(after)}</p>'


def captioned_picture(name: str, content: bytes, caption: str, level: int = 2) -> str:
    """A picture below its heading, which is made from its file name, and its caption."""
    return "\n".join([heading(make_heading(name), level), paragraph(caption), picture(content, caption)])


def make_heading(name: str) -> str:
    """A picture's heading, from its file name."""
    text = name.rpartition(".")[0].replace("_", " ").replace("tsne", "t-SNE").replace("pca", "PCA")
    return text if text.startswith("t-") else text[0].upper() + text[1:]
