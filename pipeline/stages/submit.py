"""submit: send a submission through the official client, once, and record its score in the receipt."""

from __future__ import annotations

import time
from typing import Any

from pipeline.dataset.submission import Submission
from pipeline.errors import StageError
from pipeline.kaggle import client
from pipeline.kaggle.client import KaggleError
from pipeline.nn import pretrained
from pipeline.workflow.engine import Workflow

POLL_INTERVAL = 5  # seconds between two requests for the list of submissions
MAX_WAIT = 600  # seconds; Kaggle takes about ten to score a submission


def submit(run: Workflow) -> None:
    run.require_fresh(("download", "predict"), "submit")
    submission = Submission.load(run.published_dir("predict"))
    if submission.weights() & pretrained.pretrained_hashes().keys():
        raise StageError(
            f"{submission.file} was made with pretrained weights, which are not for submissions: the rows that they "
            "were trained on may be in Kaggle's test set. Nothing was sent"
        )
    for entry in submission.entries():
        if entry["score"] is not None:
            run.say(f"this file was sent on {entry['date']} and scored {entry['score']}; it is not sent again")
            return
    tag = submission.receipt["tag"]
    listed = next((item for item in client.list_submissions() if tag in item["description"]), None)
    if listed and listed["status"] == "ERROR":
        if not run.force:
            raise KaggleError(f"Kaggle could not score this file ({listed['error']}); --force sends it again")
        listed = None
    if listed:
        fields = {"message": listed["description"], "date": listed["date"]} if not submission.entries() else {}
        entry = submission.add_entry(**{"score": None, **fields, "ref": listed["ref"]})
        run.say(f"Kaggle has had this file since {listed['date']}; it is not sent again")
    else:
        entry = _send(run, submission, f"{run.recipe.submit.message or submission.receipt['message']} {tag}")
    if run.recipe.submit.wait:
        _wait_for_score(run, submission, entry)
    else:
        run.say("not waiting for the score; run --stage submit again to fetch it")


def _send(run: Workflow, submission: Submission, message: str) -> dict[str, Any]:
    left = client.count_submissions_left()
    run.say(f"{left} submissions left today")
    if left < 1:
        raise KaggleError("the daily limit of submissions is reached: try again tomorrow (UTC)")
    # Recorded before sending: if this process dies now, the next one asks Kaggle first.
    date = time.strftime("%Y-%m-%d %H:%M:%S%z")
    entry = submission.add_entry(message=message, date=date, ref=None, score=None)
    entry["ref"] = client.send_submission(submission.file, message)
    submission.save()
    run.say(f"sent {submission.file} as {message!r}")
    return entry


def _wait_for_score(run: Workflow, submission: Submission, entry: dict[str, Any]) -> None:
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
                run.say("Kaggle has scored it but shows no score yet; run --stage submit again to fetch it")
                return
            entry["score"] = float(listed["score"])
            submission.save()
            run.say(f"public score {entry['score']:.5f}")
            return
        if time.monotonic() - start > MAX_WAIT:
            raise KaggleError("Kaggle has not scored it yet: run --stage submit again to fetch the score")
        time.sleep(POLL_INTERVAL)
