"""Three small stages for tests of the engine: what a stage leaves is a text that says what it was made of.

`take` copies `in.txt`; `left` (reads train.seed) and `right` (reads predict) write their settings and what they read.
So the content of the files alone says whether a result is fresh: an oracle that knows nothing of manifests.
"""

import sys
from types import ModuleType

from pipeline import artifacts, recipe
from pipeline.stages import engine
from pipeline.stages.engine import Stage

OUTPUTS = {"take": "data/take/copy.txt", "left": "data/left/left.txt", "right": "data/right/right.txt"}


def _changed(folder, data, manifest):
    workspace = folder.parent.parent
    return "" if artifacts.sha256(workspace / "in.txt") == manifest["inputs"]["in.txt"] else "in.txt is another"


def _take(job):
    source = job.call.workspace / "in.txt"
    job.key["inputs"] = {"in.txt": artifacts.sha256(source)}
    partial = artifacts.begin(job.place)
    artifacts.write(partial / "copy.txt", source.read_bytes())
    artifacts.write_manifest(partial, job.key, ["copy.txt"], {}, job.context)
    artifacts.publish(job.place)


def _left(job):
    read = job.paths["take/copy.txt"].read_text()
    artifacts.write(job.folder / "left.txt", left(job.settings.train.seed, read).encode())
    return {"length": len(read)}


def _right(job):
    read = [job.paths[name].read_text() for name in ("left/left.txt", "take/copy.txt")]
    artifacts.write_json(job.folder / "halfway.json", {})  # as a checkpoint: goes when it has served
    artifacts.write(job.folder / "right.txt", right(job.settings.predict.shifts, *read).encode())
    return {}


def left(seed, copied):
    return f"left({seed}, {copied})"


def right(shifts, from_left, copied):
    return f"right({shifts}, {from_left}, {copied})"


for name, run in (("take", _take), ("left", _left), ("right", _right)):
    module = ModuleType(f"pipeline.stages.toy_{name}")
    module.run, module.space = run, lambda job: 0
    sys.modules[module.__name__] = module

STAGES = {
    "take": Stage("take", 1, lambda recipe: "data/take", check=_changed, publishes_itself=True, module="toy_take"),
    "left": Stage(
        "left",
        1,
        lambda recipe: "data/left",
        reads=("train.seed",),
        needs={"take": ("copy.txt",)},
        outputs=("left.txt",),
        module="toy_left",
    ),
    "right": Stage(
        "right",
        1,
        lambda recipe: "data/right",
        reads=("predict",),
        needs={"left": ("left.txt",), "take": ("copy.txt",)},
        outputs=("right.txt",),
        resumes=True,
        module="toy_right",
    ),
}


def call(workspace, seed=0, shift=0, force=False):
    """A call of the engine with these settings, that says nothing."""
    settings = (f"train.seed={seed}", f"predict.shifts=[[{shift}, 0]]")
    made = recipe.load("quick", settings)
    return engine.Call(STAGES, workspace, made, force=force, say=lambda text: None)


def run_all(call):
    """What `--stage all` does; returns the names of the stages that ran."""
    engine.restore_all(call)
    ran = []
    for stage in call.stages.values():
        if engine.state(call, stage)[0] != "fresh" or call.force:
            engine.run_stage(call, stage)
            ran.append(stage.name)
    return ran


def contents(workspace):
    """The text that stands for each stage, or None; where a publishing was cut off, the one that still counts."""
    found = {}
    for name, output in OUTPUTS.items():
        place = (workspace / output).parent
        try:
            found[name] = (artifacts.standing(place) / (workspace / output).name).read_text()
        except OSError:
            found[name] = None
    return found


def expected(workspace, seed, shift):
    """The texts of all three stages, were they all fresh."""
    copied = (workspace / "in.txt").read_text()
    from_left = left(seed, copied)
    return {"take": copied, "left": from_left, "right": right(((shift, 0),), from_left, copied)}
