"""The stages, each declared in the module of its name, in the order in which they run."""

from pipeline.declarations import Stage
from pipeline.stages import (
    augment,
    compare,
    download,
    evaluate,
    explore,
    export,
    generate,
    inspect,
    notebook,
    predict,
    prepare,
    recognize,
    submit,
    train,
)

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (
        *(download, prepare, augment, train, evaluate, predict),
        *(explore, inspect, recognize, export, generate, notebook, submit),
    )
}
# A comparison trains its networks itself.
COMPARISON_STAGES = {name: STAGES[name] for name in compare.STAGE.inputs} | {"compare": compare.STAGE}
ALL_STAGES = STAGES | COMPARISON_STAGES
