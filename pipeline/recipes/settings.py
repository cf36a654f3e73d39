"""Settings schema: every setting of a recipe with its type, limits and default."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict

from pipeline import ROOT

# The file names in pipeline/nn/models/.
MODELS = tuple(sorted(path.stem for path in (ROOT / "pipeline/nn/models").glob("*.py") if path.stem != "__init__"))
if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[MODELS]
# The keys of pipeline.dataset.views.VIEWS, which cannot be imported here: `--list` and `--status` do not import torch.
ViewName = Literal["plain", "deskewed", "even", "deskewed_even", "wide"]
# The models that can start from weights trained on ImageNet, with the smallest `model.side` that their layers accept.
TRANSFER_MODELS = {"vgg16": 32, "alexnet": 64}

# Kind and sizes. The stride of a pooling layer is its size; squeeze_excite takes its reduction ratio.
LAYER = (
    r"^(conv [1-9][0-9]{0,3} [1-9]x[1-9]( stride [1-9])?( pad [1-9])?|dense [1-9][0-9]{0,3}|(max|avg)_pool [2-9]"
    r"|global_pool|squeeze_excite [1-9][0-9]?|batch_norm|dropout|relu|tanh)$"
)

# Kaggle forms the address of a notebook from its title: lower case, with dashes for spaces.
TITLE = r"^[A-Za-z0-9]+([ -][A-Za-z0-9]+)*$"

MAX_NETWORKS = 10_000  # of a recipe, and of a comparison

S = TypeVar("S", bound="Section")  # typing.Self is not supported by beartype in undecorated classes
T = TypeVar("T")
U = TypeVar("U")

# The lists of TOML and JSON become tuples. This is the only conversion: all other types are strict.
TupleOf = Annotated[tuple[T, ...], Strict(False)]
Pair = Annotated[tuple[T, U], Strict(False)]

Pixels = Annotated[float, Field(ge=-27, le=27)]
WholePixels = Annotated[int, Field(ge=-27, le=27)]


class Section(BaseModel):
    """Base of all sections: immutable, hashable and strictly validated."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def replace(self: S, **changes: Any) -> S:
        """Return a validated copy with some fields changed."""
        return self.model_validate({**dict(self), **changes})


class Prepare(Section):
    # Continue although more than 1% of the test images also occur in train.csv.
    allow_overlap: bool = False


class Split(Section):
    # Fraction of train.csv held out for validation, stratified by label; ignored when `folds` > 0.
    fraction: float = Field(default=0.25, gt=0, lt=1)
    # Number of cross-validation folds, stratified by label; 0 means a single validation split.
    folds: int = Field(default=0, ge=0, le=100)
    # Independent of `train.seed`, so that trainings with different seeds can share a split.
    seed: int = Field(default=0, ge=0, le=2**32 - 1)


class Augment(Section):
    """Offline augmentation: each entry adds one transformed copy of all training rows."""

    # [right, down] in pixels.
    shifts: TupleOf[Pair[Pixels, Pixels]] = Field(default=(), max_length=100)
    # Degrees, with the sign convention of scipy.ndimage.rotate.
    angles: TupleOf[Annotated[float, Field(ge=-360, le=360)]] = Field(default=(), max_length=100)
    # Factors about the centre; 1.1 enlarges by 10%.
    zooms: TupleOf[Annotated[float, Field(ge=0.1, le=10)]] = Field(default=(), max_length=100)


class Affine(Section):
    """Random augmentation: in each epoch, each training image gets a random affine map within these limits (+-)."""

    rotation: float = Field(default=0.0, ge=0, le=180)  # degrees
    shift: float = Field(default=0.0, ge=0, le=27)  # pixels
    zoom: float = Field(default=0.0, ge=0, lt=1)  # fraction of the size
    shear: float = Field(default=0.0, ge=0, le=45)  # degrees
    flip: bool = False  # flip left to right with probability 0.5


