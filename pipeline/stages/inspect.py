"""inspect: what a trained network makes of the digits, in pictures, and one page of all that there is to see."""

import numpy as np
import torch
from tqdm import tqdm

from pipeline import artifacts, exploration, inference, inspection, metrics, page, training
from pipeline.models import Pixels, load_weights, make
from pipeline.pictures import captions
from pipeline.pictures import network as pictures
from pipeline.settings import Model
from pipeline.stages.engine import StageError
from pipeline.views import view

CASES = 10  # right ones and wrong ones, of which is shown where the network looks
BANDS = (0.01, 0.25, 0.5, 0.75, 0.99)  # of the weights


def space(job):
    """Bytes that `run` writes at most, beside pictures of its own: the page holds those of others, in base64."""
    return 2 * sum(path.stat().st_size for path in job.paths.values() if path.suffix == ".png") + (16 << 20)


def run(job):
    settings, device = job.settings.inspect, job.call.device
    network, about, among = _network(job)
    images = np.load(job.paths["prepare/train_images.npy"], mmap_mode="r")
    labels = np.load(job.paths["prepare/train_labels.npy"])
    if settings.image > len(images):
        raise StageError(f"inspect.image is {settings.image}: train.csv has {len(images):,} rows")
    rows, words = _rows(job, about, len(images))
    shown = view(torch.from_numpy(images[rows]), about["model"]["view"])
    made, numbers = {}, {"network": among, "rows": len(rows), "rows_are": words}
    numbers["chosen_on_these_rows"] = about["keep"] == "best"
    with tqdm(total=100, desc="inspect", unit="%", disable=None) as bar:
        chances = inference.logits(network, shown.to(device), device, about["precision"]).softmax(1).cpu().numpy()
        predicted = chances.argmax(1)
        numbers["accuracy"] = float(np.mean(predicted == labels[rows]))
        bar.update(5)
        untrained = _untrained(job, network, about)
        _embeddings(settings, network, untrained, images[rows], shown, labels[rows], made, numbers, bar)
        made["filters.png"] = pictures.filters(inspection.first_weights(network), "The first layer's weights as images")
        made["last_layer.png"] = pictures.last_layer(inspection.last_weights(network))
        one = view(torch.from_numpy(images[[settings.image - 1]]), about["model"]["view"])[0]
        numbers["image"] = _feature_maps(settings.image, one, labels, rows, words, network, made)
        bar.update(10)
        _looks(rows, shown, labels[rows], predicted, chances, network, made, numbers)
        bar.update(15)
        _weights(job, network, untrained, about, made, numbers)
        bar.update(10)
    _calibration(job, labels, made, numbers)
    for name, picture in made.items():
        artifacts.write(job.folder / name, picture)
    artifacts.write_json(job.folder / "inspect.json", numbers)
    artifacts.write(job.folder / "report.html", _report(job, made, numbers))
    job.call.say(f"inspect: {' '.join(_said(numbers))}")
    if "recorded_epochs" not in numbers:
        job.call.say(f"inspect: {_no_record(job)}")
    job.call.say(f"report: {job.place / 'report.html'}")
    return {name: numbers[name] for name in ("network", "rows", "accuracy", "tsne")}


def _network(job):
    """The network that is looked at, what its file says of it, and which of several it is, in words ("" of one)."""
    networks = load_weights(job.paths["train/weights.safetensors"], job.call.device)
    member = job.settings.inspect.member
    if member > len(networks):
        count = f"{len(networks)} network{'s' if len(networks) > 1 else ''}"
        raise StageError(f"inspect.member is {member}: {job.call.recipe.name} has {count}")
    network, about = networks[member - 1]
    if len(networks) == 1:
        return network, about, ""
    fold = "" if about["fold"] is None else f", without fold {about['fold']}"
    model = about["model"]
    what = f"{model['name']}, {model['view']} view, seed {about['seed']}{fold}"
    return network, about, f"{member} of {len(networks)}: {what}"


def _rows(job, about, count):
    """The rows (from 0) that are looked at, and what they are: held out of this network's training, where any are."""
    if about["fit_all"]:
        return np.arange(count), "training rows (none was held out)"
    rows = np.load(job.paths["prepare/validation_rows.npy"])
    if about.get("fold") is not None:
        rows = rows[np.load(job.paths["prepare/folds.npy"]) == about["fold"]]
    return rows, "validation rows"


def _untrained(job, network, about):
    """The network as it was before its first step."""
    training.seed_everything(about.get("seed", job.settings.train.seed))
    made = make(Model(**about["model"])).to(job.call.device, memory_format=torch.channels_last)
    for before, after in zip(inspection.steps(made), inspection.steps(network), strict=True):
        if isinstance(before, Pixels):
            before.load_state_dict(after.state_dict())  # measured on the training images
    return made


