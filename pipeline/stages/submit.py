"""submit: send a submission through the official client, once, and record its score in the receipt."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dataset import sources
from pipeline.errors import StageError
from pipeline.kaggle import client, competition
from pipeline.kaggle.client import KaggleError
from pipeline.nn import pretrained
from pipeline.workflow import schemas, store
from pipeline.workflow.context import StageContext

POLL_INTERVAL = 5  # seconds between two requests for the list of submissions
MAX_WAIT = 600  # seconds; Kaggle takes about ten to score a submission


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
        file, receipt_file = folder / "submission.csv", folder / "submission.json"
        receipt = store.read_json(receipt_file, schemas.Receipt)
        if not receipt:
            raise StageError(f"{receipt_file}: the receipt is damaged; run --stage predict again")
        if receipt.get("source") not in competition.SOURCES:
            raise StageError(
                f"{file} was made from {receipt.get('source')} data, not from the competition's, and cannot be "
                "submitted: " + sources.HOW_TO_GET_REAL_DATA
            )
        if _weights_hashes(receipt) & pretrained.pretrained_hashes().keys():
            raise StageError(
                f"{file} was made with pretrained weights, which are not for submissions: the rows that they were "
                "trained on may be in Kaggle's test set. Nothing was sent"
            )
        digest = store.sha256(file)
        if digest != receipt["sha256"]["submission.csv"]:
            raise StageError(f"{file} was changed after its receipt was written: run --stage predict again")
        n_rows = file.read_bytes().count(b"\n") - 1
        if n_rows != competition.TEST_ROWS:
            raise StageError(
                f"{file} has {n_rows:,} rows, but the competition's test set has {competition.TEST_ROWS:,}: it was "
                "not made from the competition's data. Nothing was sent"
            )
        return cls(file, receipt_file, receipt, digest)

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


def _weights_hashes(receipt: dict[str, Any]) -> set[str]:
    """The SHA-256 of the weights that a submission was made with: one, or a list for a blend."""
    hashes = receipt["sha256"].get("weights.safetensors")
    return {str(digest) for digest in (hashes if isinstance(hashes, list) else [hashes])}


def run(context: StageContext) -> None:
    submission = Submission.load(context.run.published_dir("predict"))
    for entry in submission.entries():
        if entry["score"] is not None:
            context.say(f"this file was sent on {entry['date']} and scored {entry['score']}; it is not sent again")
            return
    tag = submission.receipt["tag"]
    listed = next((item for item in client.list_submissions() if tag in item["description"]), None)
    if listed and listed["status"] == "ERROR":
        if not context.run.force:
            raise KaggleError(f"Kaggle could not score this file ({listed['error']}); --force sends it again")
        listed = None
    if listed:
        fields = {"message": listed["description"], "date": listed["date"]} if not submission.entries() else {}
        entry = submission.add_entry(**{"score": None, **fields, "ref": listed["ref"]})
        context.say(f"Kaggle has had this file since {listed['date']}; it is not sent again")
    else:
        entry = _send(
            context, submission, f"{context.parts[0].settings.submit.message or submission.receipt['message']} {tag}"
        )
    if context.parts[0].settings.submit.wait:
        _wait_for_score(context, submission, entry)
    else:
        context.say("not waiting for the score; run --stage submit again to fetch it")


def _send(context: StageContext, submission: Submission, message: str) -> dict[str, Any]:
    left = client.count_submissions_left()
    context.say(f"{left} submissions left today")
    if left < 1:
        raise KaggleError("the daily limit of submissions is reached: try again tomorrow (UTC)")
    # Recorded before sending: if this process dies now, the next one asks Kaggle first.
    date = time.strftime("%Y-%m-%d %H:%M:%S%z")
    entry = submission.add_entry(message=message, date=date, ref=None, score=None)
    entry["ref"] = client.send_submission(submission.file, message)
    submission.save()
    context.say(f"sent {submission.file} as {message!r}")
    return entry


def _wait_for_score(context: StageContext, submission: Submission, entry: dict[str, Any]) -> None:
    """Request Kaggle's list until the submission is scored; the score is recorded in the receipt."""
    start = time.monotonic()
    while True:
        try:
            submissions = client.list_submissions()
        except KaggleError as error:
            raise KaggleError(f"the file was sent, but: {error}; run --stage submit again to fetch the score") from None
        listed = next((item for item in submissions if item["ref"] == entry["ref"]), {"status": "PENDING"})
        if listed["status"] == "ERROR":
            raise KaggleError(f"Kaggle could not score the submission: {listed['error']}")
        if listed["status"] == "COMPLETE":
            if not listed["score"]:
                context.say("Kaggle has scored it but shows no score yet; run --stage submit again to fetch it")
                return
            entry["score"] = float(listed["score"])
            submission.save()
            context.say(f"public score {entry['score']:.5f}")
            return
        if time.monotonic() - start > MAX_WAIT:
            raise KaggleError("Kaggle has not scored it yet: run --stage submit again to fetch the score")
        time.sleep(POLL_INTERVAL)
