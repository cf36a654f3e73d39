"""Blends: calls in which `predict` means the mean of several recipes' probabilities (`--recipe a,b,c`)."""

import dataclasses
import shlex

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
        check=lambda folder, data, manifest: _unfinished(recipes, call),
        module="blend",
        folder=lambda recipe: f"submissions/{recipe.name}",
        reads=(),
        needs={"download": STAGES["predict"].needs["download"]},
        others=lambda call: _inputs(recipes, call),
    )
    stages = {"download": STAGES["download"], "predict": predict, "submit": STAGES["submit"]}
    recipe = dataclasses.replace(recipes[0], name=name, about=f"the mean of {len(recipes)} recipes' probabilities")
    call = engine.Call(stages, workspace, recipe, **about)
    return call


def require(recipes, call):
    """Raise StageError where one of the recipes has no fresh submission and evaluation."""
    why = _unfinished(recipes, call)
    if why:
        raise engine.StageError(why)


def _unfinished(recipes, call):
    """Which recipe has no fresh submission and evaluation, why, and what to do; "" where all have."""
    for one in recipes:
        own, known = dataclasses.replace(call, stages=STAGES, recipe=one), {}
        for stage in ("evaluate", "predict"):
            how, why = engine.state(own, STAGES[stage], known)
            if how != "fresh":
                reason = f" ({why})" if why else ""
                given = shlex.quote(one.file or one.name)
                return f"{stage} of {one.name} is {how}{reason}: run `--stage all --recipe {given}{call.options}` first"
    return ""


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
