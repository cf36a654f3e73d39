"""The method without the pipeline around it: from the competition's CSVs to `submission.csv`, with equal predictions.

    python -m examples.by_hand FOLDER [RECIPE]

FOLDER contains train.csv and test.csv; submission.csv is written to the current folder. RECIPE is a recipe that trains
a single network and holds out validation rows, such as dropout_cnn (the default) or ladder/lenet.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from pipeline.dataset.files import TableFile
from pipeline.dataset.splits import split_rows
from pipeline.dataset.tables import encode_submission, read_test_table, read_train_table
from pipeline.dataset.transforms import list_variants, transform_images
from pipeline.dataset.views import apply_view
from pipeline.metrics.classification import wilson_interval
from pipeline.nn.inference import predict_probabilities
from pipeline.nn.initialization import make_initial_network
from pipeline.nn.networks import LoadedNetwork
from pipeline.nn.precision import choose_precision
from pipeline.nn.trainer import FitOptions, LabelledImages, fit
from pipeline.recipes.config import load_recipe
from pipeline.recipes.settings import Recipe


def classify(folder: Path, recipe: Recipe, device: str) -> np.ndarray:
    """Train on train.csv and return the most probable digit of each row of test.csv, as uint8."""
    # Read and split.
    images, labels = read_train_table(TableFile(folder / "train.csv"))
    training_rows, validation_rows = split_rows(labels, recipe.split)

    # Augment: each variant is a transformed copy of all training rows, the first one the originals.
    variants = list_variants(recipe.augment)
    batches = (batch for variant in variants for batch in transform_images(images[training_rows], variant))
    augmented = np.concatenate(list(batches))
    training = to_tensors(augmented, np.tile(labels[training_rows], len(variants)), recipe, device)
    validation = to_tensors(images[validation_rows], labels[validation_rows], recipe, device)

    # Train; the weights of the epoch with the lowest validation loss are kept, or those of the last one.
    model = recipe.model
    train = recipe.train.replace(precision=choose_precision(recipe.train.precision, device))
    network = make_initial_network(model, train.seed, None, torch.from_numpy(augmented))
    result = fit(network, training, validation, FitOptions(train, recipe.affine, device))
    network.load_state_dict(result.state_dict)

    # Evaluate.
    trained = LoadedNetwork(network, {"model": model.model_dump(), "precision": train.precision})
    held_out = torch.from_numpy(images[validation_rows])
    predictions = predict_probabilities(trained, held_out, recipe.predict, device).argmax(1)
    n_correct = int((predictions == labels[validation_rows]).sum())
    low, high = wilson_interval(n_correct, len(validation_rows))
    print(confusion_matrix(labels[validation_rows], predictions))
    print(f"validation accuracy {n_correct / len(validation_rows):.4f} (95% interval {low:.4f} to {high:.4f})")

    # Predict.
    test_images = torch.from_numpy(read_test_table(TableFile(folder / "test.csv")))
    digits: np.ndarray = predict_probabilities(trained, test_images, recipe.predict, device).argmax(1).astype(np.uint8)
    return digits


def to_tensors(images: np.ndarray, labels: np.ndarray, recipe: Recipe, device: str) -> LabelledImages:
    """Images (n, 28, 28) with the view of the recipe's model, and their labels, on the device."""
    viewed = apply_view(torch.from_numpy(images).to(device), recipe.model.view)
    return LabelledImages(viewed, torch.from_numpy(labels.astype(np.int64)).to(device))


if __name__ == "__main__":
    name = sys.argv[2] if len(sys.argv) > 2 else "dropout_cnn"
    classified = classify(Path(sys.argv[1]), load_recipe(name), "cuda" if torch.cuda.is_available() else "cpu")
    Path("submission.csv").write_bytes(encode_submission(classified))