class Model(Section):
    name: ModelName = "dropout_cnn"
    dropout: float = Field(default=0.5, ge=0, lt=1)
    # The layers of the model "layers", in order; a dense layer with 10 outputs is added at the end.
    layers: TupleOf[Annotated[str, Field(pattern=LAYER)]] = Field(default=(), max_length=500)
    # Pixel scaling: to [0, 1], to [-1, 1], or to mean 0 and standard deviation 1 over all training pixels.
    pixels: Literal["unit", "centred", "standardised"] = "unit"
    # Fixed transformation of every image before the network, for example deskewing.
    view: ViewName = "plain"
    # The other settings are for "vgg16" and "alexnet".
    # Initial weights: random, or those that torchvision publishes, trained on ImageNet.
    pretrained: Literal["none", "imagenet"] = "none"
    # A file with these weights. Empty means data/pretrained/, into which they are downloaded if they are missing.
    weights_file: str = ""
    # Height and width in pixels to which the images are resized.
    side: int = Field(default=224, ge=32, le=512)
    # The part that keeps its initial weights. The outputs of the frozen layers are computed once for each image.
    frozen: Literal["nothing", "features", "all_but_last"] = "all_but_last"

    @property
    def has_frozen_extractor(self) -> bool:
        """Whether the first layers keep their initial weights."""
        return self.name in TRANSFER_MODELS and self.frozen != "nothing"


class Ensemble(Section):
    """The networks of an ensemble: every model on every view with every seed, and with every fold of the split."""

    # Empty means `model.name` alone.
    models: TupleOf[ModelName] = ()
    # Empty means `model.view` alone.
    views: TupleOf[ViewName] = ()
    # Number of consecutive seeds, starting with `train.seed`.
    seeds: int = Field(default=1, ge=1, le=MAX_NETWORKS)
    # CPU threads per network. 0 means automatic: all cores for a recipe of one network, 1 thread for each of several
    # networks that are trained side by side. Weights trained on a CPU depend on the number of threads.
    threads: int = Field(default=0, ge=0, le=1024)
    # Networks trained on each GPU at the same time. 0 means automatic: one for each 16 GiB of free memory and CPU core,
    # at most 4.
    networks_per_gpu: int = Field(default=0, ge=0, le=64)


class Train(Section):
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    epochs: int = Field(default=150, ge=1, le=10**5)
    batch_size: int = Field(default=4096, ge=1, le=10**6)
    # "muon" updates the weights of all convolutions except the first with `muon_learning_rate`, and the other
    # parameters with AdamW. A network with fewer than two convolutions is updated by AdamW alone.
    optimizer: Literal["adam", "adamw", "muon", "sgd", "rmsprop", "adagrad", "adadelta"] = "adam"
    learning_rate: float = Field(default=0.0002, gt=0)
    # Used by "sgd" only.
    momentum: float = Field(default=0.0, ge=0, lt=1)
    # Used by "muon" only.
    muon_learning_rate: float = Field(default=0.02, gt=0)
    # Decoupled in "adamw" and "muon", an L2 penalty in the other optimizers.
    weight_decay: float = Field(default=0.0, ge=0)
    # Learning rate schedule after the warm-up; "linear" with a warm-up is known as the one-cycle policy.
    schedule: Literal["constant", "linear", "cosine", "exponential", "steps"] = "constant"
    # Factor of the learning rate after each epoch of the schedule "exponential".
    lr_gamma: float = Field(default=1.0, gt=0)
    # Used by the schedule "steps": [epoch, factor] multiplies the learning rate from that epoch on, counted from 1.
    steps: TupleOf[Pair[Annotated[int, Field(gt=0)], Annotated[float, Field(gt=0)]]] = Field(
        default=(), max_length=1000
    )
    # Fraction of all steps over which the learning rate rises linearly from 0.
    warmup: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    # Fraction of the rows that each epoch from the third on uses (at least 8,192 rows, or all if there are fewer),
    # mainly the rows with the largest loss when they were last used.
    hard_example_fraction: float = Field(default=1.0, gt=0, le=1)
    # Fraction of all steps, at the end of the training, whose weights are averaged.
    swa_fraction: float = Field(default=0.0, ge=0, le=1)
    # Decay of an exponential moving average over these steps; 0 means an equal-weight average.
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    # Train on the validation rows too: no epoch can be selected by validation loss, and `evaluate` has no rows.
    fit_all: bool = False
    # An error of the published code, kept for comparison: softmax before CrossEntropyLoss, which applies it again.
    softmax_before_loss: bool = False
    # The epoch whose weights are kept: the one with the lowest validation loss, or the last.
    checkpoint_selection: Literal["best", "last"] = "best"
    # Precision of convolutions and matrix products. "auto" selects bf16 if the device has instructions for it,
    # otherwise fp16 on GPUs with tensor cores (T4, V100), otherwise fp32. With "fp16", the loss is scaled by the
    # batch size.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # Equal weights bit for bit on CUDA too, which is slower. On a CPU they always are.
    deterministic: bool = False
    # Record weight histograms, and the mean and maximum absolute gradient of each layer, after each epoch, for
    # `inspect`. This does not change the weights.
    record: bool = False


