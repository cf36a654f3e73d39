"""Hashes of the source code that determines a result, so that results of edited code count as stale."""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent

# Not part of the hash: what Python versions represent differently, and type annotations of functions.
_SKIPPED_FIELDS = {"annotation", "ctx", "kind", "returns", "type_comment", "type_ignores", "type_params"}


def module_hashes(modules: Iterable[str]) -> dict[str, str]:
    """Hashes by file for modules of this package ("nn.training_loop"), in order."""
    files = {f"pipeline/{module.replace('.', '/')}.py" for module in modules}
    return {file: _file_hash(PACKAGE.parent / file) for file in sorted(files)}


@functools.cache
def _file_hash(path: Path) -> str:
    return syntax_hash(path.read_text(encoding="utf-8"))


def syntax_hash(source: str) -> str:
    """16 hexadecimal digits that depend on the syntax tree only: not on formatting, comments, docstrings and types.

    The same on Python 3.11 to 3.13.
    """
    return hashlib.sha256(repr(_simplified(ast.parse(source))).encode()).hexdigest()[:16]


def _simplified(node: Any) -> Any:
    """A syntax tree as nested tuples, without positions, empty fields, docstrings and the fields to skip."""
    if isinstance(node, list):
        return tuple(_simplified(item) for item in node)
    if not isinstance(node, ast.AST):
        return node
    body = getattr(node, "body", None)
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
        body = node.body[1:]
    fields = []
    for name, value in ast.iter_fields(node):
        value = body if name == "body" else value
        if isinstance(node, ast.JoinedStr):  # Python 3.12 adds an empty text to some format specifications
            value = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
        # A field of a dataclass is kept: its annotation is code.
        if value not in (None, []) and (name not in _SKIPPED_FIELDS or isinstance(node, ast.AnnAssign)):
            fields.append((name, _simplified(value)))
    return (type(node).__name__, *fields)
