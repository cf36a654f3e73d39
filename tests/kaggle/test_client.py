"""The official kaggle client, unmodified, against a local server: downloads, credentials, and every kind of failure."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.kaggle import client
from pipeline.workflow import store
from tests.kaggle_server import KEY, TOKEN

DOWNLOAD = ("--stage", "download", "--data", "kaggle")


def run_official_client(*arguments):
    """The client's own command line."""
    command = [sys.executable, "-m", "kaggle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_official_command_line_downloads_and_submits(kaggle, tmp_path):
    run = run_official_client("competitions", "download", "-c", "digit-recognizer", "-p", tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "digit-recognizer.zip").read_bytes() == kaggle.archive
    file = tmp_path / "submission.csv"
    file.write_bytes(b"ImageId,Label\n1,7\n")
    run = run_official_client("competitions", "submit", "-c", "digit-recognizer", "-f", file, "-m", "by hand")
    assert "Successfully submitted" in run.stdout
    assert kaggle.submissions[0]["description"] == "by hand"


def test_download_publishes_the_zip_and_its_source(kaggle, command, tmp_path):
    assert client.find_credentials() == (True, "")
    run = command("--stage", "download", "--workspace", tmp_path)  # --data auto: Kaggle, because of the credentials
    assert run.code == 0, run.err
    raw = tmp_path / "data/raw"
    assert (raw / "digit-recognizer.zip").read_bytes() == kaggle.archive
    assert store.read_manifest(raw)[0]["numbers"]["source"] == "kaggle"
    assert command("--stage", "prepare", "--recipe", "quick", "--workspace", tmp_path).code == 0


@pytest.mark.parametrize("kind", ["KAGGLE_API_TOKEN", "access_token", "kaggle.json", "XDG_CONFIG_HOME"])
def test_each_kind_of_credentials(kaggle, monkeypatch, kind):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    assert client.find_credentials() == (False, "")
    folder = Path.home() / ("xdg/kaggle" if kind == "XDG_CONFIG_HOME" else ".kaggle")
    folder.mkdir(parents=True)
    if kind == "KAGGLE_API_TOKEN":
        monkeypatch.setenv(kind, TOKEN)
    elif kind == "access_token":
        (folder / kind).write_text(TOKEN)
    else:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(Path.home() / "xdg"))
        (folder / "kaggle.json").write_text(json.dumps({"username": "demo", "key": KEY}))
        (folder / "kaggle.json").chmod(0o600)
    assert client.find_credentials() == (True, "")
    assert client.count_submissions_left() == 5


def require_failure(kaggle, command, workspace, code, message):
    """A download that ends with one line, without the key, and leaves nothing."""
    start = time.monotonic()
    run = command(*DOWNLOAD, "--workspace", workspace)
    assert time.monotonic() - start < 25  # with a TIMEOUT of 4 s for 40
    assert run.code == code, run.err
    assert message in run.err
    assert run.err.startswith("error: ") and run.err.count("\n") == 1
    assert not (workspace / "data/raw").exists()
    assert KEY not in run.out + run.err


@pytest.mark.parametrize(
    ("call", "fault", "code", "message"),
    [
        ("DownloadDataFiles", 401, 2, "create a new one"),
        ("DownloadDataFiles", 403, 2, "accept its rules"),
        ("DownloadDataFiles", 404, 2, "no such competition"),
        ("DownloadDataFiles", 429, 1, "too many requests"),
        ("DownloadDataFiles", 503, 1, "try again later"),
        ("DownloadDataFiles", "html", 1, "cannot be read"),
        ("DownloadDataFiles", "reset", 1, "cannot be reached"),
        ("Download", 403, 2, "accept its rules"),
        ("Download", "html", 1, "damaged"),
        ("Download", "corrupt", 1, "damaged"),
    ],
)
def test_failed_download(requests_in_process, kaggle, command, tmp_path, call, fault, code, message):
    kaggle.fail[call] = fault
    require_failure(kaggle, command, tmp_path, code, message)


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("DownloadDataFiles", "hang"),
        pytest.param("Download", "hang", marks=pytest.mark.slow),
        pytest.param("Download", "cut", marks=pytest.mark.slow),
    ],
)
def test_download_without_an_answer(kaggle, command, tmp_path, call, fault):
    kaggle.fail[call] = fault
    require_failure(kaggle, command, tmp_path, 1, "did not answer")


def test_temporary_failure_is_tried_again(kaggle, command, tmp_path):
    kaggle.fail["DownloadDataFiles"] = 503
    kaggle.fail_times["DownloadDataFiles"] = 1
    assert command(*DOWNLOAD, "--workspace", tmp_path).code == 0
    assert kaggle.calls.count("DownloadDataFiles") == 2


def test_failed_download_keeps_the_previous_one(requests_in_process, kaggle, command, tmp_path):
    assert command(*DOWNLOAD, "--workspace", tmp_path).code == 0
    kaggle.fail["Download"] = "corrupt"
    assert command(*DOWNLOAD, "--workspace", tmp_path).code == 1
    assert (tmp_path / "data/raw/digit-recognizer.zip").read_bytes() == kaggle.archive
    assert "download  fresh" in command("--status", "--recipe", "quick", "--workspace", tmp_path).out


def test_wrong_and_missing_credentials(kaggle, command, monkeypatch, tmp_path):
    monkeypatch.setenv("KAGGLE_KEY", "wrong")
    run = command(*DOWNLOAD, "--workspace", tmp_path)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "401" in run.err
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.delenv("KAGGLE_USERNAME")
    run = command(*DOWNLOAD, "--workspace", tmp_path)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "credentials are missing" in run.err and "--data sample" in run.err


def test_client_that_crashes(kaggle, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(client.KaggleError, match=r"client failed \(exit code 1\)"):
        client.count_submissions_left()


def test_failures_end_within_100_seconds():
    """The promise of the comment on TIMEOUT, with the constants that are shipped."""
    shipped = importlib.util.module_from_spec(client.__spec__)
    client.__spec__.loader.exec_module(shipped)
    assert 2 * shipped.TIMEOUT + shipped.RETRY_PAUSE < 100
    pauses = sum(2**resume + 1 for resume in range(1, shipped.MAX_RESUMES + 1))
    assert (1 + shipped.MAX_RESUMES) * shipped.TIMEOUT + pauses < 100
