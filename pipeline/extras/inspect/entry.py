"""The entry of inspect in the table of the extras: pictures of a trained network."""

from pipeline.workflow.stage import Stage

# Captions of the pictures, by file name, in the order in which the page shows them.
TRAINING = {
    "contact_sheet.png": "The offline variants of an image of each digit.",
    "curves.png": "Loss and error by epoch.",
}
ERRORS = {
    "confusion.png": "Which digits are mistaken for which.",
    "errors.png": "The most confident wrong predictions.",
    "suspects.png": "The labels with the lowest predicted probability: the hardest rows, and labels that may be wrong.",
}
CALIBRATION = {
    "reliability.png": "Accuracy by confidence. On the line, they are equal. Above it, the predictions are "
    "underconfident, which is an effect of label smoothing. The lower panel shows the number of rows.",
}
NETWORK = {
    "features.png": "t-SNE of the same rows as pixels, and as inputs of the last layer before and after training. The "
    "titles show the accuracy of predicting a row from its five nearest neighbours, and the mean silhouette (1: digits "
    "are well separated; 0: they overlap).",
    "filters.png": "The weights of each output of the first layer as images, with one scale: red is positive, blue is "
    "negative. If the layer has an input for each of red, green and blue, they are drawn in these colours; gray is 0.",
    "last_layer.png": "The weights of each digit's output: red features are evidence for it, blue features against it.",
    "feature_maps.png": "The output of each layer for one image (at most 64 feature maps of a layer), down to the ten "
    "probabilities. Each layer has its own scale: red is positive and blue is negative; if no value is negative, black "
    "is the maximum.",
    "saliency.png": "Input gradient: more ink in red pixels raises the predicted digit's logit, and in blue pixels "
    "lowers it. The number in the corner is the largest absolute gradient. Occlusion: by how much the predicted "
    "digit's probability falls (red) or rises (blue) if the 5x5 pixels around a pixel are set to white. The number is "
    "the largest fall. Both are computed without shifted copies.",
    "weights.png": "The distribution of each layer's weights before and after training.",
}
RECORDED = {
    "weights_over_training.png": "The distribution of each layer's weights after each epoch, before any averaging of "
    "weights. The dotted line is the epoch that was kept.",
    "weights_moving.gif": "The same, animated. Each layer's density has its own scale.",
    "gradients.png": "The mean and the maximum of the absolute gradients of each layer's weights, over a hundred or "
    "more batches of each epoch (all batches, if there are fewer).",
}

ENTRY = Stage(
    name="inspect",
    run="pipeline.extras.inspect.stage:run",
    folder="data/runs/{name}/inspect",
    settings=("inspect",),
    inputs={
        "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy", "folds.npy"),
        "augment": ("contact_sheet.png",),
        "train": ("weights.safetensors", "record.json", "curves.png"),
        "evaluate": ("metrics.json", "probabilities.npy", "rows.npy", *ERRORS),
    },
    outputs=("inspect.json", "report.html", *NETWORK),
    optional_outputs=(*CALIBRATION, *RECORDED),
    code="pipeline.training.specs:inference_code",
    on_demand=True,
    uses_device=True,
)
