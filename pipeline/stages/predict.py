"""predict: average the networks over the test rows, and write the ordered submission and its receipt."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from pipeline.dataset import files, tables
from pipeline.dataset.files import TableFile
from pipeline.kaggle.competition import SOURCES, TEST_ROWS
from pipeline.metrics.expected_score import estimate_score
from pipeline.nn.networks import load_networks
from pipeline.nn.pretrained import refuse_pretrained
from pipeline.recipes import config
from pipeline.shapes import Float32
from pipeline.training.predictions import predict_test_rows
from pipeline.workflow import schemas, store
from pipeline.workflow.context import StageContext, StageInputs

# Sections that the content of a submission depends on.
SUBMISSION_SETTINGS = ("prepare", "split", *config.ACCURACY_SETTINGS)


def run(context: StageContext) -> dict[str, Any]:
    parts = [_predict(context, part) for part in context.parts]
    probabilities = np.mean(parts, axis=0)
    labels = probabilities.argmax(1).astype(np.uint8)
    content = tables.encode_submission(labels)
    path = context.output_dir / "submission.csv"
    store.write(path, content)
    # prepare checks sample_submission.csv in the same way: ids from 1 in order, as many as test.csv has rows.
    if not np.array_equal(tables.read_submission_table(TableFile(path), len(labels)), labels):
        raise OSError(f"{path}: the file that was read back differs from what was written")
    store.write_array(context.output_dir / "probabilities.npy", probabilities)

    test_score = None
    if truth := context.parts[0].files.get(f"download/{files.TEST_LABELS}"):
        test_score = float(np.mean(tables.read_submission_table(TableFile(truth), len(labels)) == labels))
    receipt = _receipt(context, hashlib.sha256(content).hexdigest(), len(labels))
    store.write_json(context.output_dir / "submission.json", receipt | {"test_score": test_score})
    return {"rows": len(labels)}


def _predict(context: StageContext, part: StageInputs) -> Float32[np.ndarray, "n 10"]:
    """The mean probabilities of a recipe's networks for the test rows."""
    loaded = load_networks(part.files["train/weights.safetensors"], context.run.device)
    for network in loaded:
        refuse_pretrained(network)
    return predict_test_rows(context, part, loaded, part.settings.predict)


def _receipt(context: StageContext, digest: str, n_rows: int) -> dict[str, Any]:
    """What is recorded with a submission: where it comes from, what score to expect, what was sent to Kaggle."""
    workflow = context.run
    evaluation = store.require_json(context.parts[0].files["evaluate/metrics.json"], schemas.Metrics)
    expected = estimate_score(evaluation, n_rows)
    download = context.parts[0].manifests["download"]
    source = download["numbers"].get("source", "")
    settings = {recipe.name: config.flatten(recipe, SUBMISSION_SETTINGS) for recipe in workflow.recipes}
    weights = [part.hashes["train/weights.safetensors"] for part in context.parts]
    accuracy = f"validation {evaluation['accuracy']:.4f}" if evaluation["rows"] else "no row held out"
    previous = store.read_json(context.published_dir / "submission.json", schemas.SentEntries) or {}
    validation = ("accuracy", "interval_95", "rows", "chosen_on_these_rows", "rests_on", "why_none", "rows_left_out")
    return {
        "recipe": workflow.name,
        "source": source,
        "can_be_submitted": source in SOURCES and n_rows == TEST_ROWS,
        "rows": n_rows,
        "sha256": {
            "submission.csv": digest,
            "weights.safetensors": weights[0] if len(weights) == 1 else weights,
            "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
            "data": download["outputs"],
        },
        "validation": {name: evaluation.get(name) for name in validation},
        "expected_score": expected,
        "why_no_expected_score": "" if expected else evaluation["why_no_record"],
        "commit": context.environment["commit"],
        "versions": context.environment["versions"],
        # The tag identifies this file in Kaggle's list of submissions, even if it is sent by hand.
        "message": f"{workflow.name}, {accuracy}",
        "tag": f"[{digest[:12]}]",
        # What was sent to Kaggle from this folder is kept when the prediction is repeated.
        "sent": previous.get("sent", []),
    }
