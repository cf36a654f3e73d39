"""What the JSON files of the workspace contain: types, lengths and names, which are checked when a file is read.

A file may come from someone else, or be damaged. Entries that no code reads are not declared.
"""

import functools
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PlainValidator, TypeAdapter, model_validator

from pipeline.recipes.settings import MAX_NETWORKS, Model

MAX_TEXT = 1 << 16  # characters
MAX_RECORD = 1 << 30  # bytes of record.json, which has 300 KB for each layer
MAX_NAME = 255  # bytes
ARRAYS = ("train_images.npy", "train_labels.npy", "test_images.npy")  # of `prepare`
ARRAYS_DIR = "../../arrays/"  # seen from the folder of a split, whose outputs include the arrays of all splits


def check(value: object, schema: Any) -> None:
    """Raise ValueError if a value from a JSON file is not what a schema of this module says."""
    _adapter(schema).validate_python(value)


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\0" in value:
        raise ValueError("not a text")
    value.encode("utf-8", "surrogateescape")  # as bytes of a path that are not UTF-8 are represented
    return value


def _name(value: object) -> str:
    name = _text(value)
    if not name or name == ".." or Path(name).name != name or len(os.fsencode(name)) > MAX_NAME:
        raise ValueError("not the name of a file in the folder")
    return name


def _output(value: object) -> str:
    return _name(_text(value).removeprefix(ARRAYS_DIR))


Text = Annotated[str, PlainValidator(_text)]
Name = Annotated[str, PlainValidator(_name)]  # of a file or a folder, without its path
Output = Annotated[str, PlainValidator(_output)]
SourceFile = Annotated[str, Field(pattern=r"^pipeline/[A-Za-z0-9_/]+\.py$", max_length=MAX_NAME)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=10**12)]
Positive = Annotated[int, Field(ge=1, le=10**12)]
Share = Annotated[float, Field(ge=0, le=1)]
Settings = dict[Text, JsonValue]  # JsonValue also limits the depth


class Schema(BaseModel):
    """Base of all schemas: strict types; further entries are allowed."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, defer_build=True)


class Nested(Schema):
    """The base of schemas whose further entries are written again, or are part of a hash."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]


class Started(Nested):
    """started.json: what a run that has not finished was started for."""

    format: int = 0
    stage: Text = ""
    settings: Settings = {}
    inputs: dict[Text, Sha256] = {}
    code: Text | dict[Text, Text] = ""  # a dict in another format
    modules: dict[SourceFile, Annotated[list[Text], Field(min_length=2, max_length=2)]] = {}
    observations: dict[Text, Text] = {}


class NetworkEntry(Nested):
    name: Text = ""
    folder: Name
    parameters: Count = 0
    kept_epoch: Count = 0
    precision: Text = ""


class Numbers(Nested):
    """What the manifests record of results, as far as other stages read it."""

    source: Text = ""  # of download
    overlap: Count = 0  # and the next three of prepare
    train_rows: Positive = 1
    test_rows: Positive = 1
    training_rows: Count = 0
    networks: Annotated[list[NetworkEntry], Field(max_length=2 * MAX_NETWORKS)] = []
    initial_weights: dict[Text, Sha256] = {}
    observations: dict[Text, Text] = {}  # and the next two of a network
    parameters: Count = 0
    extractor: Sha256 = ""


class Manifest(Started):
    """manifest.json."""

    inputs: dict[Text, Sha256]
    outputs: dict[Output, Sha256]
    numbers: Numbers


class Context(Schema):
    """context.json."""

    stage: Text = ""
    recipe: Text = ""  # the value of --recipe
    recipes: Annotated[list[Text], Field(max_length=1000)] = []  # the same in parts, of a comparison or a blend
    assignments: Annotated[list[Text], Field(max_length=1000)] = []
    path: Text = ""  # of the data
    training_seconds: float = 0.0
    files: Settings = {}  # size, time, inode and hash by name


class References(Schema):
    """networks.json."""

    folders: Annotated[list[Name], Field(max_length=2 * MAX_NETWORKS)]


class LockHolder(Schema):
    pid: Count
    stage: Text
    since: Text


class Nothing(Schema):
    """That no rows were held out."""

    rows: Literal[0]
    why_none: Text


class HeldOut(Schema):
    """An accuracy on rows that were held out."""

    rows: Positive
    accuracy: Share
    interval_95: Annotated[list[Share], Field(min_length=2, max_length=2)]
    chosen_on_these_rows: bool
    rows_left_out: Count


