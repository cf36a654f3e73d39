"""Recipes: the named sets of settings in `recipes/*.toml`, and a user's own.

A recipe file holds only what differs from the defaults. A setting that is unknown, of the wrong type or out of range is
refused, with all the other mistakes of the call at once.
"""

import dataclasses
import difflib
import math
import re
import tomllib
import typing
from pathlib import Path

from pipeline.settings import SECTIONS, Recipe, RecipeError

LONGEST = 1 << 20  # bytes of a recipe
LONGEST_SHOWN = 80  # characters of a value in an error
RECIPES = Path(__file__).parent / "recipes"


def names():
    """The built-in recipes' names, in order: paths below `recipes/` without `.toml`."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.toml"))


def expand(text):
    """The names in "a,b,c", where a folder of built-in recipes stands for all that are in it, in their order."""
    found = [one for name in text.split(",") for one in folder(name) or [name]]
    return list(dict.fromkeys(found))


def folder(name):
    """The names of the built-in recipes in a folder of them, in their order; [] where there is none of that name."""
    return sorted((one for one in names() if one.startswith(f"{name}/")), key=lambda one: load(one).order)


def load(name, assignments=()):
    """The recipe called `name` (a built-in one or a path that ends in .toml) with `section.field=value` assignments.

    Raises RecipeError with every mistake found, in one line.
    """
    path, file = RECIPES / f"{name}.toml", ""
    if name.endswith(".toml"):
        path, name, file = Path(name), Path(name).stem, str(Path(name).absolute())
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise RecipeError(f"{path}: a recipe's name is of letters, digits, - and _; rename the file")
        if name in names() or folder(name):
            raise RecipeError(f"{path}: {name} is the name of a built-in recipe or of their folder; rename the file")
    elif name not in names():
        raise RecipeError(f"there is no recipe {name!r}{_nearest(name, names())}; `--list` shows them all")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise RecipeError(f"{path}: not a file")
    try:
        with open(path, "rb") as stream:
            content = stream.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise RecipeError(f"{path}: not a recipe: longer than {LONGEST:,} bytes")
        table = tomllib.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not a TOML file: {error}"
        raise RecipeError(f"{path}: {reason}") from None

    mistakes = []
    head = {}
    for key, default, what in (("about", "", "text"), ("order", 0, "whole number"), ("after", "", "text")):
        head[key] = table.pop(key, default)
        if type(head[key]) is not type(default):
            mistakes.append(f"{key} is not a {what}")
    values = {section: {} for section in SECTIONS}
    for section, content in table.items():
        if section not in SECTIONS:
            mistakes.append(f"unknown section [{section}]{_nearest(section, SECTIONS)}")
        elif not isinstance(content, dict):
            mistakes.append(f"{section} is a section, not a value")
        else:
            for key, value in content.items():
                _put(values, section, key, value, None, mistakes)
    mistakes = [f"{path.name}: {mistake}" for mistake in mistakes]
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        section, dot, key = key.strip().partition(".")
        if not equals or not dot:
            mistakes.append(f"--set {assignment}: expected section.field=value")
        elif section not in SECTIONS:
            mistakes.append(f"--set {assignment}: unknown section {section}{_nearest(section, SECTIONS)}")
        else:
            found = []
            _put(values, section, key, _parse(text.strip()), text, found)
            mistakes += [f"--set {mistake}" for mistake in found]
    given = f"{path.name} with --set" if assignments else path.name
    mistakes += [f"{given}: {mistake}" for mistake in _contradictions(values)]
    if mistakes:
        raise RecipeError("; ".join(mistakes))
    return Recipe(name, **head, file=file, **{name: SECTIONS[name](**content) for name, content in values.items()})


def _contradictions(values):
    """Settings that do not go together, and those that nobody would read because of another."""
    train, model = SECTIONS["train"](**values["train"]), SECTIONS["model"](**values["model"])
    split, estimate = SECTIONS["split"](**values["split"]), SECTIONS["estimate"](**values["estimate"])
    if train.fit_all and train.keep == "best":
        yield "train.fit_all leaves no rows to choose an epoch by: set train.keep to last"
    if split.folds == 1:
        yield "split.folds is 1, and nothing would be left to train on: 2 or more, or 0 for none"
    if split.folds and train.fit_all:
        yield "train.fit_all leaves no rows out, and split.folds holds out each once: leave one out"
    for key in ("models", "views"):
        given = values["ensemble"].get(key, ())
        if len(set(given)) < len(given):
            yield f"ensemble.{key} names one twice: ensemble.seeds trains more of each"
    if estimate.seeds and not (estimate.rows and estimate.training_rows):
        yield "estimate.seeds requires estimate.rows, held out for each seed, and estimate.training_rows"
    ensemble = SECTIONS["ensemble"](**values["ensemble"])
    if train.record and (split.folds or ensemble.seeds > 1 or ensemble.models or ensemble.views):
        yield "train.record is for one network, not for an ensemble (split.folds, ensemble)"
    if 0 < SECTIONS["explore"](**values["explore"]).rows < 10:
        yield "explore.rows must be 0 (all rows) or at least 10, which t-SNE requires"
    models = ensemble.models or (model.name,)
    if train.schedule == "steps" and not train.steps:
        yield "train.schedule is steps, and train.steps names none"
    if train.schedule == "exponential" and train.decay == 1:
        yield "train.schedule is exponential, and train.decay is 1, which changes nothing"
    for name, given, where, there in (
        ("train.momentum", train.momentum, "train.optimizer is sgd", train.optimizer == "sgd"),
        ("train.decay", train.decay != 1, "train.schedule is exponential", train.schedule == "exponential"),
        ("train.steps", train.steps, "train.schedule is steps", train.schedule == "steps"),
        ("train.average_decay", train.average_decay, "train.average is more than 0", train.average > 0),
        ("model.layers", model.layers, "model.name is layers", "layers" in models),
        (
            "model.dropout",
            "dropout" in values["model"],
            "model.layers has a dropout",
            models != ("layers",) or "dropout" in model.layers,
        ),
    ):
        if given and not there:
            yield f"{name} counts only where {where}"


def _parse(text):
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text  # a bare word: `train.schedule=cosine`


def _put(values, section, key, value, text, mistakes):
    """Check `value` and store it, or say what is wrong with it; `text` is what `--set` was given."""
    known = {f.name: f for f in dataclasses.fields(SECTIONS[section])}
    if key not in known:
        mistakes.append(f"unknown setting {section}.{key}{_nearest(key, known)}")
        return
    if text is not None and known[key].type is str and not isinstance(value, str):
        value = text  # a message of digits is still a text
    try:
        values[section][key] = _checked(known[key].type, value, known[key].metadata)
    except ValueError as error:
        shown = repr(value)
        shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
        mistakes.append(f"{section}.{key} is {shown}, expected {error}")


def _checked(kind, value, limits):
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise ValueError("a list")
        if inner[-1] is Ellipsis:
            if len(value) < limits["items"]:
                raise ValueError("a list that is not empty")
            return tuple(_checked(inner[0], item, limits) for item in value)
        if len(value) != len(inner):
            raise ValueError(f"lists of {len(inner)} numbers")
        return tuple(_checked(part, item, limits) for part, item in zip(inner, value, strict=True))
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not kind:
        article = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise ValueError(article[kind])
    if kind is float and not math.isfinite(value):
        raise ValueError("a finite number")
    if "choices" in limits and value not in limits["choices"]:
        raise ValueError("one of " + ", ".join(limits["choices"]))
    if "like" in limits and not limits["like"].fullmatch(value):
        raise ValueError('a layer such as "conv 32 3x3", "dense 100" or "relu" (see LAYER in pipeline/settings.py)')
    for name, holds, words in (
        ("low", lambda limit: value >= limit, "at least"),
        ("high", lambda limit: value <= limit, "at most"),
        ("above", lambda limit: value > limit, "more than"),
        ("below", lambda limit: value < limit, "less than"),
    ):
        if name in limits and not holds(limits[name]):
            raise ValueError(f"{words} {limits[name]}")
    return value


def _nearest(word, known):
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (nearest: {match[0]})" if match else f" (known: {', '.join(known)})"
