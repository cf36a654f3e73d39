"""The page to draw digits on: one HTML file with the network, its JavaScript and nothing to fetch."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.metrics.calibration import UNSURE_BELOW

FOLDER = Path(__file__).parent / "demo"
SCRIPTS = ("prepare.js", "search.js", "network.js", "page.js")


def render(
    layers: Sequence[Mapping[str, Any]],
    weights: bytes,
    metadata: Mapping[str, Any],
    name: str,
    temperature: float | None,
) -> bytes:
    """The page.

    layers, weights: from `pipeline.extras.export.graph.to_page_network`.
    metadata: of the network. name: what the page calls it: "the network of the recipe quick".
    temperature: calibrates the probabilities; None if it was not measured.
    """
    model = {
        "layers": layers,
        "temperature": temperature or 1.0,
        "unsure_below": UNSURE_BELOW,
        "weights": base64.b64encode(weights).decode(),
    }
    rows = "all rows of the data" if metadata["fit_all"] else "the training rows of the data"
    calibrated = "calibrated on held-out rows" if temperature else "not calibrated, since no rows were held out"
    notes = (
        f"This page runs {name}, trained on {rows}, without shifted copies of the image and with weights of 16 bits. "
        f"The probabilities are {calibrated}; below {UNSURE_BELOW:.0%}, the page says that it is unsure. What you draw "
        "or open does not leave this page.",
        "The network learned from the handwritten digits of MNIST or similar data, and sees a digit in everything, "
        "also in a letter. Code: MIT license. MNIST: Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0.",
    )
    parts = {
        "style": _read("style.css"),
        "footer": "\n".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "model": json.dumps(model).replace("<", "\\u003c"),  # no "</script>" inside the script
        "script": "\n".join(_read(name) for name in SCRIPTS),
    }
    page = _read("page.html")
    for part, content in parts.items():
        page = page.replace("{{" + part + "}}", content)
    return page.encode()


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").rstrip()
