"""The folders of a Kaggle Notebook: its inputs, which are read-only, and its outputs."""

import os
from pathlib import Path

# Environment variables that replace the folders, for tests on other machines.
INPUT_VARIABLE, WORKING_VARIABLE = "DIGIT_RECOGNIZER_KAGGLE_INPUT", "DIGIT_RECOGNIZER_KAGGLE_WORKING"


def input_root() -> Path | None:
    """The folder of attached competitions and data sets; None on other machines."""
    return _existing_folder(os.environ.get(INPUT_VARIABLE) or "/kaggle/input")


def working_root() -> Path | None:
    """The folder whose content Kaggle keeps when a session ends; None on other machines."""
    return _existing_folder(os.environ.get(WORKING_VARIABLE) or "/kaggle/working")


def _existing_folder(path: str) -> Path | None:
    return Path(path) if os.path.isdir(path) else None
