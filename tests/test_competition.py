"""The official kaggle client, unmodified, against the suite's server: its command line, our stages, each failure."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import artifacts, competition
from tests.kaggle_server import KEY, TOKEN

DOWNLOAD = ("--stage", "download", "--recipe", "quick", "--data", "kaggle")


def official_cli(*words):
    """The client's own command line."""
    return subprocess.run(
        [sys.executable, "-m", "kaggle", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


def test_official_command_line_downloads_and_submits(kaggle, tmp_path):
    run = official_cli("competitions", "download", "-c", "digit-recognizer", "-p", tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "digit-recognizer.zip").read_bytes() == kaggle.archive
    file = tmp_path / "submission.csv"
    file.write_bytes(b"ImageId,Label\n1,7\n")
    run = official_cli("competitions", "submit", "-c", "digit-recognizer", "-f", file, "-m", "by hand")
    assert "Successfully submitted" in run.stdout
    assert kaggle.submissions[0]["description"] == "by hand"


def test_download_publishes_the_zip_and_records_its_source(kaggle, command, tmp_path):
    run = command(*DOWNLOAD, "--workspace", tmp_path)
    assert run.code == 0, run.err
    raw = tmp_path / "data" / "raw"
    assert (raw / "digit-recognizer.zip").read_bytes() == kaggle.archive
    assert artifacts.read_manifest(raw)[0]["numbers"]["source"] == "kaggle"
    assert command("--stage", "prepare", "--recipe", "quick", "--workspace", tmp_path).code == 0


def test_auto_uses_kaggle_where_there_are_credentials(kaggle, command, tmp_path):
    assert command("--stage", "download", "--recipe", "quick", "--workspace", tmp_path).code == 0
    assert artifacts.read_manifest(tmp_path / "data/raw")[0]["numbers"]["source"] == "kaggle"


@pytest.mark.parametrize("kind", ["KAGGLE_API_TOKEN", "access_token", "kaggle.json"])
def test_each_kind_of_credentials(kaggle, monkeypatch, kind):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    assert not competition.has_credentials()
    folder = Path.home() / ".kaggle"
    folder.mkdir(exist_ok=True)
    if kind == "KAGGLE_API_TOKEN":
        monkeypatch.setenv(kind, TOKEN)
    elif kind == "access_token":
        (folder / kind).write_text(TOKEN)
    else:
        (folder / kind).write_text(json.dumps({"username": "demo", "key": KEY}))
        (folder / kind).chmod(0o600)
    assert competition.has_credentials()
    assert competition.submissions_left() == 5


FAILURES = {
    # what goes wrong: (where, the fault, the exit code, words of the one line)
    "key refused": ("DownloadDataFiles", 401, 2, "make a new one"),
    "rules": ("DownloadDataFiles", 403, 2, "accept its rules"),
    "no such competition": ("DownloadDataFiles", 404, 2, "no such competition"),
    "too many": ("DownloadDataFiles", 429, 1, "slow down"),
    "server error": ("DownloadDataFiles", 503, 1, "try again later"),
    "html": ("DownloadDataFiles", "html", 1, "cannot be read"),
    "reset": ("DownloadDataFiles", "reset", 1, "cannot be reached"),
    "no answer": ("DownloadDataFiles", "hang", 1, "did not answer"),
    "file refused": ("Download", 403, 2, "accept its rules"),
    "file no answer": ("Download", "hang", 1, "did not answer"),
    "file html": ("Download", "html", 1, "damaged"),
    "corrupt": ("Download", "corrupt", 1, "damaged"),
    "cut": ("Download", "cut", 1, "did not answer"),
}


WAITS = ("file no answer", "cut")  # as long as "no answer"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in WAITS else name for name in FAILURES]
)
def test_a_failed_download_is_one_line_and_leaves_nothing(kaggle, command, tmp_path, name):
    where, fault, code, words = FAILURES[name]
    kaggle.fail[where] = fault
    began = time.monotonic()
    run = command(*DOWNLOAD, "--workspace", tmp_path)
    assert time.monotonic() - began < 25  # with PATIENCE at 4 s for 40
    assert run.code == code
    assert words in run.err
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1
    assert not (tmp_path / "data" / "raw").exists()
    assert KEY not in run.out + run.err


def test_a_passing_failure_is_tried_again(kaggle, command, tmp_path):
    kaggle.fail["DownloadDataFiles"] = 503
    kaggle.fail_times["DownloadDataFiles"] = 1
    assert command(*DOWNLOAD, "--workspace", tmp_path).code == 0
    assert kaggle.calls.count("DownloadDataFiles") == 2


def test_a_failed_download_leaves_the_one_before(kaggle, command, tmp_path):
    assert command(*DOWNLOAD, "--workspace", tmp_path).code == 0
    kaggle.fail["Download"] = "corrupt"
    assert command(*DOWNLOAD, "--workspace", tmp_path).code == 1
    assert (tmp_path / "data/raw/digit-recognizer.zip").read_bytes() == kaggle.archive
    assert "download  fresh" in command("--status", "--recipe", "quick", "--workspace", tmp_path).out


def test_no_and_wrong_credentials(kaggle, command, monkeypatch, tmp_path):
    monkeypatch.setenv("KAGGLE_KEY", "wrong")
    run = command(*DOWNLOAD, "--workspace", tmp_path)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "401" in run.err
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.delenv("KAGGLE_USERNAME")
    run = command(*DOWNLOAD, "--workspace", tmp_path)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "no credentials" in run.err and "--data sample" in run.err


def test_time_limits_keep_within_100_seconds():
    """What the comment on PATIENCE promises, with the numbers as they are shipped."""
    import importlib

    shipped = importlib.util.module_from_spec(competition.__spec__)
    competition.__spec__.loader.exec_module(shipped)
    assert 2 * shipped.PATIENCE + shipped.PAUSE < 100
    pauses = sum(2**resume + 1 for resume in range(1, shipped.RESUMES + 1))
    assert (1 + shipped.RESUMES) * shipped.PATIENCE + pauses < 100


class TestSubmit:
    @pytest.fixture
    def submit(self, kaggle, command, sendable, monkeypatch):
        from pipeline.stages import submit
        from tests.conftest import SHORT

        monkeypatch.setattr(submit, "POLL", 0.1)
        return lambda *more: command("--stage", "submit", *SHORT, "--workspace", sendable, *more)

    @staticmethod
    def receipt(sendable):
        return artifacts.read_json(sendable / "submissions/quick/submission.json")

    def test_sends_waits_and_keeps_the_score(self, submit, kaggle, sendable):
        run = submit("--set", "submit.message=first try")
        assert run.code == 0, run.err
        assert "5 submissions left today" in run.out and "0.99514" in run.out
        sent = self.receipt(sendable)["sent"]
        assert [one["score"] for one in sent] == [0.99514]
        assert kaggle.submissions[0]["sha256"] == artifacts.sha256(sendable / "submissions/quick/submission.csv")
        assert kaggle.submissions[0]["description"].startswith("first try [")

    def test_is_never_sent_twice(self, submit, kaggle):
        submit()
        run = submit()
        assert run.code == 0
        assert "not sent again" in run.out
        assert len(kaggle.submissions) == 1

    def test_a_new_prediction_remembers_what_was_sent(self, submit, kaggle, command, sendable):
        from tests.conftest import SHORT

        submit()
        assert command("--stage", "predict", *SHORT, "--workspace", sendable).code == 0
        assert "not sent again" in submit().out
        assert len(kaggle.submissions) == 1

    def test_without_waiting_the_score_comes_later(self, submit, kaggle, sendable):
        assert submit("--set", "submit.wait=false").code == 0
        assert self.receipt(sendable)["sent"][0]["score"] is None
        assert submit().code == 0
        assert self.receipt(sendable)["sent"][0]["score"] == 0.99514
        assert len(kaggle.submissions) == 1

    def test_an_answer_that_was_lost_is_looked_for_before_sending_again(self, submit, kaggle, sendable, monkeypatch):
        """The server counts the submission, and its answer never comes."""
        handler = kaggle.http.RequestHandlerClass
        create = handler.CreateSubmission

        def count_and_hang(self, request):
            self._json = lambda *answer: None
            create(self, request)
            del self._json
            self._misbehave("hang")

        with monkeypatch.context() as patch:
            patch.setattr(handler, "CreateSubmission", count_and_hang)
            run = submit()
        assert (run.code, run.err.count("\n")) == (1, 1)
        assert len(kaggle.submissions) == 1
        run = submit()
        assert run.code == 0
        assert len(kaggle.submissions) == 1
        assert self.receipt(sendable)["sent"][0]["score"] == 0.99514

    def test_one_sent_by_hand_with_the_printed_command_counts(self, submit, kaggle, command, sendable):
        import shlex

        from tests.conftest import SHORT

        shown = command("--stage", "all", *SHORT, "--workspace", sendable).out
        line = next(line for line in shown.splitlines() if line.startswith("send it: "))
        words = shlex.split(line.removeprefix("send it: "))
        assert words[:5] == ["kaggle", "competitions", "submit", "-c", "digit-recognizer"]
        assert official_cli(*words[1:]).returncode == 0
        run = submit()
        assert run.code == 0 and "not sent again" in run.out
        assert len(kaggle.submissions) == 1

    @pytest.mark.parametrize(
        ("where", "fault", "code", "words"),
        [
            ("Upload", 500, 1, "nothing was submitted"),
            ("CreateSubmission", 400, 2, "400"),
            pytest.param("StartSubmissionUpload", 403, 2, "accept its rules", marks=pytest.mark.slow),
            pytest.param("CreateSubmission", 503, 1, "503", marks=pytest.mark.slow),
            ("ListSubmissions", "hang", 1, "did not answer"),
        ],
    )
    def test_failures_send_nothing_and_can_be_repeated(self, submit, kaggle, where, fault, code, words):
        kaggle.fail[where] = fault
        run = submit()
        assert (run.code, run.err.count("\n")) == (code, 1), run.err
        assert words in run.err
        assert not kaggle.submissions
        assert KEY not in run.out + run.err
        kaggle.fail.clear()
        assert submit().code == 0
        assert len(kaggle.submissions) == 1

    def test_none_left_today(self, submit, kaggle):
        kaggle.left = 0
        run = submit()
        assert run.code == 1 and "tomorrow" in run.err
        assert not kaggle.submissions

    def test_a_submission_that_kaggle_cannot_score(self, submit, kaggle):
        handler = kaggle.http.RequestHandlerClass
        create = handler.CreateSubmission

        def spoil(self, request):
            create(self, request)
            kaggle.submissions[0] |= {"status": "ERROR", "errorDescription": "bad rows"}

        handler.CreateSubmission = spoil
        run = submit()
        assert run.code == 1 and "bad rows" in run.err
        again = submit()
        assert again.code == 1 and "--force sends it again" in again.err and len(kaggle.submissions) == 1
        handler.CreateSubmission = create
        assert submit("--force").code == 0 and len(kaggle.submissions) == 2

    def test_a_score_that_is_not_shown_yet(self, submit, kaggle, sendable):
        kaggle.score = ""
        run = submit()
        assert run.code == 0 and "no score yet" in run.out
        for one in kaggle.submissions:
            one["publicScore"] = "0.98"
        assert submit().code == 0
        assert self.receipt(sendable)["sent"][0]["score"] == 0.98

    def test_an_account_with_a_long_history(self, submit, kaggle):
        """An answer far larger than a pipe's buffer."""
        old = {"date": "2026-01-01T00:00:00Z", "fileName": "s.csv", "totalBytes": 1, "status": "COMPLETE"}
        kaggle.submissions += [
            {**old, "ref": number, "description": "x" * 2000, "publicScore": "0.1", "privateScore": ""}
            for number in range(100)
        ]
        assert submit().code == 0
        assert len(kaggle.submissions) == 101

    def test_a_changed_file_is_refused(self, submit, kaggle, sendable):
        file = sendable / "submissions/quick/submission.csv"
        file.write_bytes(file.read_bytes().replace(b"\n1,", b"\n1,0", 1))
        run = submit()
        assert run.code == 2 and "--stage predict" in run.err
        assert not kaggle.submissions

    def test_a_table_of_another_size_is_not_sent(self, kaggle, command, finished):
        """A person's own CSVs in data/raw, complete and in order, but with 100 test rows."""
        from tests.conftest import SHORT

        shown = command("--stage", "all", *SHORT, "--workspace", finished).out
        assert "it cannot be sent: the competition's test set has 28,000 rows" in shown and "send it" not in shown
        assert self.receipt(finished)["can_be_submitted"] is False
        run = command("--stage", "submit", *SHORT, "--workspace", finished)
        assert run.code == 2 and "has 100 rows" in run.err and "28,000" in run.err and run.err.count("\n") == 1
        assert not kaggle.calls

    def test_other_data_than_the_competitions_is_refused(self, kaggle, command, tmp_path):
        from tests.conftest import SHORT

        place = ("--workspace", tmp_path)
        assert command("--stage", "all", *SHORT, "--data", "sample", *place).code == 0
        run = command("--stage", "submit", *SHORT, *place)
        assert run.code == 2 and "sample data" in run.err and run.err.count("\n") == 1
        assert not kaggle.calls
