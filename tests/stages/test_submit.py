"""submit: sends a file once, waits for its score, and refuses what the competition would not accept."""

import json
import shlex

import pytest

from pipeline.kaggle import client
from pipeline.stages import submit as submit_stage
from pipeline.workflow import store
from tests.conftest import TINY, read_receipt
from tests.kaggle.test_client import run_official_client
from tests.kaggle_server import KEY

RUN_CHILD = client._run_child


@pytest.fixture
def submit(kaggle, requests_in_process, command, sendable, monkeypatch):
    """`--stage submit` with short waits, whose requests run in this process."""
    monkeypatch.setattr(submit_stage, "POLL_INTERVAL", 0.01)
    return lambda *options: command("--stage", "submit", *TINY, "--workspace", sendable, *options)


def test_sends_waits_and_records_the_score(kaggle, command, sendable, monkeypatch):
    monkeypatch.setattr(submit_stage, "POLL_INTERVAL", 0.01)
    run = command("--stage", "submit", *TINY, "--workspace", sendable, "--set", "submit.message=first try")
    assert run.code == 0, run.err
    assert "5 submissions left today" in run.out and "0.99514" in run.out
    assert [entry["score"] for entry in read_receipt(sendable)["sent"]] == [0.99514]
    assert kaggle.submissions[0]["sha256"] == store.sha256(sendable / "submissions/quick/submission.csv")
    assert kaggle.submissions[0]["description"].startswith("first try [")


def test_same_file_is_never_sent_twice(submit, kaggle, command, sendable):
    submit()
    n_calls = len(kaggle.calls)
    for _ in range(2):
        run = submit()
        assert run.code == 0 and "not sent again" in run.out
        assert len(kaggle.calls) == n_calls  # Kaggle is not asked: the receipt has the score
        # A new prediction keeps the record of what was sent.
        assert command("--stage", "predict", *TINY, "--workspace", sendable).code == 0
        assert [entry["score"] for entry in read_receipt(sendable)["sent"]] == [0.99514]
    assert len(kaggle.submissions) == 1


def test_without_waiting_the_next_run_fetches_the_score(submit, kaggle, sendable):
    assert submit("--set", "submit.wait=false").code == 0
    assert read_receipt(sendable)["sent"][0]["score"] is None
    assert submit().code == 0
    assert read_receipt(sendable)["sent"][0]["score"] == 0.99514
    assert len(kaggle.submissions) == 1


@pytest.mark.parametrize("fault", ["reset", pytest.param("hang", marks=pytest.mark.slow)])
def test_submission_whose_reply_was_lost_is_not_sent_again(submit, kaggle, sendable, monkeypatch, fault):
    """The server counts the submission, but its reply never arrives."""
    handler = kaggle.http.RequestHandlerClass
    create = handler.CreateSubmission

    def create_without_reply(self, request):
        self._json = lambda *reply: None
        create(self, request)
        del self._json
        self._misbehave(fault)

    if fault == "hang":  # only a child process can be killed
        monkeypatch.setattr(client, "_run_child", RUN_CHILD)
        kaggle.on_silence()
    with monkeypatch.context() as patch:
        patch.setattr(handler, "CreateSubmission", create_without_reply)
        run = submit()
    assert (run.code, run.err.count("\n")) == (1, 1)
    assert len(kaggle.submissions) == 1
    assert submit().code == 0
    assert len(kaggle.submissions) == 1
    assert read_receipt(sendable)["sent"][0]["score"] == 0.99514


def test_submission_sent_by_hand_is_recognised(submit, kaggle, command, sendable):
    run = command("--stage", "all", *TINY, "--workspace", sendable)
    printed = next(line for line in run.lines() if line.startswith("or  "))
    arguments = shlex.split(printed.removeprefix("or"))
    assert arguments[:5] == ["kaggle", "competitions", "submit", "-c", "digit-recognizer"]
    assert run_official_client(*arguments[1:]).returncode == 0
    run = submit()
    assert run.code == 0 and "not sent again" in run.out
    assert len(kaggle.submissions) == 1


@pytest.mark.parametrize(
    ("call", "fault", "code", "message"),
    [
        ("Upload", 500, 1, "nothing was submitted"),
        ("CreateSubmission", 400, 2, "400"),
        ("StartSubmissionUpload", 403, 2, "accept its rules"),
        ("CreateSubmission", 503, 1, "503"),
        ("ListSubmissions", "reset", 1, "cannot be reached"),
    ],
)
def test_failures_send_nothing_and_can_be_repeated(submit, kaggle, call, fault, code, message):
    kaggle.fail[call] = fault
    run = submit()
    assert (run.code, run.err.count("\n")) == (code, 1), run.err
    assert message in run.err
    assert not kaggle.submissions
    assert KEY not in run.out + run.err
    kaggle.fail.clear()
    assert submit().code == 0
    assert len(kaggle.submissions) == 1


def test_no_submission_left_today(submit, kaggle):
    kaggle.left = 0
    run = submit()
    assert run.code == 1 and "tomorrow" in run.err
    assert not kaggle.submissions


def test_account_that_has_not_joined_the_competition(submit, kaggle):
    kaggle.has_joined = False
    run = submit()
    assert run.code == 2 and "join the competition and accept its rules" in run.err
    assert not kaggle.submissions


def test_submission_that_kaggle_cannot_score(submit, kaggle, monkeypatch):
    handler = kaggle.http.RequestHandlerClass
    create = handler.CreateSubmission

    def create_with_error(self, request):
        create(self, request)
        kaggle.submissions[0] |= {"status": "ERROR", "errorDescription": "bad rows"}

    with monkeypatch.context() as patch:
        patch.setattr(handler, "CreateSubmission", create_with_error)
        run = submit()
    assert run.code == 1 and "bad rows" in run.err
    run = submit()
    assert run.code == 1 and "--force sends it again" in run.err and len(kaggle.submissions) == 1
    assert submit("--force").code == 0 and len(kaggle.submissions) == 2


