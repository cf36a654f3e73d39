"""The stages, each declared in the module of its name, in the order in which they run."""

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

STAGES = {
    module.STAGE.name: module.STAGE
    for module in (
        *(download, prepare, augment, train, evaluate, predict),
        *(explore, inspect, recognize, export, generate, notebook, submit),
    )
}
# A comparison trains its networks itself.
COMPARISON_STAGES = {name: STAGES[name] for name in ("download", "prepare", "augment")} | {"compare": compare.STAGE}
