"""The typed settings of a run, and the named sets of them (`recipes/*.toml`).

This module is the one place for defaults. A recipe file holds only what differs from them. A setting that
is unknown, of the wrong type or out of range is refused, with all the other mistakes of the call at once.
"""

import dataclasses
import difflib
import math
import re
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path

LONGEST = 1 << 20  # bytes of a recipe
LONGEST_SHOWN = 80  # characters of a value in an error
RECIPES = Path(__file__).parent / "recipes"
# The keys of `pipeline.models.MODELS`, which this module cannot import: `--list` must not wait for torch.
MODELS = ("dropout_cnn", "small_cnn", "medium_cnn", "layers")
# What `model.layers` is made of: kind and sizes. A pool's stride is its size; squeeze_excite's number is how many times
# smaller its middle is.
LAYER = re.compile(
    r"conv [1-9]\d{0,3} [1-9]x[1-9]( stride [1-9])?( pad [1-9])?|dense [1-9]\d{0,3}|(max|avg)_pool [2-9]|global_pool"
    r"|squeeze_excite [1-9]\d?|batch_norm|dropout|relu|tanh"
)
OPTIMIZERS = ("adam", "adamw", "muon", "sgd", "rmsprop", "adagrad", "adadelta")
VIEWS = ("plain", "deskewed", "even", "deskewed_even", "wide")  # of pipeline.views.VIEWS, likewise


class RecipeError(ValueError):
    """A mistake in a recipe file or in `--set`; the message is one line."""


def setting(default, *, choices=None, like=None, low=None, high=None, above=None, below=None, items=0):
    """A field with its default and the values it may take (each value of a list of at least `items`)."""
    limits = {"choices": choices, "like": like, "low": low, "high": high, "above": above, "below": below}
    limits["items"] = items
    return field(default=default, metadata={name: limit for name, limit in limits.items() if limit is not None})


@dataclass(frozen=True)
class Prepare:
    # Go on although over 1% of the test images also stand in train.
    allow_overlap: bool = False


@dataclass(frozen=True)
class Split:
    # The part of train.csv held out for validation, stratified by label; with folds it says nothing.
    fraction: float = setting(0.25, above=0, below=1)
    # So many parts of train.csv, stratified by label, each of which is held out once; 0: one part, `fraction`.
    folds: int = setting(0, low=0, high=100)
    # Its own seed, so that `train.seed` can vary over the same rows.
    seed: int = setting(0, low=0, high=2**32 - 1)


@dataclass(frozen=True)
class Augment:
    """Offline variants of the training rows: each entry adds one copy of them all."""

    # [right, down] in pixels.
    shifts: tuple[tuple[float, float], ...] = setting((), low=-27, high=27)
    # Degrees, as scipy.ndimage.rotate counts them.
    angles: tuple[float, ...] = setting((), low=-360, high=360)
    # Factors about the centre; 1.1 is 10% larger.
    zooms: tuple[float, ...] = setting((), low=0.1, high=10)


@dataclass(frozen=True)
class Affine:
    """A random affine map of every training image, drawn anew each epoch; each limit is plus or minus."""

    rotation: float = setting(0.0, low=0, high=180)  # degrees
    shift: float = setting(0.0, low=0, high=27)  # pixels
    zoom: float = setting(0.0, low=0, below=1)  # fraction of the size
    shear: float = setting(0.0, low=0, high=45)  # degrees
    flip: bool = False  # left to right, half of the images


@dataclass(frozen=True)
class Model:
    name: str = setting("dropout_cnn", choices=MODELS)
    dropout: float = setting(0.5, low=0, below=1)
    # Of the network "layers", in order, before its last, which is dense with 10 outputs: "conv 32 3x3", "relu", ...
    layers: tuple[str, ...] = setting((), like=LAYER)
    # From 0 to 1; from -1 to 1; or with the mean 0 and the deviation 1, over all pixels that are trained on.
    pixels: str = setting("unit", choices=("unit", "centred", "standardised"))
    # What the network is shown instead of the image: without its slant, of even width, ...
    view: str = setting("plain", choices=VIEWS)


@dataclass(frozen=True)
class Ensemble:
    """Which networks are trained and averaged: each model on each view with each seed and fold."""

    # Of `model.name`'s choices; empty: that one.
    models: tuple[str, ...] = setting((), choices=MODELS)
    # Of `model.view`'s choices; empty: that one.
    views: tuple[str, ...] = setting((), choices=VIEWS)
    # From train.seed upwards.
    seeds: int = setting(1, low=1, high=10**6)
    # Of the processor, for each of the networks that are trained side by side; their weights depend on it.
    threads: int = setting(1, low=1, high=1024)


