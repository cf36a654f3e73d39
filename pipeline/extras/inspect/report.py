"""The pictures of a network, and the page with all pictures of its recipe."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.extras.inspect import figures
from pipeline.extras.inspect.entry import CALIBRATION, ERRORS, NETWORK, RECORDED, TRAINING
from pipeline.extras.inspect.study import NetworkStudy
from pipeline.metrics.classification import Calibration
from pipeline.recipes.settings import Recipe
from pipeline.reports import page


def draw(study: NetworkStudy) -> dict[str, bytes]:
    """The pictures by file name."""
    panels = []
    for name, result in study.embeddings.items():
        title = f"{name}\nneighbour accuracy {result.neighbour_accuracy:.1%}"
        title += "" if result.silhouette is None else f", silhouette {result.silhouette:.2f}"
        panels.append((title, result.points))
    probabilities = study.image_probabilities
    image_title = (
        f"Row {study.image_row} of train.csv, one of the {study.image_is}: label {study.image_label}, "
        f"prediction {probabilities.argmax()}"
    )
    pictures = {
        "features.png": figures.features(panels, study.embedded_labels),
        "filters.png": figures.filters(study.first_layer),
        "last_layer.png": figures.last_layer(study.last_layer),
        "feature_maps.png": figures.feature_maps(study.image, study.layer_outputs, probabilities, image_title),
        "saliency.png": figures.saliency(study.cases),
        "weights.png": figures.weights(study.weights),
    }
    if layers := study.layer_histories:
        epochs = study.recorded_epochs
        epochs_with_gradients = epochs[-len(layers[0].gradient_means) :]
        pictures |= {
            "weights_over_training.png": figures.weights_over_training(epochs, layers, study.kept_epoch),
            "weights_moving.gif": figures.weights_animated(epochs, layers),
            "gradients.png": figures.gradients(epochs_with_gradients, layers),
        }
    return pictures


def draw_calibration(calibration: Calibration) -> dict[str, bytes]:
    """The picture of the calibration of all networks, by file name."""
    title = f"Calibration: expected error {calibration.error:.2%} on {calibration.rows.sum():,} held-out rows"
    return {"reliability.png": figures.reliability(calibration, title)}


def summarize(numbers: Mapping[str, Any]) -> list[str]:
    """Sentences on a network, from the content of `inspect.json`."""
    subject, alone = "Accuracy", ""
    if numbers["network"]:
        subject, alone = f"Network {numbers['network']}: accuracy", "alone and "
    chosen = "; its epoch was chosen on these rows" if numbers["chosen_on_these_rows"] else ""
    rows, tsne = f"{numbers['rows']:,} {numbers['rows_are']}", numbers["tsne"]
    accuracies = ", ".join(
        f"{name} {values['neighbour_accuracy']:.1%}" for name, values in tsne.items() if name != "rows"
    )
    sentences = [
        f"{subject} {numbers['accuracy']:.2%} on {rows}, {alone}without shifted copies{chosen}.",
        f"In t-SNE of {tsne['rows']:,} rows, the nearest-neighbour accuracies are: {accuracies}.",
    ]
    if len(numbers["weights"]) == 1:
        sentences.append("The network has one layer, whose inputs are the pixels, so the last two are the same.")
    first_epoch = numbers.get("recorded_epochs", [0])[0]
    if first_epoch:
        sentences.append(f"Recorded from epoch {first_epoch} on: the training started without train.record.")
    return sentences


def render(
    recipe: Recipe,
    pictures: Mapping[str, bytes],
    numbers: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    training: Mapping[str, Any],
    why_no_record: str,
    about_data: str,
) -> bytes:
    """The page.

    pictures: of all stages, by file name.
    numbers, evaluation: the content of `inspect.json` and of `metrics.json`.
    training: the manifest of the stage train.
    why_no_record: shown if there are no pictures of recorded weights and gradients.
    about_data: HTML about the pictures of the data.
    """

    def show(captions: Mapping[str, str]) -> list[str]:
        available = {name: caption for name, caption in captions.items() if name in pictures}
        return [page.captioned_picture(name, pictures[name], caption, 3) for name, caption in available.items()]

    parts = [
        page.paragraph(recipe.about),
        page.table(("", ""), _overview(numbers, evaluation, training)),
        page.heading("Errors"),
        *(show(ERRORS) if evaluation["rows"] else [page.paragraph(f"None: {evaluation['why_none']}.")]),
        *show(CALIBRATION),
        page.heading("Network"),
        *(page.paragraph(sentence) for sentence in summarize(numbers)),
        *show(NETWORK),
        page.heading("Training"),
        *show(TRAINING),
        *(show(RECORDED) or [page.paragraph(why_no_record)]),
        page.heading("Data"),
        about_data,
        page.heading("Settings"),
        page.table(("setting", "value"), [(name, str(value)) for name, value in training.get("settings", {}).items()]),
    ]
    return page.render(recipe.name, parts)


def _overview(
    numbers: Mapping[str, Any], evaluation: Mapping[str, Any], training: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """The rows of the first table."""
    if evaluation["rows"]:
        low, high = evaluation["interval_95"]
        chosen = (
            " (slightly optimistic: the epoch was chosen on these rows)" if evaluation["chosen_on_these_rows"] else ""
        )
        yield "validation accuracy", f"{evaluation['accuracy']:.4f}{chosen}"
        yield "95% interval", f"{low:.4f} to {high:.4f}"
        yield "measured on", evaluation["rests_on"]
        yield "errors", f"{evaluation['rows'] - evaluation['n_correct']:,} of {evaluation['rows']:,}"
    networks = training["numbers"].get("networks", ())
    if len(networks) == 1:
        yield "parameters", f"{networks[0].get('parameters', 0):,}"
        yield "kept epoch", str(networks[0].get("kept_epoch", ""))
        yield "precision", networks[0].get("precision", "")
    if "calibration_error" in numbers:
        yield "expected calibration error", f"{numbers['calibration_error']:.2%}"
    if len(networks) > 1:
        yield "networks", str(len(networks))
