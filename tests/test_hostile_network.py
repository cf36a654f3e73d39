"""Every known misbehaviour of a network: runs end in bounded time and one line, send nothing twice, show no key."""

import time

import pytest

from pipeline.stages import submit
from tests.conftest import TINY
from tests.kaggle_server import KEY, TOKEN, KaggleServer

DOWNLOAD = ("--stage", "download", "--data", "kaggle", "--debug")
MAX_SECONDS = 40  # with a TIMEOUT of 4 s; an interrupted download is resumed after pauses of 2 and 4 s
INVALID_REPLIES = (
    "[]", "null", "5", '"x"', "{}", '{"message": 5}', '{"url": null}', "{" * 50_000, '{"submissions": [5]}',
)  # fmt: skip


def slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture
def download(kaggle, command, tmp_path):
    def run():
        start = time.monotonic()
        outcome = command(*DOWNLOAD, "--workspace", tmp_path)
        assert time.monotonic() - start < MAX_SECONDS
        return outcome

    return run


def require_no_key(run, workspace, *secrets):
    """The key is in no output and in no file."""
    for secret in (KEY, TOKEN, *secrets):
        assert secret not in run.out + run.err
        for path in workspace.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def require_one_line(run, workspace):
    """One line of error after the traceback of --debug; no result is written."""
    assert run.code in (1, 2), run.out
    last = run.err.splitlines()[-1]
    assert last.startswith("error: ") and len(last) < 500
    assert run.err.count("error: ") - run.err.count("Error: ") <= 1
    assert not (workspace / "data/raw").exists()
    require_no_key(run, workspace)


@pytest.mark.parametrize("tenth", [5, *slow(*((tenth,) for tenth in (0, 1, 2, 3, 4, 6, 7, 8, 9)))])
def test_interrupted_download_is_resumed(kaggle, download, tmp_path, tenth):
    kaggle.fail["Download"], kaggle.fail_times["Download"] = f"cut at {tenth}", 1
    run = download()
    assert run.code == 0, run.err
    assert (tmp_path / "data/raw/digit-recognizer.zip").read_bytes() == kaggle.archive


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("Download", "longer"),
        ("DownloadDataFiles", "json: {}"),
        *slow(
            ("Download", "redirect"),
            ("Download", "shorter"),
            ("Download", "reset"),
            ("Download", 404),
            ("Download", 429),
            ("Download", 500),
            ("DownloadDataFiles", "redirect"),
            ("DownloadDataFiles", 302),
            *(("Download", f"cut at {tenth}") for tenth in range(10)),
            *(("DownloadDataFiles", f"json: {text}") for text in INVALID_REPLIES if text != "{}"),
        ),
    ],
)
def test_failed_download(kaggle, download, tmp_path, call, fault):
    kaggle.fail[call] = fault
    require_one_line(download(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [503, 429, "reset"])
@pytest.mark.parametrize("call", ["DownloadDataFiles", "Download"])
def test_temporary_failure(kaggle, download, tmp_path, call, fault):
    kaggle.fail[call], kaggle.fail_times[call] = fault, 1
    run = download()
    assert run.code == 0, run.err
    assert (tmp_path / "data/raw/digit-recognizer.zip").read_bytes() == kaggle.archive


def test_redirect_to_another_host_gets_no_credentials(kaggle, download, tmp_path):
    other_host = KaggleServer()
    try:
        kaggle.elsewhere = f"http://127.0.0.1:{other_host.http.server_port}/elsewhere"
        kaggle.fail["Download"] = "redirect"
        require_one_line(download(), tmp_path)
        requests = kaggle.seen_elsewhere + other_host.seen_elsewhere
        assert requests and not any("Authorization" in headers for headers in requests)
    finally:
        other_host.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("KAGGLE_KEY", "canary-wrong-key"), *slow(("KAGGLE_API_TOKEN", "canary-wrong-token"), ("VERBOSE", "1"))],
)
def test_wrong_keys_and_verbose_output_are_not_shown(kaggle, download, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    run = download()
    require_no_key(run, tmp_path, *([value] if "canary" in value else []))
    assert run.code == (0 if name == "VERBOSE" else 2)


CALLS = ("GetSubmissionLimits", "ListSubmissions", "StartSubmissionUpload", "Upload", "CreateSubmission")


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        *slow(
            *((call, fault) for call in CALLS for fault in (401, 404, 429, 500, "hang", "reset", "html", "redirect")),
            # The client ignores the reply to an upload.
            *((call, f"json: {text}") for call in CALLS for text in INVALID_REPLIES if call != "Upload"),
        ),
    ],
)
def test_failed_submission_is_sent_once_in_the_end(kaggle, command, sendable, monkeypatch, call, fault):
    monkeypatch.setattr(submit, "POLL_INTERVAL", 0.1)
    arguments = ("--stage", "submit", *TINY, "--workspace", sendable, "--debug")
    before = (sendable / "submissions/quick/submission.csv").read_bytes()
    kaggle.fail[call], kaggle.fail_times[call] = fault, 3
    start = time.monotonic()
    run = command(*arguments)
    assert time.monotonic() - start < MAX_SECONDS
    assert run.code in (0, 1, 2), run.err
    if run.code:
        assert run.err.splitlines()[-1].startswith("error: ")
    require_no_key(run, sendable)
    assert len(kaggle.submissions) <= 1
    kaggle.fail.clear()
    run = command(*arguments)
    assert run.code == 0
    assert len(kaggle.submissions) == 1
    assert (sendable / "submissions/quick/submission.csv").read_bytes() == before
    require_no_key(run, sendable)
