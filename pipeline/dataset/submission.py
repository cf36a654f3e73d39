"""Submissions: the ordered CSV file, and the receipt of where it comes from and what was sent to Kaggle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dataset import files, sources, tables
from pipeline.dataset.files import TableFile
from pipeline.errors import StageError
from pipeline.kaggle import competition
from pipeline.recipes import config
from pipeline.recipes.settings import Recipe
from pipeline.shapes import Float32
from pipeline.workflow import schemas, store
from pipeline.workflow.context import StageContext

FILE, RECEIPT = "submission.csv", "submission.json"
# Sections that the content of a submission depends on.
_SETTINGS = ("prepare", "split", *config.ACCURACY_SETTINGS)
_VALIDATION = ("accuracy", "interval_95", "rows", "chosen_on_these_rows", "rests_on", "why_none", "rows_left_out")


def write_submission(
    context: StageContext,
    probabilities: Float32[np.ndarray, "n 10"],
    recipes: Sequence[Recipe],
    weights: str | list[str],
    evaluation: Mapping[str, Any],
    expected: Mapping[str, Any] | None,
) -> None:
    """Write the probabilities of the test rows, the submission and its receipt into the folder of a stage's result.

    recipes: whose networks the probabilities are from.
    weights: the SHA-256 of their weights: one, or a list for several recipes.
    evaluation, expected: the accuracy on held-out rows, as in metrics.json, and the expected score.
    """
    labels = probabilities.argmax(1).astype(np.uint8)
    content = tables.encode_submission(labels)
    path, n_rows = context.output_dir / FILE, len(labels)
    store.write(path, content)
    # prepare checks sample_submission.csv in the same way: ids from 1 in order, as many as test.csv has rows.
    if not np.array_equal(tables.read_submission_table(TableFile(path), n_rows), labels):
        raise OSError(f"{path}: the file that was read back differs from what was written")
    store.write_array(context.output_dir / "probabilities.npy", probabilities)

    test_score = None
    if truth := context.files.get(f"download/{files.TEST_LABELS}"):
        test_score = float(np.mean(tables.read_submission_table(TableFile(truth), n_rows) == labels))
    download, name = context.manifests["download"], context.run.name
    source, digest = download["numbers"].get("source", ""), hashlib.sha256(content).hexdigest()
    settings = {recipe.name: config.flatten(recipe, _SETTINGS) for recipe in recipes}
    accuracy = f"validation {evaluation['accuracy']:.4f}" if evaluation["rows"] else "no row held out"
    previous = store.read_json(context.published_dir / RECEIPT, schemas.SentEntries) or {}
    receipt = {
        "recipe": name,
        "source": source,
        "can_be_submitted": source in competition.SOURCES and n_rows == competition.TEST_ROWS,
        "rows": n_rows,
        "sha256": {
            FILE: digest,
            "weights.safetensors": weights,
            "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
            "data": download["outputs"],
        },
        "validation": {key: evaluation.get(key) for key in _VALIDATION},
        "expected_score": expected,
        "why_no_expected_score": "" if expected else evaluation["why_not_measured"],
        "commit": context.environment["commit"],
        "versions": context.environment["versions"],
        # The tag identifies this file in Kaggle's list of submissions, even if it is sent by hand.
        "message": f"{name}, {accuracy}",
        "tag": f"[{digest[:12]}]",
        # What was sent to Kaggle from this folder is kept when the prediction is repeated.
        "sent": previous.get("sent", []),
        "test_score": test_score,
    }
    store.write_json(context.output_dir / RECEIPT, receipt)


@dataclass
class Submission:
    """A submission file with its receipt, which records what was sent."""

    file: Path
    receipt_file: Path
    receipt: dict[str, Any]
    digest: str

    @classmethod
    def load(cls, folder: Path) -> Submission:
        """Load a submission. Raises StageError if it is edited, or not made from the competition's data."""
        file, receipt_file = folder / FILE, folder / RECEIPT
        receipt = store.read_json(receipt_file, schemas.Receipt)
        if not receipt:
            raise StageError(f"{receipt_file}: the receipt is damaged; run --stage predict, or blend, again")
        if receipt.get("source") not in competition.SOURCES:
            raise StageError(
                f"{file} was made from {receipt.get('source')} data, not from the competition's, and cannot be "
                "submitted: " + sources.HOW_TO_GET_REAL_DATA
            )
        digest = store.sha256(file)
        if digest != receipt["sha256"][FILE]:
            raise StageError(f"{file} was changed after its receipt was written: run --stage predict, or blend, again")
        n_rows = file.read_bytes().count(b"\n") - 1
        if n_rows != competition.TEST_ROWS:
            raise StageError(
                f"{file} has {n_rows:,} rows, but the competition's test set has {competition.TEST_ROWS:,}: it was "
                "not made from the competition's data. Nothing was sent"
            )
        return cls(file, receipt_file, receipt, digest)

    def weights(self) -> set[str]:
        """The SHA-256 of the weights that the submission was made with."""
        hashes = self.receipt["sha256"].get("weights.safetensors")
        return {str(digest) for digest in (hashes if isinstance(hashes, list) else [hashes])}

    def entries(self) -> list[dict[str, Any]]:
        """The receipt's records of this file."""
        return [entry for entry in self.receipt["sent"] if entry["sha256"] == self.digest]

    def add_entry(self, **fields: Any) -> dict[str, Any]:
        """The record of this file, created if there is none, with these fields."""
        entry = next(iter(self.entries()), None)
        if entry is None:
            entry = {"sha256": self.digest}
            self.receipt["sent"].append(entry)
        entry |= fields
        self.save()
        return entry

    def save(self) -> None:
        store.write_json(self.receipt_file, self.receipt)
