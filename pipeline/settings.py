"""The typed settings of a run, and their defaults: this module is the one place for them."""

import dataclasses
import re
from dataclasses import dataclass, field

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


def setting(
    default, *, choices=None, like=None, low=None, high=None, above=None, below=None, items=0, only_recorded=False
):
    """A field with its default and the values it may take (each value of a list of at least `items`).

    only_recorded: no result depends on it, so that changing it makes none stale.
    """
    limits = {"choices": choices, "like": like, "low": low, "high": high, "above": above, "below": below}
    limits |= {"items": items, "only_recorded": only_recorded}
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
    # "muon" updates the weights of all convolutions but the first, at `muon_rate`, and adamw the rest (everything, in a
    # network with fewer than two convolutions).
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
    # The fraction of the rows that each epoch after the second uses (at least 8,192 rows, or all): mostly those with
    # the largest loss when last seen.
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
    # Keep each epoch's weights as histograms, and the size of gradients, for `inspect`; the weights are the same.
    record: bool = setting(False, only_recorded=True)


@dataclass(frozen=True)
class Predict:
    # Probabilities are averaged over copies of each image shifted by [right, down] whole pixels.
    shifts: tuple[tuple[int, int], ...] = setting(((0, 0),), low=-27, high=27, items=1)


@dataclass(frozen=True)
class Estimate:
    """An accuracy that was measured on held-out rows of the competition's 42,000; seeds = 0 means none.

    It applies to any tables of the competition's size with MNIST's images, with the settings it was measured with.
    """

    # The mean over seeds (or over all rows out of fold), and the standard deviation (of folds, where seeds is 1).
    accuracy: float = setting(0.0, low=0, high=1)
    deviation: float = setting(0.0, low=0, high=1)
    # Trainings, each with a seed and a split of its own; 1 with `rows` = 42000: all rows out of fold.
    seeds: int = setting(0, low=0)
    # Number of rows held out per seed.
    rows: int = setting(0, low=0)
    # Number of rows that each network was trained on; the record does not apply to a run that trains on fewer.
    training_rows: int = setting(0, low=0)
    date: str = ""
    # As in `metrics.json` under "measured_with".
    data: str = ""
    settings: str = ""


@dataclass(frozen=True)
class Explore:
    # In t-SNE, the first ones; 0: all.
    rows: int = setting(0, low=0)
    # Of t-SNE.
    seed: int = setting(0, low=0, high=2**31 - 1)


@dataclass(frozen=True)
class Inspect:
    # The row of train.csv whose way through the network is shown; the first under the header is 1.
    image: int = setting(1, low=1)
    # Of an ensemble, which network.
    member: int = setting(1, low=1)
    # In t-SNE, the first ones that were held out.
    rows: int = setting(3000, low=10)
    # Of t-SNE.
    seed: int = setting(0, low=0, high=2**31 - 1)


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
    # The recipe that it is a change of, if any: `compare` tells what the change brings.
    after: str
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
    explore: Explore
    inspect: Inspect
    submit: Submit
    file: str = ""  # where it is no built-in one


SECTIONS = {f.name: f.type for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(f.type)}


def as_plain(section):
    """A section's settings as they read back from JSON (lists for tuples), for manifests and comparison.

    Without those that are only recorded.
    """

    def plain(value):
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    kept = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
    left_out = {f.name for f in kept if f.metadata.get("only_recorded")}
    return {name: plain(value) for name, value in vars(section).items() if name not in left_out}
