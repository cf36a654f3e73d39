"""Hashes of the code that a result depends on, which is derived from imports: results of edited code are stale."""

import ast
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pipeline import ROOT

# Packages and modules that no result depends on: settings are compared by value, and the modules of `training` only
# move data. If the recorder changes, networks with a record are trained again.
EXCLUDED = frozenset(
    f"pipeline.{name}"
    for name in (
        *("cli", "workflow", "recipes", "reports", "machine", "errors", "shapes", "nn.recorder"),
        *("kaggle.client", "kaggle.machine", "kaggle.process"),
        *("training.ensure", "training.footprint", "training.imagenet", "training.pool", "training.task"),
    )
)

# Not part of the hash: what Python versions represent differently, and type annotations of functions.
_SKIPPED_FIELDS = {"annotation", "ctx", "kind", "returns", "type_comment", "type_ignores", "type_params"}


class Module(NamedTuple):
    """A module of the pipeline."""

    file: str  # below the checkout
    raw: str  # hash of the file's content
    own: str  # hash of its syntax tree without the imports from the pipeline
    imports: frozenset[tuple[str, str]]  # of the pipeline: (module, imported name with alias)


def digest(roots: Iterable[str]) -> str:
    """A hash of the modules `roots` ("pipeline.nn.trainer") and of all that they import, directly or not.

    It depends neither on comments, docstrings, annotations and formatting, nor on the names of modules.
    """
    return _hash(sorted(_digest(root) for root in {*roots}))


def modules(roots: Iterable[str]) -> dict[str, list[str]]:
    """The files that `digest` depends on, each with the hashes of its content and of its own syntax tree."""
    return dict(sorted((module.file, [module.raw, module.own]) for module in _closure(roots)))


def find_change(recorded: Mapping[str, Any], roots: Iterable[str]) -> str:
    """How the code of a manifest differs from the present code, in words; "" if it does not.

    recorded: with `digest` as "code" and `modules` as "modules".
    """
    roots, before = [*roots], recorded.get("modules", {})
    if all(_file(root) in before for root in roots) and all(_raw(file) == hashes[0] for file, hashes in before.items()):
        return ""  # nothing was parsed
    if recorded.get("code") == digest(roots):
        return ""
    now = modules(roots)
    for file in sorted(before.keys() | now.keys()):
        if file not in before:
            return f"{file} is new"
        if file not in now:
            return f"{file} is no longer used"
        if before[file][1] != now[file][1]:
            return f"{file} changed"
    return "the code changed"


@functools.cache
def _digest(name: str) -> str:
    module = _module(name)
    imports = sorted((target, "" if _is_excluded(source) else _digest(source)) for source, target in module.imports)
    return _hash([module.own, imports])


def _closure(roots: Iterable[str]) -> Iterator[Module]:
    remaining, seen = [*roots], set()
    while remaining:
        name = remaining.pop()
        if name not in seen:
            seen.add(name)
            module = _module(name)
            yield module
            remaining += [source for source, _ in module.imports if not _is_excluded(source)]


def _is_excluded(name: str) -> bool:
    packages = itertools.accumulate(name.split("."), "{}.{}".format)  # "pipeline", "pipeline.nn", ...
    return name == "pipeline" or not EXCLUDED.isdisjoint(packages)


def _file(name: str) -> str:
    """The file of a module, below the checkout."""
    path = name.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path / "__init__.py").is_file() else f"{path}.py"


def _read(file: str) -> bytes:
    try:
        return (ROOT / file).read_bytes()
    except OSError:
        return b""


@functools.cache
def _raw(file: str) -> str:
    return hashlib.sha256(_read(file)).hexdigest()[:16]


@functools.cache
def _module(name: str) -> Module:
    file = _file(name)
    return Module(file, _raw(file), *_parse(_read(file)))


@functools.cache
def _parse(source: bytes) -> tuple[str, frozenset[tuple[str, str]]]:
    tree = ast.parse(source)
    return _hash(_simplified(tree)), frozenset(_imports(tree))


def _imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The imports from the pipeline, except those for the type checker."""
    for child in ast.iter_child_nodes(node):
        if not _is_for_types(child):
            yield from _imports(child)
    if isinstance(node, ast.ImportFrom) and _is_ours(node):
        for alias in node.names:
            module = f"{node.module}.{alias.name}"
            source = module if (ROOT / _file(module)).is_file() else str(node.module)
            yield source, f"{alias.name} as {alias.asname or alias.name}"


def _is_ours(node: ast.ImportFrom) -> bool:
    return node.module == "pipeline" or str(node.module).startswith("pipeline.")


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def syntax_hash(source: str) -> str:
    """16 hexadecimal digits that depend on the syntax tree only: not on formatting, comments, docstrings and types.

    The same on Python 3.11 to 3.13.
    """
    return _hash(_simplified(ast.parse(source)))


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _simplified(node: Any) -> Any:
    """A syntax tree as nested tuples, without positions, empty fields, docstrings and the fields to skip."""
    if isinstance(node, list):
        kept = [item for item in node if not _is_for_types(item)]
        return tuple(_simplified(item) for item in kept if not (isinstance(item, ast.ImportFrom) and _is_ours(item)))
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
