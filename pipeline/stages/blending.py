"""Blends: calls in which `predict` means the mean of several recipes' probabilities (`--recipe a,b,c`)."""

import dataclasses

from pipeline import artifacts
from pipeline.stages import STAGES, engine


def call_for(recipes, workspace, **about):
    """The call in which `predict` means the blend of `recipes`. Raises StageError where they cannot be blended."""
    name = "+".join(one.name for one in recipes)
    if len({one.name for one in recipes}) < len(recipes):
        raise engine.StageError(f"--recipe: a recipe stands twice in {name}; each counts once, and the same")
    if len({one.split for one in recipes}) > 1:
        raise engine.StageError(f"{name}: recipes with different splits cannot be blended: no row is held out of all")
    predict = dataclasses.replace(
        STAGES["predict"],
        module="blend",
        folder=lambda recipe: f"submissions/{recipe.name}",
        reads=(),
        needs={"download": STAGES["predict"].needs["download"]},
        others=lambda call: _inputs(recipes, call),
    )
    stages = {"download": STAGES["download"], "predict": predict, "submit": STAGES["submit"]}
    recipe = dataclasses.replace(recipes[0], name=name, about=f"the mean of {len(recipes)} recipes' probabilities")
    return engine.Call(stages, workspace, recipe, **about)


def require(recipes, call):
    """Raise StageError where one of the recipes has no fresh submission and evaluation."""
    known = {}
    for one in recipes:
        own = dataclasses.replace(call, stages=STAGES, recipe=one)
        for stage in ("evaluate", "predict"):
            how, why = engine.state(own, STAGES[stage], known.setdefault(one.name, {}))
            if how != "fresh":
                reason = f" ({why})" if why else ""
                raise engine.StageError(
                    f"{stage} of {one.name} is {how}{reason}: run `--stage all --recipe {one.file or one.name}` first"
                )


def _inputs(recipes, call):
    """By input name: the folder of a finished result, and the output in it."""
    found = {}
    for one in recipes:
        own = dataclasses.replace(call, stages=STAGES, recipe=one)
        folders = {name: artifacts.standing(own.place(STAGES[name])) for name in ("prepare", "evaluate", "predict")}
        found[f"{one.name}/probabilities.npy"] = (folders["predict"], "probabilities.npy")
        found[f"{one.name}/metrics.json"] = (folders["evaluate"], "metrics.json")
        found[f"{one.name}/held_out.npy"] = (folders["evaluate"], "probabilities.npy")
        found["validation_rows.npy"] = (folders["prepare"], "validation_rows.npy")
        found["train_labels.npy"] = (folders["prepare"], "../../arrays/train_labels.npy")
    return found
