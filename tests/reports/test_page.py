"""page: HTML that needs no network and escapes what it shows."""

import re

from pipeline.reports import page


def test_text_is_escaped():
    bad = '<script>alert("x")</script>&'
    parts = [page.heading(bad), page.paragraph(bad), page.table([bad], [[bad]]), page.picture(b"x", bad)]
    html = page.render(bad, parts)
    assert b"<script" not in html and html.count(b"&lt;script&gt;") == 7


def test_a_picture_is_embedded_below_its_heading_and_caption():
    html = page.captioned_picture("tsne_axes.png", b"\x89PNG", "the caption", level=3)
    assert html.index("<h3>t-SNE axes</h3>") < html.index("<p>the caption</p>") < html.index("<img")
    assert 'src="data:image/png;base64,iVBORw=="' in html and 'alt="the caption"' in html
    assert "data:image/gif;" in page.picture(b"GIF89a", "animation")


def test_a_page_adapts_to_dark_mode_and_to_printing_and_loads_nothing():
    html = page.render("title", []).decode()
    assert "color-scheme: light dark" in html and "@media print" in html
    assert not re.search(r'(src|href)="(?!data:)', html) and "url(" not in html
