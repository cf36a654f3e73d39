"""Settings that exclude each other, or that have no effect because of another."""

from collections.abc import Iterator

from pipeline.recipes.settings import (
    MAX_NETWORKS,
    SECTIONS,
    TRANSFER_MODELS,
    Affine,
    Augment,
    Predict,
    Recipe,
)

# Sections that have no effect in a recipe with a GAN, and those that have one only there.
_WITHOUT_GAN = ("affine", "model", "ensemble", "train", "predict", "published")
_WITH_GAN = ("gan", "generate")


def find_contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield a message for settings that exclude each other."""
    split, model, ensemble, train = recipe.split, recipe.model, recipe.ensemble, recipe.train
    models = recipe.ensemble.models or (recipe.model.name,)
    if train.fit_all and train.checkpoint_selection == "best":
        yield "train.fit_all leaves no validation rows to select the epoch with: set train.checkpoint_selection to last"
    if split.folds == 1:
        yield "split.folds is 1, which leaves no rows to train on: set it to 2 or more, or to 0 for a single split"
    if split.folds and train.fit_all:
        yield "train.fit_all trains on all rows, and split.folds holds out each row once: set one of them only"
    for name, values in (("models", ensemble.models), ("views", ensemble.views)):
        if len(set(values)) < len(values):
            yield f"ensemble.{name} contains a name twice: use ensemble.seeds to train several networks of each"
    if (n_networks := recipe.n_networks) > MAX_NETWORKS:
        yield f"the recipe has {n_networks:,} networks (ensemble, split.folds), more than {MAX_NETWORKS:,}"
    if train.record and (split.folds or ensemble.seeds > 1 or ensemble.models or ensemble.views):
        yield "train.record is for a single network, not for an ensemble (split.folds, ensemble)"
    if recipe.compare.ensemble and recipe.compare.seeds == 1:
        yield "compare.ensemble averages over seeds: set compare.seeds (--seeds) to 2 or more"
    if recipe.has_gan and train.fit_all:
        yield "train.fit_all: a GAN is measured on the rows of a validation split, which it must not be trained on"
    if recipe.has_gan and split.folds:
        yield "split.folds: a GAN is measured on the rows of a validation split: set it to 0"
    if 0 < recipe.explore.rows < 10:
        yield "explore.rows must be 0 (all rows) or at least 10, which t-SNE requires"
    if train.schedule == "steps" and not train.steps:
        yield "train.schedule is steps, but train.steps is empty"
    if train.schedule == "exponential" and train.lr_gamma == 1:
        yield "train.schedule is exponential, but train.lr_gamma is 1, which changes nothing"
    transfer_models = [name for name in models if name in TRANSFER_MODELS]
    for name in transfer_models:
        if model.side < TRANSFER_MODELS[name]:
            yield f"model.side is {model.side}, but {name} requires at least {TRANSFER_MODELS[name]}"
    if transfer_models and model.pixels != "unit":
        yield f"model.pixels must be unit: {transfer_models[0]} has a normalization of its own"
    if transfer_models and model.frozen != "nothing":
        for name, is_changed in (
            ("augment", recipe.augment != Augment()),
            ("affine", recipe.affine != Affine()),
            ("predict.shifts", recipe.predict.shifts != Predict().shifts),
        ):
            if is_changed:
                yield f"{name} changes the images, whose features are computed once: set model.frozen to nothing"


def find_unused(recipe: Recipe) -> Iterator[str]:
    """Yield a message for each setting that differs from its default and has no effect because of another."""
    model, ensemble, train = recipe.model, recipe.ensemble, recipe.train
    models = ensemble.models or (model.name,)
    is_transfer = any(name in TRANSFER_MODELS for name in models)
    transfer = f"model.name is one of {', '.join(TRANSFER_MODELS)}"
    changed = {
        f"{section}.{name}"
        for section in ("gan", "generate", "model", "predict", "train")
        for name, value in getattr(recipe, section)
        if value != getattr(SECTIONS[section](), name)
    }
    if recipe.has_gan:
        sections = [f"[{name}]" for name in _WITHOUT_GAN if getattr(recipe, name) != SECTIONS[name]()]
        if sections:
            yield f"{', '.join(sections)}: no effect, since a recipe with gan.architecture trains no classifier"
    for name, condition, holds in (
        ("train.momentum", "train.optimizer is sgd", train.optimizer == "sgd"),
        ("train.lr_gamma", "train.schedule is exponential", train.schedule == "exponential"),
        ("train.steps", "train.schedule is steps", train.schedule == "steps"),
        ("train.muon_learning_rate", "train.optimizer is muon", train.optimizer == "muon"),
        ("predict.shift_margin", "predict.shifts contains several shifts", len(recipe.predict.shifts) > 1),
        ("train.ema_decay", "train.swa_fraction is more than 0", train.swa_fraction > 0),
        ("model.layers", "model.name is layers", "layers" in models),
        ("model.pretrained", transfer, is_transfer),
        ("model.side", transfer, is_transfer),
        ("model.frozen", transfer, is_transfer),
        ("model.weights_file", "model.pretrained is imagenet", model.pretrained == "imagenet"),
        ("model.dropout", "model.layers contains dropout", models != ("layers",) or "dropout" in model.layers),
        ("model.view", "ensemble.views is empty", not ensemble.views),
        *((name, "gan.architecture is set", recipe.has_gan) for name in changed if name.split(".")[0] in _WITH_GAN),
    ):
        if name in changed and not holds:
            yield f"{name} has an effect only if {condition}"
