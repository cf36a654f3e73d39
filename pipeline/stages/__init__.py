"""The stages, each declared in the module of its name, in the order in which they run."""

from pipeline.stages import (
    augment,
    compare,
    download,
    evaluate,
    explore,
    inspect,
    notebook,
    predict,
    prepare,
    submit,
    train,
)

STAGES = {
    module.STAGE.name: module.STAGE
    for module in (download, prepare, augment, train, evaluate, predict, explore, inspect, notebook, submit)
}
# A comparison trains its networks itself.
COMPARISON_STAGES = {name: STAGES[name] for name in ("download", "prepare", "augment")} | {"compare": compare.STAGE}
