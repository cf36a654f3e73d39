"""Pictures are the same whatever matplotlib's settings, its environment and its folders are."""

import ast
import os
import subprocess
import sys

import matplotlib
import pytest

from pipeline.reports import training_figures
from tests.interference import ROOT

DRAWS = True

HISTORY = [
    {"epoch": n, "train_loss": 1 / n, "validation_loss": 2 / n, "validation_accuracy": 1 - 0.1 / n} for n in (1, 2)
]
# Different parts of matplotlib: a log scale with a formatter, legends, mathematical text, a constrained layout.
DRAW = f"""
import hashlib, sys
import numpy as np
from pipeline.reports import training_figures
pictures = [
    training_figures.curves([{HISTORY}], "best"),
    training_figures.confusion(np.eye(10, dtype=np.int64)),
    training_figures.samples(np.zeros((10, 28, 28), np.uint8), np.arange(10, dtype=np.uint8)),
]
print(*(hashlib.sha256(picture).hexdigest() for picture in pictures))
"""
HOSTILE = """
backend: module://missing
text.usetex: True
font.family: fantasy
axes.facecolor: black
savefig.bbox: tight
savefig.dpi: 37
figure.autolayout: True
image.interpolation: bilinear
lines.linewidth: 9
no line of settings
axes.grid: perhaps
"""


def draw(code=DRAW, **environment):
    """Run a program in a process with changed environment variables (None: missing); returns what it printed."""
    variables = {name: value for name, value in (os.environ | environment).items() if value is not None}
    command = [sys.executable, "-W", "default", "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def plain():
    return draw()


UNSET = dict.fromkeys(["MATPLOTLIBRC", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"])
# As in a container whose user has no entry in /etc/passwd.
NO_ACCOUNT = "import pwd\ndef missing(number): raise KeyError(number)\npwd.getpwuid = missing\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"MATPLOTLIBRC": "settings", "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"HOME": "home", "MPLBACKEND": "nothing"},
        {"HOME": None, "MPLBACKEND": "module://missing"},
        {"MPLCONFIGDIR": os.devnull, "MPLBACKEND": "svg"},
    ],
    ids=str,
)
def test_no_environment_changes_a_picture(changes, plain, tmp_path):
    for folder in ("settings", "home/.config/matplotlib", "home/.matplotlib"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "matplotlibrc").write_text(HOSTILE)
    values = {
        name: str(tmp_path / value) if name in ("HOME", "MATPLOTLIBRC") and value else value
        for name, value in changes.items()
    }
    code = DRAW if changes.get("HOME", "") is not None else NO_ACCOUNT + DRAW
    assert draw(code, **UNSET | values) == plain


def test_settings_that_cannot_be_decoded_are_named(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"# caf\xe9\n")
    code = """
from pipeline.errors import UserError
try:
    import pipeline.reports.style
except UserError as error:
    print(error)
"""
    assert "a file matplotlibrc is not UTF-8" in draw(code, MATPLOTLIBRC=str(tmp_path))


def test_the_parameters_of_the_calling_process_stay():
    """Also those of a user who imports matplotlib after this module, and with an exception while drawing."""
    changes = {"text.usetex": True, "lines.linewidth": 9.0, "font.size": 30.0, "savefig.dpi": 37.0}
    plain = training_figures.curves([HISTORY], "best")
    with matplotlib.rc_context(changes):
        before = dict(dict.items(matplotlib.rcParams))
        assert training_figures.curves([HISTORY], "best") == plain
        with pytest.raises(IndexError):
            training_figures.curves([], "best")
        assert dict(dict.items(matplotlib.rcParams)) == before
    code = (
        "from pipeline.reports import style; import matplotlib, os; print(matplotlib.rcParams['backend'], *os.environ)"
    )
    output = draw(code, MPLBACKEND="svg").split()
    assert output[0] == "svg" and "MPLBACKEND" in output
    selected = (
        "import matplotlib; matplotlib.use('pdf'); from pipeline.reports import style; print(matplotlib.get_backend())"
    )
    assert draw(selected, MPLBACKEND="svg").strip() == "pdf"


def test_every_picture_is_drawn_with_the_default_parameters():
    """Each function that makes a picture has the decorator, and only `style` imports matplotlib."""
    n_functions = 0
    for path in (ROOT / "pipeline").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for_types = {id(part) for node in ast.walk(tree) if isinstance(node, ast.If) for part in node.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and "matplotlib" in ast.unparse(node):
                assert path.name == "style.py" or id(node) in for_types, path
            if isinstance(node, ast.FunctionDef) and path.name != "style.py":
                called = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
                if called & {"style.to_png", "style.to_pixels"}:
                    assert "style.default_parameters()" in map(ast.unparse, node.decorator_list), (path, node.name)
                    n_functions += 1
    assert n_functions > 30