def _embeddings(settings, network, untrained, images, shown, labels, made, numbers, bar):
    """t-SNE of pixels and of what the last layer is given, before and after training."""
    count = min(settings.rows, len(labels))
    kinds = {
        "raw pixels": lambda: images[:count].reshape(count, -1).astype(np.float32) / 255,
        "untrained network": lambda: inspection.features(untrained, shown[:count]),
        "trained network": lambda: inspection.features(network, shown[:count]),
    }
    panels, numbers["tsne"] = [], {"rows": count}
    for name, values in kinds.items():
        before = bar.n
        places = exploration.embed(
            inspection.reduce(values()),
            settings.seed,
            lambda part, before=before: bar.update(int(before + 20 * part) - bar.n),
        )
        found = {
            "neighbour_accuracy": exploration.neighbour_accuracy(places, labels[:count]),
            "silhouette": inspection.silhouette(places, labels[:count]),
        }
        numbers["tsne"][name] = found
        shape = "" if found["silhouette"] is None else f", silhouette {found['silhouette']:.2f}"
        panels.append((f"{name}\n{found['neighbour_accuracy']:.1%} among their own{shape}", places))
    made["features.png"] = pictures.embeddings(panels, labels[:count])


def _feature_maps(row, image, labels, rows, words, network, made):
    """The chosen image's way through the network; returns its numbers."""
    layers = inspection.outputs(network, image)
    logits = layers[-1][1].astype(np.float64)
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    kind = words if row - 1 in set(rows.tolist()) else "training rows"
    about = f"Row {row} of train.csv, one of the {kind}: label {labels[row - 1]}, answer {chances.argmax()}"
    made["feature_maps.png"] = pictures.feature_maps(image.numpy(), layers, chances, f"{about}; from layer to layer")
    return {"row": row, "label": int(labels[row - 1]), "probabilities": chances.tolist()}


def _looks(rows, shown, labels, predicted, chances, network, made, numbers):
    """Input gradient and occlusion, for a right row of each digit and the most confident mistakes."""
    right = np.flatnonzero(predicted == labels)
    right = [right[labels[right] == digit][0] for digit in np.unique(labels[right])]
    wrong = metrics.most_confident_errors(chances, labels, CASES)
    groups = {}
    for name, cases in (("right", right), ("wrong", wrong)):
        groups[name] = []
        if not len(cases):
            continue
        gradients = inspection.input_gradients(network, shown[cases], predicted[cases])
        for case, gradient in zip(cases, gradients, strict=True):
            fall = inspection.occlusion(network, shown[case], predicted[case])
            about = f"label {labels[case]}, said {predicted[case]}\n{chances[case].max():.1%} (row {rows[case] + 1})"
            groups[name].append((shown[case].numpy(), about, gradient, fall))
    numbers["cases"] = {
        name: [int(rows[case]) + 1 for case in cases] for name, cases in (("right", right), ("wrong", wrong))
    }
    made["looks.png"] = pictures.looks(groups, "Where the network looks (red speaks for its answer, blue against it)")


def _weights(job, network, untrained, about, made, numbers):
    """How each layer's weights are spread before and after training, and between, where that was recorded."""
    before, after = inspection.layer_weights(untrained), inspection.layer_weights(network)
    made["weights.png"] = pictures.weight_spread(
        [(words, before[name][1], values) for name, (words, values) in after.items()]
    )
    numbers["weights"] = {
        words: {
            "count": len(values),
            "deviation": float(values.std()),
            "deviation_untrained": float(before[name][1].std()),
        }
        for name, (words, values) in after.items()
    }
    path = job.paths.get("train/record.json")
    if not path:
        return
    record = artifacts.read_json(path)["rows"]
    epochs = [row["epoch"] for row in record]
    numbers["recorded_epochs"] = epochs
    bands, frames, gradients = [], [], []
    for name, (words, _) in after.items():
        found = [row["layers"][name] for row in record]
        bands.append((words, np.array([inspection.quantiles(one["counts"], one["limit"], BANDS) for one in found])))
        frames.append((words, np.array([one["counts"] for one in found]), np.array([one["limit"] for one in found])))
        known = [one for one in found if one["gradient_mean"] is not None]
        gradients.append((words, [one["gradient_mean"] for one in known], [one["gradient_max"] for one in known]))
    made["weights_over_training.png"] = pictures.weights_over_training(epochs, bands, about["epoch"])
    made["weights_moving.gif"] = pictures.weights_animated(epochs, frames)
    made["gradients.png"] = pictures.gradients(epochs[-len(gradients[0][1]) :], gradients)


