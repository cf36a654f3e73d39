"""The entry of explore in the table of the extras: statistics and pictures of the data."""

from pipeline.workflow.stage import Stage

# Of the pictures, by file name, in the order in which the page shows them.
CAPTIONS = {
    "samples.png": "The first training images of each digit.",
    "counts.png": "The number of rows of each digit.",
    "means.png": "Mean and standard deviation of each digit's pixels: where its images agree and where they do not.",
    "greys.png": "Histograms of each digit's gray levels (most pixels are 0), and the mean amount of ink per digit.",
    "variance.png": "The fraction of the pixels' variance that the principal components explain.",
    "components.png": "The first 16 principal components as images.",
    "pca_2d.png": "The rows along the first two principal components.",
    "pca_3d.png": "The rows along the first three principal components.",
    "tsne.png": "t-SNE of the first 50 principal components. Neighbours are similar images; distances between groups "
    "mean little.",
    "tsne_each.png": "Each digit by itself. Spread: the root mean squared distance from the digit's mean.",
    "tsne_axes.png": "The distribution of each digit along the axes of t-SNE.",
    "look_alikes.png": "The nearest rows of different digits, by distance in the first 50 principal components.",
    "near_copies.png": "The nearest unequal pairs of two training rows, and of a test row and a training row.",
}

ENTRY = Stage(
    name="explore",
    run="pipeline.extras.explore.stage:run",
    folder="data/explore",
    settings=("explore",),
    inputs={"prepare": ("train_images.npy", "train_labels.npy", "test_images.npy")},
    outputs=("explore.json", "explore.html", "tsne.npy", "copies.csv", *CAPTIONS),
    on_demand=True,
    recipes="all",
)
