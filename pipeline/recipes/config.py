"""Recipe loading (the defaults, then a recipe file, then `--set`), and comparison of settings with recorded ones."""

import contextlib
import difflib
import functools
import hashlib
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline import ROOT
from pipeline.errors import UserError
from pipeline.recipes.rules import find_contradictions
from pipeline.recipes.settings import LAYER, SECTIONS, TITLE, Measured, Recipe, RecipeTable, Section

RECIPES = ROOT / "pipeline/recipes"
MEASURED = RECIPES / "measured.toml"
MAX_RECIPE_BYTES = 1 << 20
MAX_NAME = 240  # characters of a name that becomes a folder; file systems allow 255 bytes, also for "NAME.previous"
MAX_VALUE_CHARACTERS = 80  # of a name or a value in an error message
MAX_CHANGE_CHARACTERS = 40  # of a value in `changed_settings`

# Settings that no result depends on: changing one makes nothing stale.
# A network records the content of `model.weights_file` by its SHA-256.
OBSERVATIONAL = frozenset({"train.record", "ensemble.networks_per_gpu", "model.weights_file"})

# Sections that the accuracy on other rows depends on, and the settings in them that it does not depend on.
ACCURACY_SETTINGS = ("augment", "affine", "model", "ensemble", "train", "predict")
_NOT_ACCURACY_SETTINGS = ("train.seed", "train.fit_all", "train.deterministic", "ensemble.threads")

# What a setting must be, by the type of the pydantic error.
_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "tuple_type": "a list",
    "too_short": "a list that is not empty",
    "missing": "lists of 2 numbers",
    "too_long": "lists of 2 numbers",
    "model_type": "a section",
    "literal_error": "one of {expected}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}

_EXPECTED_BY_PATTERN = {
    LAYER: 'a layer such as "conv 32 3x3", "dense 100" or "relu" (see docs/recipes.md)',
    TITLE: "ASCII letters and digits, separated by single spaces or dashes",
}


class ConfigError(UserError):
    """A mistake in a recipe file or in `--set`; the message is one line."""


@functools.cache
def recipe_names() -> tuple[str, ...]:
    """Return the names of the built-in recipes in order: their paths below `recipes/` without `.toml`."""
    paths = (path.relative_to(RECIPES) for path in RECIPES.rglob("*.toml") if path != MEASURED)
    return tuple(sorted(path.with_suffix("").as_posix() for path in paths))


def recipes_in(folder: str) -> list[str]:
    """Return the names of the built-in recipes in a folder by their `order`; [] if the folder does not exist."""
    names = [name for name in recipe_names() if name.startswith(f"{folder}/")]
    return sorted(names, key=lambda name: load_recipe(name).order)


def expand_home(name: str) -> str:
    """Return a file name with `~` or `~user` at its start replaced, as by a shell, unless a file has this very name."""
    return name if os.path.lexists(name) else os.path.expanduser(name)


