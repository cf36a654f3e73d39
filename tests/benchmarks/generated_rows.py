"""Do generated digits help? Trains `quick` with and without them on the rows that the generator was trained on.

    python run_pipeline.py --stage generate --recipe gan/better --data digit-recognizer.zip --workspace DIR
    python -m tests.benchmarks.generated_rows --workspace DIR

Both are measured on the validation rows of the same split, which neither the generator nor the networks saw.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from pipeline.cli.workflows import STAGES
from pipeline.extras.compare.statistics import compare_recipes
from pipeline.nn import trainer
from pipeline.nn.inference import predict_probabilities
from pipeline.nn.initialization import make_initial_network
from pipeline.nn.networks import LoadedNetwork
from pipeline.nn.precision import choose_precision
from pipeline.nn.trainer import FitOptions, LabelledImages
from pipeline.recipes import config
from pipeline.workflow.engine import Workflow


def load(folder, names):
    return [np.load(folder / f"{name}.npy") for name in names]


def train_and_predict(recipe, images, labels, validation_images, seed, device):
    """The predictions of a network for the validation images."""
    precision = choose_precision(recipe.train.precision, device)
    network = make_initial_network(recipe.model, seed)
    training = LabelledImages(*(torch.from_numpy(array).to(device) for array in (images, labels.astype(np.int64))))
    train = recipe.train.replace(seed=seed, precision=precision)
    options = FitOptions(train, recipe.affine, device, progress_bar=False)
    network.load_state_dict(trainer.fit(network, training, None, options).state_dict)
    metadata = {"model": recipe.model.model_dump(mode="json"), "precision": precision}
    loaded = LoadedNetwork(network, metadata)
    return predict_probabilities(loaded, torch.from_numpy(validation_images), recipe.predict, device).argmax(1)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--recipe", default="gan/better")
    parser.add_argument("--rows", type=int, default=10_000, help="generated rows that are added")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], help="a setting of quick")
    options = parser.parse_args(arguments)
    workflow = Workflow(STAGES, options.workspace, config.load_recipe(options.recipe))
    samples, sample_labels = load(workflow.published_dir("generate"), ("samples", "labels"))
    images, labels = load(options.workspace / "data/prepared/arrays", ("train_images", "train_labels"))
    training_rows, validation_rows = load(workflow.published_dir("prepare"), ("train_rows", "validation_rows"))
    recipe = config.load_recipe("quick", options.set)
    images, labels, validation_images, validation_labels = (
        *(array[training_rows] for array in (images, labels)),
        *(array[validation_rows] for array in (images, labels)),
    )
    sides = {
        "without": (images, labels),
        "with": tuple(
            np.concatenate([real, generated[: options.rows]])
            for real, generated in ((images, samples), (labels, sample_labels))
        ),
    }
    correct = {name: [] for name in sides}
    for seed in range(options.seeds):
        for name, arrays in sides.items():
            predictions = train_and_predict(recipe, *arrays, validation_images, seed, options.device)
            correct[name].append(predictions == validation_labels)
            print(f"seed {seed}, {name}: {correct[name][-1].mean():.4f}", flush=True)
    step = compare_recipes(*(np.stack(values) for values in correct.values()))
    accuracies = {name: [float(value.mean()) for value in values] for name, values in correct.items()}
    result = {
        "training_rows": len(images),
        "generated_rows": len(sides["with"][1]) - len(images),
        "validation_rows": len(validation_labels),
        **{name: {"mean": np.mean(values), "std": np.std(values, ddof=1)} for name, values in accuracies.items()},
        "difference": step.difference,
        "interval_95": [step.low, step.high],
        "p_value": step.p_value,
    }
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
