"""The entry of export in the table of the extras: a network as an ONNX file, with a model card and a page."""

from pipeline.workflow.stage import Stage

ENTRY = Stage(
    name="export",
    run="pipeline.extras.export.stage:run",
    folder="data/runs/{name}/export",
    settings=("measured", "predict"),
    inputs={
        "download": (),
        "prepare": ("train_images.npy",),
        "train": ("weights.safetensors",),
        "evaluate": ("metrics.json", "errors.png", "confusion.png"),
    },
    outputs=("model.onnx", "MODEL_CARD.md"),
    optional_outputs=("demo.html", "errors.png", "confusion.png"),
    code="pipeline.training.specs:inference_code",
    on_demand=True,
)