def _calibration(job, labels, made, numbers):
    """Whether answers are as often right as they are confident: of all networks, as `evaluate` has them."""
    path = job.paths.get("evaluate/probabilities.npy")
    if not path:
        return
    chances, held = np.load(path), np.load(job.paths["prepare/validation_rows.npy"])
    found = metrics.calibration(chances, labels[held])
    numbers["calibration_error"] = found["ece"]
    words = f"Calibration: expected error {found['ece']:.2%} over {len(held):,} validation rows"
    made["reliability.png"] = pictures.reliability(found, words)


def _report(job, made, numbers):
    """The page of all pictures that there are of this recipe."""

    def shown(stage, captioned):
        for name, words in captioned.items():
            path = job.paths.get(f"{stage}/{name}")
            content = made.get(name) if stage == "inspect" else path and path.read_bytes()
            if content:
                yield from (page.subheading(captions.heading(name)), page.text(words))
                yield page.picture(content, words)

    recipe, evaluated = job.call.recipe, artifacts.read_json(job.paths["evaluate/metrics.json"])
    parts = [page.text(recipe.about), page.table(("", ""), _figures(job, evaluated, numbers)), page.heading("Answers")]
    parts += (
        shown("evaluate", captions.ANSWERS) if evaluated["rows"] else [page.text(f"None: {evaluated['why_none']}.")]
    )
    parts += [*shown("inspect", captions.CALIBRATION), page.heading("The network")]
    parts += [page.text(words) for words in _said(numbers)]
    parts += [*shown("inspect", captions.NETWORK), page.heading("Training")]
    parts += [*shown("augment", captions.TRAINING), *shown("train", captions.TRAINING)]
    parts += [*shown("inspect", captions.OVER_TRAINING)] or [page.text(_no_record(job))]
    data = [*shown("explore", captions.DATA)]
    parts += [
        page.heading("The data"),
        *(data or [page.text("Not drawn yet, or of other data: --stage explore draws.")]),
    ]
    settings = {
        f"{section}.{name}": value
        for section, values in job.manifests["train"]["settings"].items()
        for name, value in values.items()
    }
    parts += [
        page.heading("Settings"),
        page.table(("setting", "value"), [(name, str(value)) for name, value in settings.items()]),
    ]
    return page.page(recipe.name, parts)


def _figures(job, evaluated, numbers):
    """The report's first table."""
    if evaluated["rows"]:
        low, high = evaluated["interval_95"]
        chosen = " (the epoch was chosen on these rows: a little too good)" if evaluated["chosen_on_these_rows"] else ""
        yield "validation accuracy", f"{evaluated['accuracy']:.4f}{chosen}"
        yield "its 95% interval", f"{low:.4f} to {high:.4f}"
        yield "it rests on", evaluated["rests_on"]
        yield "wrong answers", f"{evaluated['rows'] - evaluated['right']:,} of {evaluated['rows']:,}"
    trained = job.manifests["train"]["numbers"]
    for name in ("parameters", "kept_epoch", "precision"):
        if name in trained:
            value = trained[name]
            yield name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)
    if "calibration_error" in numbers:
        yield "its expected calibration error", f"{numbers['calibration_error']:.2%}"
    if "members" in trained:
        yield "networks", str(len(trained["members"]))


def _no_record(job):
    """Why there are no weights and gradients over the epochs."""
    if len(job.manifests["train"]["numbers"].get("members", ())) > 1:
        return "How weights and gradients changed is recorded of single networks, not of an ensemble."
    again = f"--stage train{job.call.words} --set train.record=true"
    return f"How weights and gradients changed was not recorded: {again} records it."


def _said(numbers):
    """The stage's last words, and the first of the report's part on the network."""
    which = f"Network {numbers['network']}. " if numbers["network"] else ""
    chosen = "; its epoch was chosen on them" if numbers["chosen_on_these_rows"] else ""
    rows = f"{numbers['rows']:,} {numbers['rows_are']}"
    alone = "alone and " if which else ""
    yield f"{which}Of {rows}, {alone}without shifted copies: {numbers['accuracy']:.2%} right{chosen}."
    found = numbers["tsne"]
    shares = ", ".join(f"{name} {one['neighbour_accuracy']:.1%}" for name, one in found.items() if name != "rows")
    yield f"In t-SNE of {found['rows']:,} rows, among their own digit: {shares}."
    if len(numbers["weights"]) == 1:
        yield "It has one layer, which is given the pixels: the last two are the same."
    epochs = numbers.get("recorded_epochs", [0])
    if epochs[0]:
        yield f"Recorded from epoch {epochs[0]} on: the training was begun without train.record."
