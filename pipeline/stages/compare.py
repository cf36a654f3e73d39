"""compare: what the runs of several recipes and seeds are worth, in a table and in pictures (see `comparing`)."""

import numpy as np
import pandas as pd
import torch

from pipeline import artifacts, comparison, inference, page, training
from pipeline.augmentation import random_affine
from pipeline.models import load_weights, make
from pipeline.pictures import comparison as charts
from pipeline.settings import Published
from pipeline.stages import comparing
from pipeline.stages.fitting import kept_row
from pipeline.views import view


def run(base, runs, failed, ensemble, title, say):
    """Score the runs and leave the table and the page; returns the folder.

    base: of each recipe, the call in which it was prepared. runs: in the order of the table.
    failed: why, by run, of those that have no result.
    """
    place = runs[0].workspace / "data/compare" / title
    rows, series, groups, where = [], {}, {}, {}
    for one in dict.fromkeys(run.recipe for run in runs):
        mine = [run for run in runs if run.recipe == one]
        images, labels, words = held_rows(base[one], one)
        where.setdefault(words, []).append(one.name)
        done = [run for run in mine if run not in failed]
        right, row = None, comparison.Row(one.name, epochs=one.train.epochs, seeds=len(done))
        if one.published.untrained:
            rows.append(_untrained(one, mine, images, labels))
        if done:
            right = _score(row, one, done, labels, series)
            _look_again(row, one, done, images, labels, ensemble)
            comparison.against_published(row, one.published)
        row.note = "; ".join(f"seed {run.seed}: {failed[run]}" for run in mine if run in failed)
        folder, before = one.name.rpartition("/")[0], groups.get(one.name.rpartition("/")[0])
        if folder and before is not None and right is not None and before[1] == words:
            row.step, row.p = comparison.step(before[0], right)
        groups[folder] = None if right is None else (right, words)
        rows.append(row)
        say(f"compare: {one.name}: {_shown(row)}")
    sources = dict.fromkeys(run.recipe.published.source for run in runs if run.recipe.published.source)
    about = [f"Measured on {words}: {', '.join(names) if len(where) > 1 else 'all'}." for words, names in where.items()]
    about += [f"Published: {source}." for source in sources]
    leave(place, rows, series, about, title)
    return place


def held_rows(call, one):
    """Images (n, 28, 28) and labels (n,) that a recipe's runs did not see, uint8, and which they are, in words."""
    arrays = call.place(call.stages["prepare"]) / "../../arrays"
    manifest, _ = artifacts.read_manifest(call.place(call.stages["download"]))
    source = " of SAMPLE DATA" if manifest["numbers"]["source"] == "sample" else ""
    if one.train.fit_all:
        labels = pd.read_csv(call.place(call.stages["download"]) / comparing.sources.TEST_LABELS)["Label"].to_numpy()
        words = f"{len(labels):,} test rows{source}, all training rows being trained on"
        return np.load(arrays / "test_images.npy"), labels.astype(np.uint8), words
    rows = np.load(call.place(call.stages["prepare"]) / "validation_rows.npy")
    words = f"{len(rows):,} validation rows{source} (split seed {one.split.seed})"
    if one.train.keep == "best":
        words += ", by which the epoch was chosen"
    return np.load(arrays / "train_images.npy")[rows], np.load(arrays / "train_labels.npy")[rows], words


def _score(row, one, done, labels, series):
    """Fill in accuracies and times from what the runs left; returns what was right (seeds, rows)."""
    answers = np.stack([np.load(run.place / comparing.ANSWERS) for run in done])
    by_epoch = comparison.accuracies(answers, labels)
    kept = [_kept_epoch(run, one) - 1 for run in done]
    numbers = range(len(done))
    row.accuracy, row.deviation = comparison.mean_and_deviation([by_epoch[k, kept[k]] for k in numbers])
    contexts = [artifacts.read_json(run.place / artifacts.CONTEXT) for run in done]
    row.seconds = float(np.mean([context["training_seconds"] for context in contexts]))
    row.parameters = artifacts.read_manifest(done[0].place)[0]["numbers"]["parameters"]
    series[one.name] = {
        "accuracies": by_epoch,
        "seconds": row.seconds,
        "parameters": row.parameters,
        "mean": row.accuracy,
    }
    return np.stack([answers[k, kept[k]] == labels for k in numbers])


