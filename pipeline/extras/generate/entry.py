"""The entry of generate in the table of the extras: a conditional GAN."""

from pipeline.workflow.stage import Stage

# Of the pictures, by file name, in the order in which the page shows them.
CAPTIONS = {
    "random.png": "Digits of random classes.",
    "by_class.png": "A row for each class. Equal images in a row are a sign of mode collapse.",
    "film.gif": "Images of the same noise after each epoch, with a column for each class.",
    "losses.png": "Means over an epoch. They show the balance of the two networks, not the quality of the images.",
    "nearest.png": "The training rows that are nearest in pixels. Equal images would be a sign of memorization.",
    "pca.png": "Real and generated digits along the first two principal components of their pixels.",
    "tsne.png": "t-SNE of the first 50 principal components. Regions with only dots contain digits that the "
    "generator does not produce; those with only crosses, generated digits that are unlike real ones.",
}

ENTRY = Stage(
    name="generate",
    run="pipeline.extras.generate.stage:run",
    folder="data/generated/{name}",
    settings=("augment", "gan", "generate", "split"),
    inputs={
        "download": (),
        "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy"),
        "augment": ("images.npy", "labels.npy"),
    },
    outputs=("samples.npy", "labels.npy", "generate.json", "generate.html", *CAPTIONS),
    code="pipeline.extras.generate.judge:code",
    on_demand=True,
    ensures_inputs=True,
    recipes="gans",
    uses_device=True,
    check="pipeline.extras.generate.training:check_memory",
    resumes=True,
    stale_reason="pipeline.extras.generate.judge:why_stale",
)
