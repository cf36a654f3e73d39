"""One self-contained HTML page: text, tables and pictures, for any browser, without a network."""

import base64
import html

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


def page(title, parts):
    """The bytes of a page, of the HTML that `heading`, `text`, `table` and `picture` give."""
    shown = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{shown}</title>'
    body = "\n".join([f"<h1>{shown}</h1>", *parts])
    icon = '<link rel="icon" href="data:,">'  # or a browser asks for one
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}{icon}<style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    ).encode()


def heading(words):
    return f"<h2>{html.escape(words)}</h2>"


def subheading(words):
    return f"<h3>{html.escape(words)}</h3>"


def text(words):
    return f"<p>{html.escape(words)}</p>"


def table(headings, lines):
    """Lists of texts; the first column is to the left."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    rows = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def picture(content, words):
    """The bytes of a PNG or a GIF, and what is seen in it."""
    data, kind = base64.b64encode(content).decode(), "gif" if content.startswith(b"GIF8") else "png"
    return f'<p><img src="data:image/{kind};base64,{data}" alt="{html.escape(words, quote=True)}"></p>'