def load_recipe(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """Load a built-in recipe, or the file `name` if it ends in .toml, and apply `section.field=value` assignments.

    Raises ConfigError, which lists all mistakes.
    """
    path, file = RECIPES / f"{name}.toml", ""
    if name.endswith(".toml"):
        path, name, file = Path(name), Path(name).stem, str(Path(name).absolute())
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or len(name) > MAX_NAME:
            raise ConfigError(
                f"{path}: the name of a recipe consists of at most {MAX_NAME} letters, digits, - and _: rename the file"
            )
        if name in recipe_names() or recipes_in(name):
            raise ConfigError(f"{path}: {name} is a built-in recipe or a folder of built-in recipes: rename the file")
    elif name not in recipe_names():
        raise ConfigError(
            f"unknown recipe {_shorten(repr(name), MAX_VALUE_CHARACTERS)}{nearest(name, recipe_names())}; see `--list`"
        )

    table = _read_toml(path)
    mistakes = [f"{path.name}: {mistake}" for mistake in _remove_mistakes(table)]
    for assignment in assignments:
        changes = _parse_assignment(assignment)
        if not changes:
            name = assignment.partition("=")[0].strip()
            fields = [(section, field) for section, kind in SECTIONS.items() for field in kind.model_fields]
            nearest_fields = difflib.get_close_matches(name, {field for _, field in fields}, n=1)
            similar = [f"{section}.{field}" for section, field in fields if field in nearest_fields][:3]
            hint = f" (nearest: {', '.join(similar)})" if similar else ""
            mistakes.append(f"--set {_shorten(assignment, MAX_VALUE_CHARACTERS)}: expected section.field=value{hint}")
        mistakes += [f"--set: {mistake}" for mistake in _remove_mistakes(changes)]
        for section, values in changes.items():
            table.setdefault(section, {}).update(values)
    measured = {} if file else read_measured()
    recipe = Recipe(name=name, file=file, measured=measured.get(name, Measured()), **table)
    source = f"{path.name} with --set" if assignments else path.name
    mistakes += [f"{source}: {contradiction}" for contradiction in find_contradictions(recipe)]
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return recipe


@functools.cache
def read_measured() -> dict[str, Measured]:
    """Return the measured accuracies of the built-in recipes."""
    return {name: Measured(**values) for name, values in _read_toml(MEASURED).items()}


def _read_toml(path: Path) -> dict[str, Any]:
    if os.path.exists(path) and not os.path.isfile(path):  # opening a named pipe would block
        raise ConfigError(f"{path}: not a file")
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_RECIPE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: the file does not exist") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(content) > MAX_RECIPE_BYTES:
        raise ConfigError(f"{path}: not a recipe: larger than {MAX_RECIPE_BYTES:,} bytes")
    try:
        return _parse_toml(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def _parse_toml(text: str) -> dict[str, Any]:
    """Return the table. Raises ValueError or RecursionError."""
    try:
        table = tomllib.loads(text)
        repr(table)  # raises ValueError for a long hexadecimal integer, which could not be shown
        return table
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        raise ValueError(f"an integer has more than {sys.get_int_max_str_digits():,} digits") from None


def _parse_assignment(assignment: str) -> dict[str, dict[str, Any]]:
    """Return {section: {field: value}}; {} if the assignment has another form."""
    name, equals, text = assignment.partition("=")
    section, dot, field = name.strip().partition(".")
    if not equals or not dot:
        return {}
    value: Any = text.strip()
    with contextlib.suppress(ValueError, RecursionError):  # a bare word: `train.schedule=cosine`
        table = _parse_toml(f"value = {value}")
        value = table["value"] if len(table) == 1 else value
    kind = SECTIONS.get(section, Section).model_fields.get(field)
    if kind and kind.annotation is str and not isinstance(value, str):
        value = text  # a message that consists of digits
    return {section: {field: value}}


def _remove_mistakes(table: dict[str, Any]) -> list[str]:
    """Remove the settings that the schema rejects from `table`; returns a message for each."""
    try:
        RecipeTable.model_validate(table)
        return []
    except ValidationError as error:
        first_errors: dict[tuple[str, ...], ErrorDetails] = {}
        for details in error.errors(include_url=False, include_input=False):  # of a list, one for each wrong item
            first_errors.setdefault(tuple(str(part) for part in details["loc"][:2]), details)
    messages = []
    for (section, *field), details in first_errors.items():
        value = table[section].pop(field[0]) if field else table.pop(section)
        messages.append(_describe(details, ".".join([section, *field]), value))
    return messages


def _describe(details: ErrorDetails, name: str, value: Any) -> str:
    """Return the message for an error of pydantic in the setting `name`."""
    if details["type"] != "extra_forbidden":
        context = details.get("ctx", {}).items()
        limits = {key: f"{limit:g}" if isinstance(limit, float) else limit for key, limit in context}
        is_long = details["type"] == "too_long" and len(details["loc"]) == 2
        expected = "a list of at most {max_length} items" if is_long else _EXPECTED.get(details["type"], details["msg"])
        expected = _EXPECTED_BY_PATTERN.get(str(limits.get("pattern"))) or expected
        expected = expected.format(**limits)
        return f"{name} is {_shorten(repr(value), MAX_VALUE_CHARACTERS)}, expected {expected}"
    if len(details["loc"]) == 1:
        return f"unknown section [{_shorten(name, MAX_VALUE_CHARACTERS)}]{nearest(name, RecipeTable.model_fields)}"
    section, _, field = name.partition(".")
    known = [f"{section}.{known}" for known in SECTIONS[section].model_fields]
    return f"unknown setting {section}.{_shorten(field, MAX_VALUE_CHARACTERS)}{nearest(name, known)}"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what to add to a message about an unknown name: the known one that is most similar, or all of them."""
    matches = difflib.get_close_matches(name[:MAX_VALUE_CHARACTERS], list(known), n=1)
    return f" (nearest: {matches[0]})" if matches else f" (known: {', '.join(known)})"


def flatten(recipe: object, names: Iterable[str]) -> dict[str, Any]:
    """Return resolved settings as {"section.field": value}, with values as they read back from JSON.

    recipe: a recipe, or another object that has the named sections as attributes.
    names: sections ("train") or single settings ("train.fit_all", "baseline"); those in OBSERVATIONAL are left out.
    """
    settings: dict[str, Any] = {}
    for name in names:
        section, dot, field = name.partition(".")
        value = getattr(recipe, section)
        if not isinstance(value, BaseModel):
            settings[name] = value
            continue
        values = value.model_dump(mode="json")
        settings |= {f"{section}.{key}": values[key] for key in ([field] if dot else values)}
    return {name: value for name, value in settings.items() if name not in OBSERVATIONAL}


DEFAULTS: dict[str, Any] = {
    f"{section}.{field}": value
    for section, kind in SECTIONS.items()
    for field, value in kind().model_dump(mode="json").items()
} | {"baseline": "", **{f"measured.{field}": value for field, value in Measured().model_dump(mode="json").items()}}


def changed_settings(recorded: Any, current: dict[str, Any]) -> list[str]:
    """Return the differences between two results of `flatten`, such as "train.epochs 12 -> 20", in order.

    recorded: as read from a file, which may be damaged. A setting that it lacks, because the setting is newer, counts
    as equal while its current value is the default.
    current: for several recipes, a dict of such results by the name of the recipe.
    """
    recorded = {str(name): value for name, value in recorded.items()} if isinstance(recorded, dict) else {}
    changes = []
    for name in sorted(recorded.keys() | current.keys()):
        before = recorded.get(name, DEFAULTS.get(name))
        if name not in current:
            changes.append(f"{_shorten(name, MAX_VALUE_CHARACTERS)} {_as_json(before)} -> (removed)")
        elif isinstance(current[name], dict) and name not in DEFAULTS:  # the settings of a recipe
            changes += [f"{name}: {change}" for change in changed_settings(before, current[name])]
        elif before != current[name]:
            changes.append(f"{name} {_as_json(before)} -> {_as_json(current[name])}")
    return changes


def matches(recorded: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Return whether a manifest, or what an interrupted run recorded, is for this key: settings, inputs and code."""
    others = {name: value for name, value in key.items() if name != "settings"}
    is_equal = all(recorded.get(name) == value for name, value in others.items())
    return is_equal and not changed_settings(recorded.get("settings"), key["settings"])


def _as_json(value: Any) -> str:
    try:
        return _shorten(json.dumps(value), MAX_CHANGE_CHARACTERS)
    except (TypeError, ValueError, RecursionError):  # of a damaged file
        return f"({type(value).__name__})"


def digest(settings: dict[str, Any]) -> str:
    """Return 12 hexadecimal digits that identify the settings that differ from their defaults.

    A new setting with a neutral default changes no digest.
    """
    changed = {name: value for name, value in settings.items() if value != DEFAULTS.get(name)}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]


def accuracy_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the flattened settings that the accuracy on other rows depends on: neither the split nor the seed."""
    settings = flatten(recipe, ACCURACY_SETTINGS)
    return {name: value for name, value in settings.items() if name not in _NOT_ACCURACY_SETTINGS}


def measured_difference(recipe: Recipe) -> str:
    """Return how a built-in recipe's settings differ from those that its accuracy was measured with; "" if they do not.

    recipe: with changed settings, as by `--set`.
    """
    settings = accuracy_settings(recipe)
    if changes := changed_settings(accuracy_settings(load_recipe(recipe.name)), settings):
        return changes[0]
    return "" if digest(settings) == recipe.measured.settings else "the recipe was changed since"
