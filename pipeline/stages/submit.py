"""submit: send a submission through the official client, once, and write its score into the receipt."""

import time

from pipeline import artifacts, competition, sources
from pipeline.stages.engine import StageError

POLL = 5  # seconds between two looks at the list of submissions
LONGEST_WAIT = 600  # seconds; scoring takes Kaggle some ten seconds


def space(job):
    """Bytes that `run` writes at most, beside the receipt."""
    return 0


def run(job):
    folder = job.call.place(job.call.stages["predict"])
    file, place = folder / "submission.csv", folder / "submission.json"
    receipt, say = artifacts.read_json(place), job.call.say
    if not receipt or not isinstance(receipt.get("sent"), list) or "sha256" not in receipt:
        raise StageError(f"{place}: the receipt is damaged; run --stage predict again")
    if receipt.get("source") not in sources.COMPETITION:
        raise StageError(
            f"{file} was made from {receipt.get('source')} data, not the competition's, and cannot be submitted: "
            + sources.HOW_TO_GET_REAL_DATA
        )
    digest = artifacts.sha256(file)
    if digest != receipt["sha256"]["submission.csv"]:
        raise StageError(f"{file} was changed since its receipt was written: run --stage predict again")
    rows = file.read_bytes().count(b"\n") - 1
    if rows != competition.TEST_ROWS:
        raise StageError(
            f"{file} has {rows:,} rows, but the competition's test set has {competition.TEST_ROWS:,}: it was not made "
            "from the competition's data. Nothing was sent"
        )

    before = [sent for sent in receipt["sent"] if sent["sha256"] == digest]
    scored = [sent for sent in before if sent["score"] is not None]
    if scored:
        say(f"submit: this very file was sent on {scored[0]['date']} and scored {scored[0]['score']}; not sent again")
        return
    tag = receipt["tag"]
    message = f"{job.settings.submit.message or receipt['message']} {tag}"
    entry = before[0] if before else None
    listed = _listed(tag)
    if listed and listed["status"] == "ERROR":
        if not job.call.force:
            raise competition.CompetitionError(
                f"Kaggle could not score this very file ({listed['error']}): --force sends it again"
            )
        listed = None
    if listed is None:
        left = competition.submissions_left()
        say(f"submit: {left} submissions left today")
        if left < 1:
            raise competition.CompetitionError("no submission is left today: try again tomorrow (UTC)")
        if entry is None:
            entry = {"sha256": digest}
            receipt["sent"].append(entry)
        entry |= {"message": message, "date": time.strftime("%Y-%m-%d %H:%M:%S%z"), "ref": None, "score": None}
        artifacts.write_json(place, receipt)  # before sending: if this process dies now, the next asks Kaggle first
        entry["ref"] = competition.submit(file, message)
        artifacts.write_json(place, receipt)
        say(f"submit: sent {file} as {message!r}")
    else:
        if entry is None:
            entry = {"sha256": digest, "message": listed["description"], "date": listed["date"], "score": None}
            receipt["sent"].append(entry)
        entry["ref"] = listed["ref"]
        artifacts.write_json(place, receipt)
        say(f"submit: Kaggle has this very file since {listed['date']}; not sent again")
    if job.settings.submit.wait:
        _await_score(entry, receipt, place, say)
    else:
        say("submit: not waiting for the score; --stage submit again fetches it")


def _listed(tag):
    """The newest submission in Kaggle's list whose description carries the tag, or None."""
    return next((one for one in competition.submissions() if tag in one["description"]), None)


def _await_score(entry, receipt, place, say):
    """Look at Kaggle's list until the submission is scored; the score goes into the receipt."""
    since = time.monotonic()
    while True:
        try:
            listed = competition.submissions()
        except competition.CompetitionError as error:
            raise competition.CompetitionError(f"it was sent, but: {error}; submit again fetches the score") from None
        mine = [one for one in listed if one["ref"] == entry["ref"]]
        status = mine[0]["status"] if mine else "PENDING"
        if status == "ERROR":
            raise competition.CompetitionError(f"Kaggle could not score the submission: {mine[0]['error']}")
        if status == "COMPLETE":
            if not mine[0]["score"]:
                say("submit: Kaggle has scored it and shows no score yet; submit again fetches it")
                return
            entry["score"] = float(mine[0]["score"])
            artifacts.write_json(place, receipt)
            say(f"submit: public score {entry['score']:.5f}")
            return
        if time.monotonic() - since > LONGEST_WAIT:
            raise competition.CompetitionError("Kaggle has not scored it yet: --stage submit again fetches the score")
        time.sleep(POLL)
