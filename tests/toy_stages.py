"""Three small stages for tests of the workflow; the output of each is a text that says what it was made from.

`take` copies `in.txt`; `left` (reads train.seed) and `right` (reads predict) write their settings and their inputs. So
the content of the files alone says whether a result is fresh: an oracle that knows nothing about manifests.
"""

from pipeline.recipes import config
from pipeline.workflow import publishing, store
from pipeline.workflow.engine import Workflow
from pipeline.workflow.log import RunLog
from pipeline.workflow.stage import Stage
from pipeline.workflow.store import FORMAT


class Silent(RunLog):
    def say(self, message):
        pass


OUTPUTS = {"take": "data/take/copy.txt", "left": "data/left/left.txt", "right": "data/right/right.txt"}


def _stale_reason(workflow, manifest):
    same = store.sha256(workflow.workspace / "in.txt") == manifest["inputs"]["in.txt"]
    return "" if same else "in.txt has changed"


def _take(context):
    source = context.run.workspace / "in.txt"
    key = {"format": FORMAT, "stage": "take", "inputs": {"in.txt": store.sha256(source)}}
    staging = publishing.create_staging_dir(context.published_dir)
    store.write(staging / "copy.txt", source.read_bytes())
    store.write_manifest(staging, key, ["copy.txt"], {}, context.environment)
    publishing.publish(context.published_dir)
    return {}


def _left(context):
    copied = context.files["take/copy.txt"].read_text()
    store.write(context.output_dir / "left.txt", left(context.recipe.train.seed, copied).encode())
    return {"length": len(copied)}


def _right(context):
    texts = [context.files[name].read_text() for name in ("left/left.txt", "take/copy.txt")]
    store.write_json(context.output_dir / "intermediate.json", {})  # deleted when the stage is published
    store.write(context.output_dir / "right.txt", right(context.recipe.predict.shifts, *texts).encode())
    return {}


def left(seed, copied):
    return f"left({seed}, {copied})"


def right(shifts, from_left, copied):
    return f"right({shifts}, {from_left}, {copied})"


STAGES = {
    "take": Stage(
        "take",
        "tests.toy_stages:_take",
        "data/take",
        stale_reason="tests.toy_stages:_stale_reason",
        publishes_itself=True,
    ),
    "left": Stage(
        "left",
        "tests.toy_stages:_left",
        "data/left",
        settings=("train.seed",),
        inputs={"take": ("copy.txt",)},
        outputs=("left.txt",),
    ),
    "right": Stage(
        "right",
        "tests.toy_stages:_right",
        "data/right",
        settings=("predict",),
        inputs={"left": ("left.txt",), "take": ("copy.txt",)},
        outputs=("right.txt",),
        resumes=True,
    ),
}


def make_workflow(workspace, seed=0, shift=0, force=False):
    """A workflow with these settings that prints nothing."""
    recipe = config.load_recipe("quick", (f"train.seed={seed}", f"predict.shifts=[[{shift}, 0]]"))
    return Workflow(STAGES, workspace, recipe, force=force, log=Silent())


def run_all(workflow):
    """What `--stage all` does; returns the names of the stages that ran."""
    workflow.restore()
    names = []
    for stage in workflow.stages.values():
        if not workflow.state(stage).fresh or workflow.force:
            workflow.run_stage(stage)
            names.append(stage.name)
    return names


def contents(workspace):
    """The output of each stage, or None; after an interrupted publish, the output that still counts."""
    texts = {}
    for name, output in OUTPUTS.items():
        path = workspace / output
        try:
            texts[name] = (publishing.published_dir(path.parent) / path.name).read_text()
        except OSError:
            texts[name] = None
    return texts


def expected(workspace, seed, shift):
    """The outputs of all three stages when all of them are fresh."""
    copied = (workspace / "in.txt").read_text()
    from_left = left(seed, copied)
    return {"take": copied, "left": from_left, "right": right(((shift, 0),), from_left, copied)}