class Estimate(Schema):
    """A recipe's measured accuracy."""

    accuracy: Share
    std: Share
    seeds: Annotated[int, Field(ge=1, le=10**6)]
    rows: Annotated[int, Field(ge=1, le=10**6)]
    same_data: bool
    date: Text


class MeasuredWith(Schema):
    data: Text
    settings: Settings


class ClassMetrics(Schema):
    digit: Annotated[int, Field(ge=0, le=9)]
    rows: Count
    precision: Share | None
    recall: Share | None


class _Metrics(Schema):
    measured: Estimate | None
    why_not_measured: Text
    measured_with: MeasuredWith = MeasuredWith(data="", settings={})  # missing for a blend


class NoMetrics(_Metrics, Nothing):
    pass


class HeldOutMetrics(_Metrics, HeldOut):
    n_correct: Count
    rests_on: Text
    temperature: Annotated[float, Field(gt=0)]
    classes: list[ClassMetrics]


Metrics = HeldOutMetrics | NoMetrics  # metrics.json


class SentEntry(Nested):
    """What was sent to Kaggle."""

    sha256: Sha256
    message: Text
    date: Text
    ref: int | Text | None
    score: float | None


class SentEntries(Nested):
    """submission.json, as far as it is kept when a prediction is repeated."""

    sent: list[SentEntry]


class ReceiptHashes(Nested):
    submission: Annotated[Sha256, Field(alias="submission.csv")]
    weights: Annotated[Sha256 | list[Sha256], Field(alias="weights.safetensors")]


class ExpectedScore(Nested):
    estimate: Share
    interval_95: Annotated[list[Share], Field(min_length=2, max_length=2)]
    rests_on: Text


class Receipt(SentEntries):
    """submission.json."""

    source: Text
    can_be_submitted: bool
    rows: Count
    sha256: ReceiptHashes
    validation: HeldOut | Nothing
    expected_score: ExpectedScore | None
    why_no_expected_score: Text
    message: Text
    tag: Annotated[Text, Field(min_length=1)]
    test_score: Share | None


class Push(Schema):
    """push.json: what `notebook` pushed to Kaggle."""

    notebook: Text
    sha256: Sha256
    status: Literal["pushing", "refused", "pushed", "failed", "fetched"]
    version: Count | None
    url: Text | None
    date: Text


class Epoch(Schema):
    """A row of the history of a network."""

    epoch: Positive
    learning_rate: float
    train_loss: float
    validation_loss: float | None = None
    validation_accuracy: Share | None = None

    @model_validator(mode="after")
    def _check_validation(self) -> "Epoch":
        if (self.validation_loss is None) != (self.validation_accuracy is None):
            raise ValueError("one measurement without the other")
        return self


class ValidatedEpoch(Epoch):
    validation_loss: float
    validation_accuracy: Share


class RecordedLayer(Schema):
    limit: Annotated[float, Field(gt=0)]
    counts: Annotated[list[Count], Field(min_length=1, max_length=1000)]
    gradient_mean: Annotated[float, Field(ge=0)] | None
    gradient_max: Annotated[float, Field(ge=0)] | None


class RecordedEpoch(Schema):
    epoch: Count
    layers: dict[Text, RecordedLayer]


class Record(Schema):
    """record.json, which `nn.recorder.Recorder` made: gradients are missing in the first row only."""

    rows: Annotated[list[RecordedEpoch], Field(min_length=2)]

    @model_validator(mode="after")
    def _check_layers(self) -> "Record":
        layers = [layer for row in self.rows for layer in row.layers.values()]
        trained = [layer for row in self.rows[1:] for layer in row.layers.values()]
        if (
            len({tuple(row.layers) for row in self.rows}) > 1
            or len({len(layer.counts) for layer in layers}) > 1
            or not all(sum(layer.counts) for layer in layers)
            or any(layer.gradient_mean is None or layer.gradient_max is None for layer in trained)
        ):
            raise ValueError("layers that differ between epochs")
        return self


class NetworkMetadata(Schema):
    """The metadata of a network in a weights file."""

    model: Model
    precision: Literal["fp32", "bf16", "fp16"]
    epoch: Count
    checkpoint_selection: Literal["best", "last"]
    fit_all: bool
    fold: Count | None
    seed: Annotated[int, Field(ge=0)]


class NetworksMetadata(Schema):
    """The metadata of a weights file of several networks."""

    networks: Annotated[dict[Text, NetworkMetadata], Field(min_length=1)]