class Gan(Section):
    """The conditional GAN that `generate` trains. The settings of [train] do not apply to it."""

    # "none": the recipe has no GAN. "dense" networks, or "convolutional" ones with batch norm in the generator.
    architecture: Literal["none", "dense", "convolutional"] = "none"
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    epochs: int = Field(default=200, ge=1, le=10**5)
    batch_size: int = Field(default=128, ge=2, le=10**6)
    # Learning rates of Adam for the generator and for the discriminator; 0 means the same as for the generator.
    learning_rate: float = Field(default=0.0002, gt=0)
    discriminator_learning_rate: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    # Number of random values that an image is generated from.
    latent_size: int = Field(default=100, ge=1, le=10**4)
    # Units or channels of the narrowest hidden layer; the others have two and four times as many.
    generator_width: int = Field(default=128, ge=1, le=4096)
    discriminator_width: int = Field(default=128, ge=1, le=4096)
    loss: Literal["non_saturating", "hinge"] = "non_saturating"
    # The discriminator uses the label's inner product with the features, instead of the label as an input.
    projection: bool = False
    # Divide the discriminator's weights by their largest singular values.
    spectral_norm: bool = False
    # Dropout rate of the discriminator's hidden layers.
    dropout: float = Field(default=0.0, ge=0, lt=1)
    # Decay of an exponential moving average of the generator's weights over the steps (at step n at most
    # (1 + n) / (10 + n)); 0 means the current weights.
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    # "auto" selects bf16 if the device has instructions for it, otherwise fp32.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # Equal weights bit for bit on CUDA too, which is slower. On a CPU they always are.
    deterministic: bool = False


class Generate(Section):
    # Number of digits that `generate` makes, of all classes in turn.
    samples: int = Field(default=10_000, ge=100, le=10**7)
    # Seed of their noise.
    seed: int = Field(default=0, ge=0, le=2**63 - 1)


class Predict(Section):
    # Probabilities are averaged over copies of each image, shifted by [right, down] whole pixels.
    shifts: TupleOf[Pair[WholePixels, WholePixels]] = Field(default=((0, 0),), min_length=1, max_length=55 * 55)
    # Only images with at most this margin in the first copy are shifted; 1 means all images. The margin is the
    # difference between the two largest probabilities.
    shift_margin: float = Field(default=1.0, ge=0, le=1)


