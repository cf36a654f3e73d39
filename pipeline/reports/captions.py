"""Captions of the pictures, by file name, in the order in which the pages show them."""

DATA = {
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
GENERATED = {
    "random.png": "Digits of random classes.",
    "by_class.png": "A row for each class. Equal images in a row are a sign of mode collapse.",
    "film.gif": "Images of the same noise after each epoch, with a column for each class.",
    "losses.png": "Means over an epoch. They show the balance of the two networks, not the quality of the images.",
    "nearest.png": "The training rows that are nearest in pixels. Equal images would be a sign of memorization.",
    "pca.png": "Real and generated digits along the first two principal components of their pixels.",
    "tsne.png": "t-SNE of the first 50 principal components. Regions with only dots contain digits that the "
    "generator does not produce; those with only crosses, generated digits that are unlike real ones.",
}


def make_heading(name: str) -> str:
    """A picture's heading, from its file name."""
    text = name.rpartition(".")[0].replace("_", " ").replace("tsne", "t-SNE").replace("pca", "PCA")
    return text if text.startswith("t-") else text[0].upper() + text[1:]
