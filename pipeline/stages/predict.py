"""predict: average the networks over the test rows, and write the ordered submission and its receipt."""

from __future__ import annotations

from typing import Any

from pipeline.dataset.submission import write_submission
from pipeline.metrics.expected_score import estimate_score
from pipeline.nn.networks import load_networks
from pipeline.nn.pretrained import refuse_pretrained
from pipeline.training.predictions import predict_test_rows
from pipeline.workflow import schemas, store
from pipeline.workflow.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    loaded = load_networks(context.files["train/weights.safetensors"], context.run.device)
    for network in loaded:
        refuse_pretrained(network)
    probabilities = predict_test_rows(context, loaded, context.recipe.predict)
    evaluation = store.require_json(context.files["evaluate/metrics.json"], schemas.Metrics)
    expected = estimate_score(evaluation, len(probabilities))
    weights = context.hashes["train/weights.safetensors"]
    write_submission(context, probabilities, [context.run.recipe], weights, evaluation, expected)
    return {"rows": len(probabilities)}
