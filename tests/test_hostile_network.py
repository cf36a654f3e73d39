"""Kaggle's stand-in misbehaves in every way that is known: bounded time, one line, nothing sent twice, no key shown."""

import time

import pytest

from tests.conftest import SHORT
from tests.kaggle_server import KEY, TOKEN, KaggleServer

DOWNLOAD = ("--stage", "download", "--recipe", "quick", "--data", "kaggle", "--debug")
LIMIT = 40  # seconds, with PATIENCE at 4 s: those of a cut download, which is gone on with after pauses of 2 and 4 s
WRONG = ("[]", "null", "5", '"x"', "{}", '{"message": 5}', '{"url": null}', "{" * 50_000, '{"submissions": [5]}')


def slow(*values):
    return [pytest.param(*value, marks=pytest.mark.slow) for value in values]


@pytest.fixture
def fetch(kaggle, command, tmp_path):
    def fetch():
        began = time.monotonic()
        run = command(*DOWNLOAD, "--workspace", tmp_path)
        assert time.monotonic() - began < LIMIT
        return run

    return fetch


def no_key(run, workspace, *more):
    """The key stands in nothing that was printed, and in no file."""
    for secret in (KEY, TOKEN, *more):
        assert secret not in run.out + run.err
        for path in workspace.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def refused(run, workspace):
    """One line of error behind the traceback that was asked for, and nothing under a final name."""
    assert run.code in (1, 2), run.out
    last = run.err.splitlines()[-1]
    assert last.startswith("error: ") and len(last) < 500
    assert run.err.count("error: ") - run.err.count("Error: ") <= 1
    assert not (workspace / "data/raw").exists()
    no_key(run, workspace)
    return last


@pytest.mark.parametrize("tenth", [0, 5, *slow(*((tenth,) for tenth in (1, 2, 3, 4, 6, 7, 8, 9)))])
def test_a_download_cut_once_is_gone_on_with(kaggle, fetch, tmp_path, tenth):
    kaggle.fail["Download"], kaggle.fail_times["Download"] = f"cut at {tenth}", 1
    run = fetch()
    assert run.code == 0, run.err
    assert (tmp_path / "data/raw/digit-recognizer.zip").read_bytes() == kaggle.archive


FAULTS = [
    ("Download", "longer"),
    ("Download", "redirect"),
    ("DownloadDataFiles", "json: {}"),
    *slow(
        ("Download", "shorter"),
        ("Download", "reset"),
        ("Download", 404),
        ("Download", 429),
        ("Download", 500),
        ("DownloadDataFiles", "redirect"),
        ("DownloadDataFiles", 302),
        *(("Download", f"cut at {tenth}") for tenth in range(10)),
        *(("DownloadDataFiles", f"json: {text}") for text in WRONG[1:]),
    ),
]


@pytest.mark.parametrize(("where", "fault"), FAULTS)
def test_a_download_that_goes_wrong(kaggle, fetch, tmp_path, where, fault):
    kaggle.fail[where] = fault
    refused(fetch(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [503, 429, "reset"])
@pytest.mark.parametrize("where", ["DownloadDataFiles", "Download"])
def test_a_failure_that_passes(kaggle, fetch, tmp_path, where, fault):
    kaggle.fail[where], kaggle.fail_times[where] = fault, 1
    run = fetch()
    assert run.code == 0, run.err
    assert (tmp_path / "data/raw/digit-recognizer.zip").read_bytes() == kaggle.archive


def test_credentials_do_not_follow_a_redirect_to_another_host(kaggle, fetch, tmp_path):
    """The client sends its key to Kaggle, and to nobody that Kaggle's answer names."""
    other = KaggleServer()
    try:
        kaggle.elsewhere = f"http://127.0.0.1:{other.http.server_port}/elsewhere"
        kaggle.fail["Download"] = "redirect"
        refused(fetch(), tmp_path)
        seen = kaggle.seen_elsewhere + other.seen_elsewhere
        assert seen and not any("Authorization" in headers for headers in seen)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("KAGGLE_KEY", "canary-wrong-key"), *slow(("KAGGLE_API_TOKEN", "canary-wrong-token"), ("VERBOSE", "1"))],
)
def test_wrong_keys_and_chatter_are_not_shown(kaggle, fetch, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    run = fetch()
    no_key(run, tmp_path, *([value] if "canary" in value else []))
    assert run.code == (0 if name == "VERBOSE" else 2)


STEPS = ("GetSubmissionLimits", "ListSubmissions", "StartSubmissionUpload", "Upload", "CreateSubmission")
SUBMITTING = [
    ("CreateSubmission", "reset"),
    ("StartSubmissionUpload", "json: {}"),
    *slow(
        *((step, fault) for step in STEPS for fault in (401, 404, 429, 500, "hang", "reset", "html", "redirect")),
        *((step, f"json: {text}") for step in STEPS for text in WRONG if step != "Upload"),  # whose answer nobody reads
    ),
]


@pytest.mark.parametrize(("where", "fault"), SUBMITTING)
def test_a_submission_that_goes_wrong_is_sent_once_in_the_end(kaggle, command, sendable, monkeypatch, where, fault):
    from pipeline.stages import submit

    monkeypatch.setattr(submit, "POLL", 0.1)
    words = ("--stage", "submit", *SHORT, "--workspace", sendable, "--debug")
    before = (sendable / "submissions/quick/submission.csv").read_bytes()
    kaggle.fail[where], kaggle.fail_times[where] = fault, 3
    began = time.monotonic()
    run = command(*words)
    assert time.monotonic() - began < LIMIT
    assert run.code in (0, 1, 2), run.err
    if run.code:
        assert run.err.splitlines()[-1].startswith("error: ")
    no_key(run, sendable)
    assert len(kaggle.submissions) <= 1
    kaggle.fail.clear()
    assert command(*words).code == 0
    assert len(kaggle.submissions) == 1
    assert (sendable / "submissions/quick/submission.csv").read_bytes() == before
    no_key(run, sendable)
