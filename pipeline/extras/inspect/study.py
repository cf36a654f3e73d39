"""All measurements of a network that `inspect` shows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.dataset.views import apply_view
from pipeline.extras.inspect import internals
from pipeline.metrics import embedding
from pipeline.nn.inference import last_layer_inputs, predict_probabilities
from pipeline.nn.networks import LoadedNetwork
from pipeline.recipes.settings import Inspect, Model, Predict
from pipeline.shapes import Float, UInt8
from pipeline.training.held_out import TrainingRows


class Embedding(NamedTuple):
    """t-SNE of rows, and how well it separates the digits."""

    points: Float[np.ndarray, "n 2"]
    neighbour_accuracy: float
    silhouette: float | None


class NetworkStudy:
    """Measures a network on the rows of train.csv that it was not trained on, or on all rows if there are none.

    record: the rows of `nn.recorder.Recorder`, or [].
    on_progress: called with the fraction that is done, up to 1.
    """

    def __init__(
        self,
        loaded: LoadedNetwork,
        training_rows: TrainingRows,
        inspect: Inspect,
        device: str,
        record: Sequence[Mapping[str, Any]],
        on_progress: Callable[[float], None],
    ) -> None:
        network, metadata = loaded.network, loaded.metadata
        view = metadata["model"]["view"]
        rows, self.rows_are = np.flatnonzero(training_rows.unseen_by(metadata)), "validation rows"
        if not len(rows):
            rows, self.rows_are = np.arange(len(training_rows.labels)), "training rows (none was held out)"
        images, self.labels = torch.from_numpy(training_rows.images[rows]), training_rows.labels[rows]
        self.probabilities = predict_probabilities(loaded, images, Predict(), device, progress_bar=False)
        images = apply_view(images, view)
        self.chosen_on_these_rows = metadata["checkpoint_selection"] == "best"
        self.kept_epoch = metadata["epoch"]

        untrained = internals.make_untrained(network, Model(**metadata["model"]), metadata["seed"], device)
        n_rows = min(inspect.rows, len(rows))
        self.embedded_labels: UInt8[np.ndarray, " m"] = self.labels[:n_rows]
        spaces = {
            "raw pixels": embedding.flatten_pixels(training_rows.images[rows[:n_rows]]),
            "untrained network": last_layer_inputs(untrained, images[:n_rows]),
            "trained network": last_layer_inputs(network, images[:n_rows]),
        }
        self.embeddings = {}
        for number, (name, values) in enumerate(spaces.items()):

            def on_tsne_progress(fraction: float, number: int = number) -> None:
                on_progress(0.2 * (number + fraction))

            _, coordinates = embedding.fit_pca(values)
            points = embedding.tsne(coordinates, inspect.seed, on_tsne_progress)
            accuracy = embedding.neighbour_accuracy(points, self.embedded_labels)
            self.embeddings[name] = Embedding(points, accuracy, embedding.silhouette(points, self.embedded_labels))

        row = inspect.image - 1
        image = apply_view(torch.from_numpy(training_rows.images[[row]]), view)[0]
        self.image, self.image_label = image.numpy(), int(training_rows.labels[row])
        self.image_row, self.image_is = inspect.image, self.rows_are if row in rows else "training rows"
        self.layer_outputs = internals.layer_outputs(network, image)
        self.image_probabilities = torch.from_numpy(self.layer_outputs[-1][1]).double().softmax(0).numpy()

        self.cases = {}
        for name, cases in internals.select_cases(self.probabilities, self.labels).items():
            saliencies = internals.saliency(network, images[cases], self.labels[cases], self.probabilities[cases])
            self.cases[name] = list(zip((rows[cases] + 1).tolist(), saliencies, strict=True))
        on_progress(0.9)

        before, after = internals.layer_weights(untrained), internals.layer_weights(network)
        self.weights = [(description, before[name][1], weights) for name, (description, weights) in after.items()]
        self.first_layer = internals.first_layer_filters(network)
        self.last_layer = internals.last_layer_weights(network)
        self.recorded_epochs = [int(row["epoch"]) for row in record]
        descriptions = {name: description for name, (description, _) in after.items()}
        self.layer_histories = internals.layer_histories(record, descriptions) if record else []
        on_progress(1.0)

    def numbers(self) -> dict[str, Any]:
        """The results as plain numbers."""
        numbers = {
            "rows": len(self.labels),
            "rows_are": self.rows_are,
            "chosen_on_these_rows": self.chosen_on_these_rows,
            "accuracy": float(np.mean(self.probabilities.argmax(1) == self.labels)),
            "tsne": {"rows": len(self.embedded_labels)}
            | {
                name: {"neighbour_accuracy": result.neighbour_accuracy, "silhouette": result.silhouette}
                for name, result in self.embeddings.items()
            },
            "image": {
                "row": self.image_row,
                "label": self.image_label,
                "probabilities": self.image_probabilities.tolist(),
            },
            "cases": {name: [row for row, _ in cases] for name, cases in self.cases.items()},
            "weights": {
                description: {"count": len(after), "std": float(after.std()), "std_untrained": float(before.std())}
                for description, before, after in self.weights
            },
        }
        return numbers | ({"recorded_epochs": self.recorded_epochs} if self.recorded_epochs else {})
