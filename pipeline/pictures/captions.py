"""What is to be seen in each picture, by its file's name, in the order in which pages show them."""

DATA = {
    "samples.png": "The first training images of each digit.",
    "counts.png": "How many rows each digit has.",
    "means.png": "The mean image and the deviation image of each digit: where pens agree, and where they do not.",
    "greys.png": "How often each grey stands in a digit's pixels, of which most are 0, and how much ink a digit takes.",
    "variance.png": "How much of the pixels' variance the first principal components explain.",
    "components.png": "The first 16 principal components as images.",
    "pca_2d.png": "The rows along the first two principal components.",
    "pca_3d.png": "The rows along the first three principal components.",
    "tsne.png": "t-SNE of the first 50 components: neighbours stay neighbours, distances between groups mean little.",
    "tsne_each.png": "The same, a digit at a time. Spread: the root mean squared distance from the digit's middle.",
    "tsne_axes.png": "How each digit's rows are distributed along the axes of t-SNE.",
    "look_alikes.png": "Rows of different digits that are nearest to each other (in the first 50 components).",
    "near_copies.png": "The nearest pairs that are not equal: two training rows, and a test row and a training row.",
}
TRAINING = {
    "contact_sheet.png": "What offline augmentation makes of an image of each digit.",
    "curves.png": "Loss and error from epoch to epoch.",
}
ANSWERS = {
    "confusion.png": "Which digits are taken for which.",
    "mistakes.png": "The wrong answers that the recipe was surest of.",
    "suspects.png": "The labels that it finds least likely: its hardest rows, and labels that may be wrong.",
}
CALIBRATION = {
    "reliability.png": "Whether answers are right as often as they are confident: on the line, they are; above it, "
    "more often, as label smoothing makes them. Below, how many rows have which confidence.",
}
NETWORK = {
    "features.png": "t-SNE of the same rows three times: as pixels, as what the last layer is given before training, "
    "and after. Written beside each: how many points have mostly their own digit among their five nearest others, and "
    "the mean silhouette (1: each digit by itself; 0: digits overlap).",
    "filters.png": "Each output of the first layer, by the weights it gives to pixels: red adds, blue takes away; "
    "one scale for all.",
    "last_layer.png": "What each digit's output takes from the features: red speaks for the digit, blue against it.",
    "feature_maps.png": "One image's way through the network, layer by layer, down to the ten probabilities. Each "
    "layer has a scale of its own: red above zero and blue below, or, where nothing is below, black for the greatest.",
    "looks.png": "Input gradient: which pixels, with more ink, would raise (red) or lower (blue) the answer's output; "
    "its greatest is the number in the corner. Occlusion: how far the answer's probability falls (red) or rises (blue) "
    "where a square of 5x5 pixels around a place is painted white; the number is its greatest fall. Seen without "
    "shifted copies.",
    "weights.png": "How the weights of each layer are spread before and after training.",
}
OVER_TRAINING = {
    "weights_over_training.png": "How that came about, epoch by epoch: the weights that were trained, before any "
    "averaging; the dotted line is the epoch that was kept.",
    "weights_moving.gif": "The same, moving; each layer's density has a scale of its own.",
    "gradients.png": "The gradients of each layer: the mean over its weights, and the greatest, of a hundred "
    "batches of an epoch or more (of all, where there are fewer).",
}


def heading(name):
    """A picture's heading, from its file's name."""
    words = name.rpartition(".")[0].replace("_", " ").replace("tsne", "t-SNE").replace("pca", "PCA")
    return words if words.startswith("t-") else words[0].upper() + words[1:]