@dataclass(frozen=True)
class Train:
    seed: int = setting(0, low=0, high=2**63 - 1)
    epochs: int = setting(150, low=1, high=10**6)
    batch: int = setting(4096, low=1, high=10**6)
    # "muon" takes the weights of the inner convolutions, at `muon_rate`, and leaves the rest to adamw.
    optimizer: str = setting("adam", choices=OPTIMIZERS)
    learning_rate: float = setting(0.0002, above=0)
    # Of sgd.
    momentum: float = setting(0.0, low=0, below=1)
    muon_rate: float = setting(0.02, above=0)
    # Decoupled in adamw and muon; L2 in the gradient of the others.
    weight_decay: float = setting(0.0, low=0)
    # Of the learning rate over the steps that follow the warm-up; linear after a warm-up is known as one-cycle.
    schedule: str = setting("constant", choices=("constant", "linear", "cosine", "exponential", "steps"))
    # What the rate is multiplied with after each epoch of an exponential schedule.
    decay: float = setting(1.0, above=0)
    # Of the schedule "steps", [epoch, factor] each: from this epoch on (the first is 1), so many times the rate.
    steps: tuple[tuple[int, float], ...] = setting((), above=0)
    # The part of all steps over which the learning rate rises linearly from 0.
    warmup: float = setting(0.0, low=0, below=1)
    label_smoothing: float = setting(0.0, low=0, below=1)
    # The part of the rows that each epoch after the second works on: mostly those of the greatest loss when last seen.
    focus: float = setting(1.0, above=0, high=1)
    # The part of all steps, the last ones, over which the weights that are kept are averaged.
    average: float = setting(0.0, low=0, high=1)
    # The weight of what was averaged before, against each new step's; 0: all steps count alike.
    average_decay: float = setting(0.0, low=0, below=1)
    # Train on the validation rows too; no epoch can be chosen then, and nothing is left to evaluate on.
    fit_all: bool = False
    # A fault of the published code, kept for comparison: softmax before CrossEntropyLoss, which applies it again.
    softmax_before_loss: bool = False
    # Which epoch's weights are kept: that of the least validation loss, or the last.
    keep: str = setting("best", choices=("best", "last"))
    # Of the convolutions and products; "auto" takes bf16 where the processor has instructions for it.
    precision: str = setting("auto", choices=("auto", "fp32", "bf16"))
    # The same weights bit for bit also on CUDA, where it costs time; on a CPU they always are.
    deterministic: bool = False


@dataclass(frozen=True)
class Predict:
    # Probabilities are averaged over copies of each image shifted by [right, down] whole pixels.
    shifts: tuple[tuple[int, int], ...] = setting(((0, 0),), low=-27, high=27, items=1)


@dataclass(frozen=True)
class Estimate:
    """What was measured for a recipe that trains on all rows, by holding rows out; 0 seeds: nothing.

    It is quoted where the data and the settings are those it was measured with.
    """

    # The mean over seeds, and the standard deviation.
    accuracy: float = setting(0.0, low=0, high=1)
    deviation: float = setting(0.0, low=0, high=1)
    seeds: int = setting(0, low=0)
    # Held out for each seed.
    rows: int = setting(0, low=0)
    date: str = ""
    # As `metrics.json` tells them under "measured_with".
    data: str = ""
    settings: str = ""


@dataclass(frozen=True)
class Submit:
    # Shown on Kaggle beside the score; empty: recipe and validation accuracy.
    message: str = ""
    # Wait for the score.
    wait: bool = True


@dataclass(frozen=True)
class Published:
    """What a recipe's source says of it, for `compare` to set beside our own figure; 0: nothing."""

    accuracy: float = setting(0.0, low=0, high=1)
    # Of the network before training.
    untrained: float = setting(0.0, low=0, high=1)
    # Whether it was measured on images distorted as in training, as some published figures were.
    distorted: bool = False
    # Whose figure it is, and of what.
    source: str = ""


@dataclass(frozen=True)
class Recipe:
    name: str
    about: str
    # Among the recipes of its folder.
    order: int
    prepare: Prepare
    split: Split
    augment: Augment
    affine: Affine
    model: Model
    ensemble: Ensemble
    train: Train
    predict: Predict
    estimate: Estimate
    published: Published
    submit: Submit
    file: str = ""  # where it is no built-in one


SECTIONS = {f.name: f.type for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(f.type)}


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
        if name in names():
            raise RecipeError(f"{path}: {name} is the name of a built-in recipe; give the file another name")
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
    about, order = table.pop("about", ""), table.pop("order", 0)
    if not isinstance(about, str):
        mistakes.append("about is not a text")
    if type(order) is not int:
        mistakes.append("order is not a whole number")
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
    return Recipe(
        name, about, order, file=file, **{name: SECTIONS[name](**content) for name, content in values.items()}
    )


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
    if estimate.seeds and not estimate.rows:
        yield "estimate.seeds wants estimate.rows, which were held out for each"
    models = values["ensemble"].get("models") or (model.name,)
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


def as_plain(section):
    """A section's settings as they read back from JSON (lists for tuples), for manifests and comparison."""

    def plain(value):
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in vars(section).items()}


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
        raise ValueError('a layer such as "conv 32 3x3", "dense 100" or "relu" (see LAYER in pipeline/recipe.py)')
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
