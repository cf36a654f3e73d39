"""The table of the extras: each is a folder that can be deleted with its tests and its line here."""

import importlib

from pipeline.workflow.stage import Command, Stage

NAMES = (
    "blend",
    "explore",
    "inspect",
    "recognize",
    "export",
    "generate",
    "notebook",
    "compare",
)
EXTRAS: dict[str, Stage | Command] = {
    name: importlib.import_module(f"pipeline.extras.{name}.entry").ENTRY for name in NAMES
}
