"""compare: what the runs of several recipes and seeds are worth, in a table and in pictures (see `comparing`)."""

import numpy as np
import pandas as pd
import torch

from pipeline import artifacts, comparison, inference, page, sources, training
from pipeline.augmentation import random_affine
from pipeline.models import load_weights, make
from pipeline.pictures import comparison as pictures
from pipeline.settings import Predict, Published
from pipeline.stages import comparing
from pipeline.views import view


def run(base, runs, failed, ensemble, folder, say):
    """Score the runs and leave the table and the page in the folder; returns it.

    base: of each recipe, the call in which it was prepared. runs: in the order of the table.
    failed: why, by run, of those that have no result.
    """
    rows, series, rights, where = [], {}, {}, {}
    for one, call in base.items():
        mine = [run for run in runs if run.recipe == one]
        images, labels, words = held_rows(call, one)
        where.setdefault(words, []).append(one.name)
        done = [run for run in mine if run not in failed]
        row = comparison.Row(one.name, epochs=one.train.epochs, seeds=len(done))
        if one.published.untrained:
            rows.append(_untrained(call, one, mine, images, labels))
        if done:
            rights[one.name] = words, _score(row, one, done, labels, series)
            distorted = _look_again(row, one, done, images, labels, ensemble)
            comparison.against_published(row, one.published, distorted)
        row.note = "; ".join(f"seed {run.seed}: {failed[run]}" for run in mine if run in failed)
        rows.append(row)
    for one in base:
        before, after = rights.get(one.after), rights.get(one.name)
        if before and after and before[0] == after[0]:
            row = next(row for row in rows if row.recipe == one.name)
            step = comparison.step(before[1], after[1])
            row.after, row.step, row.step_low, row.step_high = one.after, step.difference, step.low, step.high
            row.p = step.p
    comparison.adjust(rows)
    for row in rows:
        say(f"compare: {row.recipe}: {_shown(row)}")
    about = [f"Measured on {words}: {', '.join(names) if len(where) > 1 else 'all'}." for words, names in where.items()]
    about += [f"Published: {one}." for one in dict.fromkeys(one.published.source for one in base) if one]
    leave(folder, rows, series, [*about, *comparison.published_steps(rows)])
    return folder


def held_rows(call, one):
    """Images (n, 28, 28) and labels (n,) that a recipe's runs did not see, uint8, and which they are, in words."""
    arrays = call.place(call.stages["prepare"]) / "../../arrays"
    raw = call.place(call.stages["download"])
    source = artifacts.read_manifest(raw)[0]["numbers"]["source"]
    source = " of SAMPLE DATA" if source == "sample" else ""
    if one.train.fit_all:
        labels = pd.read_csv(raw / sources.TEST_LABELS)["Label"].to_numpy()
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
    told = [artifacts.read_manifest(run.place)[0]["numbers"] for run in done]
    kept = [numbers["kept_epoch"] - 1 for numbers in told]
    row.accuracy, row.deviation = comparison.mean_and_deviation([by_epoch[k, epoch] for k, epoch in enumerate(kept)])
    row.parameters = told[0]["parameters"]
    contexts = [artifacts.read_json(run.place / artifacts.CONTEXT) or {} for run in done]
    times = [context["training_seconds"] for context in contexts if "training_seconds" in context]
    row.seconds = float(np.mean(times)) if times else None
    series[one.name] = {"accuracies": by_epoch, "mean": row.accuracy}
    series[one.name] |= {"seconds": row.seconds, "parameters": row.parameters}
    return np.stack([answers[k, epoch] == labels for k, epoch in enumerate(kept)])


def _look_again(row, one, done, images, labels, ensemble):
    """What needs the networks again: the mean of their probabilities; returns each one's accuracy on distorted images,
    where that is what was published.
    """
    device, total, distorted = done[0].device, 0, []
    for run in done if ensemble or one.published.distorted else ():
        ((network, about),) = load_weights(run.place / "weights.safetensors", device)
        held = torch.from_numpy(images)
        if ensemble:  # without the recipe's shifted copies, as the accuracy beside it
            total = total + inference.of_file(network, about, held, Predict(), device)
        if one.published.distorted:
            said = inference.logits(network, _distorted(held, one, device), device, about["precision"]).argmax(1)
            distorted.append(float(np.mean(said.cpu().numpy() == labels)))
    if ensemble and len(done) > 1:
        row.ensemble = float(np.mean(total.argmax(1) == labels))
    return distorted


def _distorted(images, one, device):
    """Each image (n, 28, 28) mapped as in training, once; the same for all networks."""
    training.seed_everything(0)
    shown = view(images.to(device), one.model.view)
    parts = [random_affine(inference.as_input(part), one.affine) for part in shown.split(1000)]
    return torch.cat(parts).squeeze(1).mul(255).round().to(torch.uint8)


def _untrained(call, one, mine, images, labels):
    """The row of a recipe's network before training, with each seed."""
    found, device = [], mine[0].device
    arrays = call.place(call.stages["prepare"]) / "../../arrays"
    trained_on = torch.from_numpy(np.load(arrays / "train_images.npy"))
    shown = view(torch.from_numpy(images).to(device), one.model.view)
    for run in mine:
        training.seed_everything(run.seed)
        network = make(one.model, trained_on).to(device)
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


def leave(place, rows, series, about):
    """Publish the table and the page."""
    artifacts.restore(place)
    partial = artifacts.begin(place)
    artifacts.write(partial / comparing.TABLE, comparison.as_csv(rows))
    text = "\n\n".join([*about, comparison.as_markdown(rows).rstrip(), *NOTES])
    artifacts.write(partial / comparing.MARKDOWN, f"{text}\n".encode())
    parts = [*(page.text(words) for words in about), page.table(*comparison.as_texts(rows)), *map(page.text, NOTES)]
    for folder in dict.fromkeys(name.rpartition("/")[0] for name in series):
        inside = {name: one for name, one in series.items() if name.rpartition("/")[0] == folder}
        parts.append(page.heading(f"Wrong answers against epochs{f': {folder}' if folder else ''}"))
        parts.append(page.picture(pictures.bands(inside), "lines and bands of wrong answers against epochs"))
    timed = {name: one for name, one in series.items() if one["seconds"] is not None}
    if timed:
        parts.append(page.heading("What it costs"))
        parts.append(page.picture(pictures.costs(timed), "wrong answers against training time and parameters"))
    artifacts.write(partial / comparing.PAGE, page.page(f"Comparison: {place.name}", parts))
    key = {"stage": "compare", "version": 1, "settings": {}, "inputs": {}}
    artifacts.write_manifest(partial, key, [comparing.TABLE, comparing.MARKDOWN, comparing.PAGE], {}, {})
    artifacts.publish(place)


NOTES = (
    "Accuracy: the mean over seeds, each with the epoch that its recipe keeps, without shifted copies of the images, "
    "and the standard deviation over seeds.",
    "Step: the accuracy minus that of the recipe that it is a change of. Its p-value is that of Welch's t-test over "
    f"seeds on these rows; * marks a p-value below {comparison.SIGNIFICANT} after Holm's correction over the steps of "
    "this table. The 95% interval is wider than the test: it covers new seeds and new rows.",
    "Seconds: training and validation after each epoch, with several networks trained side by side. Compare them only "
    "with each other.",
)