def test_score_that_is_not_shown_yet(submit, kaggle, sendable):
    kaggle.score = ""
    run = submit()
    assert run.code == 0 and "no score yet" in run.out
    for submission in kaggle.submissions:
        submission["publicScore"] = "0.98"
    assert submit().code == 0
    assert read_receipt(sendable)["sent"][0]["score"] == 0.98


def test_account_with_a_long_history(kaggle):
    """The reply is much longer than a pipe's buffer."""
    old = {"date": "2026-01-01T00:00:00Z", "fileName": "s.csv", "totalBytes": 1, "status": "COMPLETE"}
    kaggle.submissions += [
        {**old, "ref": number, "description": "x" * 2000, "publicScore": "0.1", "privateScore": ""}
        for number in range(100)
    ]
    assert [submission["ref"] for submission in client.list_submissions()] == list(range(100))


def test_changed_file_is_refused(submit, kaggle, sendable):
    file = sendable / "submissions/quick/submission.csv"
    file.write_bytes(file.read_bytes().replace(b"\n1,", b"\n1,0", 1))
    run = submit()
    assert run.code == 2 and "--stage predict" in run.err
    assert not kaggle.submissions


def test_table_of_another_size_is_refused(kaggle, command, tiny):
    """The user's own CSVs in data/raw, complete and in order, but with 100 test rows."""
    printed = command("--stage", "all", *TINY, "--workspace", tiny).out
    assert (
        "submit     not possible: the competition's test set has 28,000 rows" in printed
        and "kaggle competitions submit" not in printed
    )
    assert read_receipt(tiny)["can_be_submitted"] is False
    run = command("--stage", "submit", *TINY, "--workspace", tiny)
    assert run.code == 2 and "has 100 rows" in run.err and "28,000" in run.err and run.err.count("\n") == 1
    assert not kaggle.calls


@pytest.mark.slow
def test_table_with_the_28_000_rows_of_the_competition_is_sent(kaggle, command, tiny, tables, monkeypatch):
    """The real number of rows: the 100 digits of the small table, repeated 280 times."""
    header, *rows = tables["test.csv"].splitlines(keepends=True)
    (tiny / "data/raw/test.csv").write_bytes(header + b"".join(rows) * 280)
    ids = "".join(f"{i},0\n" for i in range(1, 28_001))
    (tiny / "data/raw/sample_submission.csv").write_text(f"ImageId,Label\n{ids}")
    monkeypatch.setattr(submit_stage, "POLL_INTERVAL", 0.01)
    options = (*TINY, "--workspace", tiny)
    printed = command("--stage", "all", *options, "--device", "cpu").out
    assert "submission.csv (28,000 rows)" in printed and "or         kaggle competitions submit" in printed
    run = command("--stage", "submit", *options)
    assert run.code == 0, run.err
    assert [*kaggle.uploads.values()] == [(tiny / "submissions/quick/submission.csv").read_bytes()]


def test_source_other_than_the_competition_is_refused(submit, kaggle, sendable):
    path = sendable / "submissions/quick/submission.json"
    path.write_text(json.dumps(read_receipt(sendable) | {"source": "sample"}))
    run = submit()
    assert run.code == 2 and "sample data" in run.err and run.err.count("\n") == 1
    assert not kaggle.calls


@pytest.mark.slow
def test_submission_made_from_the_sample_is_refused(kaggle, command, tmp_path):
    assert command("--stage", "all", *TINY, "--data", "sample", "--workspace", tmp_path).code == 0
    run = command("--stage", "submit", *TINY, "--workspace", tmp_path)
    assert run.code == 2 and "sample data" in run.err and run.err.count("\n") == 1
    assert not kaggle.calls


def test_the_sending_is_recorded_before_the_file_is_sent(submit, kaggle, sendable, monkeypatch):
    """So a process that dies while it sends leaves a trace, and the next run asks Kaggle first."""
    send, recorded = client.send_submission, []

    def record_and_send(file, message):
        recorded.extend(read_receipt(sendable)["sent"])
        return send(file, message)

    monkeypatch.setattr(client, "send_submission", record_and_send)
    assert submit().code == 0
    (entry,) = recorded
    assert entry["sha256"] == store.sha256(sendable / "submissions/quick/submission.csv")
    assert (entry["ref"], entry["score"]) == (None, None) and entry["message"] and entry["date"]


def test_a_file_that_its_receipt_does_not_describe_is_refused(submit, kaggle, sendable):
    """Also if the manifest describes it, as after an edit of the receipt."""
    receipt = read_receipt(sendable)
    receipt["sha256"]["submission.csv"] = "0" * 64
    store.write_json(sendable / "submissions/quick/submission.json", receipt)
    run = submit()
    assert run.code == 2 and "changed after its receipt was written: run --stage predict" in run.err
    assert not kaggle.calls


@pytest.mark.parametrize("lost", ["message", "date", "ref", "score"])
def test_a_record_of_a_sending_that_lacks_a_field_is_damaged(submit, kaggle, sendable, lost):
    assert submit().code == 0
    receipt = read_receipt(sendable)
    del receipt["sent"][0][lost]
    store.write_json(sendable / "submissions/quick/submission.json", receipt)
    run = submit()
    assert run.code == 2 and "submission.json" in run.err and run.err.count("\n") == 1
    assert len(kaggle.submissions) == 1