def _kept_epoch(run, one):
    history = pd.read_csv(run.place / "history.csv").to_dict("records")
    return int(kept_row(history, one.train.keep)["epoch"])


def _look_again(row, one, done, images, labels, ensemble):
    """What needs the networks again: the mean of their probabilities, and distorted images."""
    device, total, distorted = done[0].device, 0, []
    for run in done if ensemble or one.published.distorted else ():
        ((network, about),) = load_weights(run.place / "weights.safetensors", device)
        held = torch.from_numpy(images)
        if ensemble:
            total = total + inference.of_file(network, about, held, one.predict, device)
        if one.published.distorted:
            training.seed_everything(0)  # the same distortions for each
            shown = view(held.to(device), one.model.view)
            parts = [random_affine(inference.as_input(part), one.affine) for part in shown.split(1000)]
            mapped = torch.cat(parts).squeeze(1).mul(255).round().to(torch.uint8)
            said = inference.logits(network, mapped, device, about["precision"]).argmax(1).cpu().numpy()
            distorted.append(float(np.mean(said == labels)))
    if ensemble and len(done) > 1:
        row.ensemble = float(np.mean(total.argmax(1) == labels))
    if distorted:
        row.distorted = float(np.mean(distorted))


def _untrained(one, mine, images, labels):
    """The row of a recipe's network before training, with each seed."""
    found, device = [], mine[0].device
    for run in mine:
        training.seed_everything(run.seed)
        network = make(one.model, torch.from_numpy(images)).to(device)
        shown = view(torch.from_numpy(images).to(device), one.model.view)
        said = inference.logits(network, shown, device, "fp32").argmax(1).cpu().numpy()
        found.append(float(np.mean(said == labels)))
    row = comparison.Row(f"{one.name}, untrained", epochs=0, seeds=len(mine))
    row.accuracy, row.deviation = comparison.mean_and_deviation(found)
    comparison.against_published(row, Published(one.published.untrained))
    return row


def _shown(row):
    if row.accuracy is None:
        return row.note
    deviation = "" if row.deviation is None else f" ± {row.deviation:.4f}"
    return f"{row.accuracy:.4f}{deviation} ({row.seeds} {'seed' if row.seeds == 1 else 'seeds'})"


def leave(place, rows, series, about, title):
    """Publish the table and the page."""
    artifacts.restore(place)
    partial = artifacts.begin(place)
    artifacts.write(partial / comparing.TABLE, comparison.as_csv(rows))
    artifacts.write(partial / comparing.MARKDOWN, "\n".join([*about, "", comparison.as_markdown(rows)]).encode())
    parts = [*(page.text(words) for words in about), page.table(*comparison.as_texts(rows)), *map(page.text, NOTES)]
    for folder in dict.fromkeys(name.rpartition("/")[0] for name in series):
        inside = {name: one for name, one in series.items() if name.rpartition("/")[0] == folder}
        parts.append(page.heading(f"Wrong answers against epochs{f': {folder}' if folder else ''}"))
        parts.append(page.picture(charts.bands(inside), "lines and bands of wrong answers against epochs"))
    if series:
        parts.append(page.heading("What it costs"))
        parts.append(page.picture(charts.costs(series), "wrong answers against training time and parameters"))
    artifacts.write(partial / comparing.PAGE, page.page(f"Comparison: {title}", parts))
    key = {"stage": "compare", "version": 1, "settings": {}, "inputs": {}}
    artifacts.write_manifest(partial, key, [comparing.TABLE, comparing.MARKDOWN, comparing.PAGE], {}, {})
    artifacts.publish(place)


NOTES = (
    "Accuracy: the mean over seeds, each with the epoch that its recipe keeps, and the standard deviation over seeds. "
    "A step is the accuracy less that of the recipe above in the same folder; its p value is that of Student's t-test "
    "over the rows of the share of seeds that are right.",
    "Times are of training alone, several networks side by side: compare them with each other alone.",
)
