"""Errors that are explained to the user in one line, without a traceback, and how a line is shown."""

import errno
import os
import sys
import unicodedata
from pathlib import Path
from typing import TextIO

# The modules of the packages in requirements.txt.
REQUIRED = {
    *("PIL", "filelock", "joblib", "kaggle", "matplotlib", "mlxtend", "numpy", "openTSNE", "pandas", "pydantic"),
    *("safetensors", "scipy", "six", "sklearn", "torch", "tqdm"),
}


class PipelineError(Exception):
    """A failure whose message says what is wrong and what to do; the command line exits with `exit_code`."""

    exit_code = 1


class UserError(PipelineError, ValueError):
    """A mistake in the command line, the settings or the data, which the user can correct."""

    exit_code = 2


class StageError(UserError):
    """A stage cannot run in the current state; the message says what to do."""


def explain(error: Exception) -> Exception:
    """A UserError if a required package is not installed or a path is too long, otherwise the same error."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UserError(one_line(error))
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module not in REQUIRED:
        return error
    return UserError(
        f"{sys.executable} lacks the package {module}: run `python3 -m venv .venv && .venv/bin/pip install -r "
        "requirements.txt`, then use .venv/bin/python"
    )


# Unicode categories of what can disturb a terminal or the lines on it: control and format characters (among these, the
# bidirectional overrides), bytes of file names that are not UTF-8, and separators of lines and paragraphs.
_DISTURBING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str) -> str:
    """The text with line breaks and other characters that can disturb a terminal escaped, as in "\\x1b"."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _DISTURBING else character
        for character in text
    )


def display_path(path: Path) -> str:
    """A path as the user would type it in the current folder."""
    try:
        shown = str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
    return os.path.join(".", shown) if shown.startswith("-") else shown  # not an option of a command


def show(line: str, stream: TextIO | None = None) -> None:
    """Print one line, in which texts from outside may occur, such as file names; what an encoding lacks is escaped.

    Every line that the pipeline shows is printed here. stream: by default, sys.stdout.
    """
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def show_error(line: str) -> None:
    """Print one line to stderr, if somebody reads it and its disk is not full."""
    try:
        show(line, sys.stderr)
    except OSError:
        sys.stderr = null_stream()  # another failure, when Python ends, would change the exit code


def null_stream() -> TextIO:
    """A stream that is empty and discards what is written."""
    return os.fdopen(os.open(os.devnull, os.O_RDWR), "r+")


def one_line(error: Exception) -> str:
    """The message of an error, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, PipelineError):
        return str(error)
    message = " ".join(str(error).split())
    explained = isinstance(error, ValueError) and message
    return message if explained else f"{type(error).__name__}: {message}"