class Measured(Section):
    """An accuracy in recipes/measured.toml, which explains the entries; `seeds` = 0 means that none was measured.

    It applies to all tables of the competition's size with MNIST's images, for the settings it was measured with.
    """

    accuracy: float = Field(default=0.0, ge=0, le=1)
    std: float = Field(default=0.0, ge=0, le=1)
    seeds: int = Field(default=0, ge=0)
    rows: int = Field(default=0, ge=0)
    # It does not apply to a run that trains on fewer.
    training_rows: int = Field(default=0, ge=0)
    date: str = ""
    data: str = ""
    settings: str = ""


class Explore(Section):
    # Number of rows shown by t-SNE, from the first one on; 0 means all.
    rows: int = Field(default=0, ge=0)
    # Seed of t-SNE.
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


class Inspect(Section):
    # Row of train.csv whose activations are shown, counted from 1 without the header.
    image: int = Field(default=1, ge=1)
    # Number of the ensemble's network that is inspected, counted from 1.
    network: int = Field(default=1, ge=1)
    # Number of validation rows shown by t-SNE, from the first one on.
    rows: int = Field(default=3000, ge=10)
    # Seed of t-SNE.
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


class Compare(Section):
    # Number of trainings of each recipe, each with its own seed.
    seeds: int = Field(default=5, ge=1, le=1000)
    # Also measure the mean of the predictions of all seeds.
    ensemble: bool = False


class Submit(Section):
    # Description of the submission on Kaggle; empty means the recipe and its validation accuracy.
    message: str = ""
    # Wait for the score.
    wait: bool = True


class Notebook(Section):
    # Title of the notebook on Kaggle. A push with the same title adds a version.
    title: str = Field(default="Digit Recognizer pipeline", min_length=5, max_length=50, pattern=TITLE)
    # Push the notebook to Kaggle, where it runs.
    push: bool = False
    # Wait until it has run, and fetch its results.
    wait: bool = True


class Published(Section):
    """Accuracy that the source of a recipe reports, which `compare` shows next to the measured one; 0 means none."""

    accuracy: float = Field(default=0.0, ge=0, le=1)
    # Accuracy of the network before training.
    untrained: float = Field(default=0.0, ge=0, le=1)
    # The published accuracy was measured on test images distorted like the training images.
    distorted: bool = False
    # Author or document, data set, and number of runs.
    source: str = ""


class RecipeTable(Section):
    """Content of a recipe file."""

    about: str = ""
    # Position among the recipes of a folder.
    order: int = 0
    # Name of the recipe that this one modifies; `compare` measures the effect of the change.
    baseline: str = ""
    prepare: Prepare = Prepare()
    split: Split = Split()
    augment: Augment = Augment()
    affine: Affine = Affine()
    model: Model = Model()
    ensemble: Ensemble = Ensemble()
    train: Train = Train()
    gan: Gan = Gan()
    generate: Generate = Generate()
    predict: Predict = Predict()
    published: Published = Published()
    explore: Explore = Explore()
    inspect: Inspect = Inspect()
    compare: Compare = Compare()
    submit: Submit = Submit()
    notebook: Notebook = Notebook()


class Recipe(RecipeTable):
    name: str
    file: str = ""  # absolute path; empty for a built-in recipe
    measured: Measured = Measured()  # of a built-in recipe

    @property
    def n_networks(self) -> int:
        """The number of networks that are trained with every seed of `compare`."""
        ensemble = self.ensemble
        n_models = max(1, len(ensemble.models)) * max(1, len(ensemble.views))
        return n_models * ensemble.seeds * max(1, self.split.folds)

    @property
    def models(self) -> list[Model]:
        """The models, each on each view."""
        names, views = self.ensemble.models or (self.model.name,), self.ensemble.views or (self.model.view,)
        return [self.model.replace(name=name, view=view) for name in names for view in views]

    @property
    def has_gan(self) -> bool:
        """Whether `generate` trains a GAN for this recipe; then, no other stage trains networks for it."""
        return self.gan.architecture != "none"


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in RecipeTable.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
