"""notebook.push: the official client pushes to a local server; waiting, fetching, and every kind of failure."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from pipeline.extras.notebook import command as notebook_stage
from pipeline.extras.notebook import kernels
from pipeline.kaggle import client
from pipeline.workflow import store
from tests.conftest import TINY
from tests.kaggle.test_client import run_official_client
from tests.kaggle_server import KEY
from tests.test_structure import ROOT

SLUG = "digit-recognizer-pipeline"
PUSH = ("--stage", "notebook", *TINY, "--set", "notebook.push=true")


@pytest.fixture
def results(kaggle, sendable):
    """What a run of TINY writes, with data and networks, and a file name that leads outside: the notebook's output."""
    for path in sendable.rglob("*"):
        if path.is_file():
            kaggle.output[path.relative_to(sendable).as_posix()] = path.read_bytes()
    kaggle.output["submission.csv"] = kaggle.output["submissions/quick/submission.csv"]
    kaggle.output["data/runs/../../../attack.csv"] = b"outside"
    return kaggle.output


@pytest.fixture
def push(kaggle, results, requests_in_process, command, tmp_path, monkeypatch):
    """The command that pushes a small notebook, with short waits, whose requests run in this process."""
    monkeypatch.setattr(notebook_stage, "POLL_INTERVAL", 0.01)
    package = {"run_pipeline.py": ROOT / "run_pipeline.py"}
    monkeypatch.setattr("pipeline.extras.notebook.notebook_file.list_package_files", lambda home: package)
    return lambda *options: command(*PUSH, "--workspace", tmp_path / "user", *options)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "user/data/notebook"


def read_state(folder):
    return json.loads((folder / "push.json").read_bytes())


def test_from_push_to_fetched_output(kaggle, results, command, tmp_path, folder, monkeypatch, sendable):
    """With the client in processes of its own; the last line's command sends the submission."""
    monkeypatch.setattr(notebook_stage, "POLL_INTERVAL", 0.01)
    kaggle.session = iter(["QUEUED", "RUNNING", "RUNNING", "COMPLETE"])
    run = command(*PUSH, "--workspace", tmp_path / "user")
    assert run.code == 0, run.err
    (saved,) = kaggle.notebooks[SLUG]
    text = json.loads(saved.pop("text"))
    assert saved == {
        "slug": f"demo/{SLUG}",
        "newTitle": "Digit Recognizer pipeline",
        "language": "python",
        "kernelType": "notebook",
        "competitionDataSources": ["digit-recognizer"],
        "isPrivate": True,
        "enableGpu": True,
        "enableTpu": False,
        "enableInternet": False,
        "machineShape": "NvidiaTeslaT4",
    }
    local = json.loads((folder / "digit-recognizer.ipynb").read_text())
    assert text == local
    assert [line.split()[1] for line in run.lines() if line.endswith(")") and ":" in line[-6:]] == [
        "queued",
        "running",
        "complete",
    ]
    output = folder / "output"
    assert (output / "submission.csv").read_bytes() == (sendable / "submissions/quick/submission.csv").read_bytes()
    assert (output / "data/runs/quick/train/curves.png").exists()
    assert json.loads((output / f"{SLUG}.log").read_text()) == kaggle.log
    assert not (output / "data/raw").exists() and not (output / "data/networks").exists()
    assert not list(tmp_path.rglob("attack.csv"))
    assert read_state(folder)["status"] == "fetched" and read_state(folder)["version"] == 1
    assert KEY not in run.out + run.err + (folder / "push.json").read_text()

    printed = next(line for line in run.lines() if line.startswith("submit "))
    arguments = shlex.split(printed.partition(" ")[2])
    assert "Successfully submitted" in run_official_client(*arguments[1:]).stdout
    assert [*kaggle.uploads.values()] == [results["submission.csv"]]


def test_official_command_line_pushes_the_folder(kaggle, command, tmp_path, folder):
    """By hand, with the files that the stage writes without a push."""
    command("--stage", "notebook", *TINY, "--workspace", tmp_path / "user")
    run = run_official_client("kernels", "push", "-p", folder)
    assert "version 1 successfully pushed" in run.stdout and "does not resolve" not in run.stdout
    assert "COMPLETE" in run_official_client("kernels", "status", f"demo/{SLUG}").stdout


def test_finished_notebook_is_not_pushed_again(push, kaggle, folder):
    assert push().code == 0
    run = push()
    assert run.code == 0 and "--force pushes it again" in run.out and "\nsubmit  " in run.out
    assert len(kaggle.notebooks[SLUG]) == 1
    assert push("--force").code == 0
    assert len(kaggle.notebooks[SLUG]) == 2 and read_state(folder)["version"] == 2
    assert push("--set", "train.seed=1").code == 0  # another notebook
    assert len(kaggle.notebooks[SLUG]) == 3


def test_deleted_results_are_fetched_again(push, kaggle, folder):
    push()
    for path in sorted((folder / "output").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "output").rmdir()
    assert push().code == 0
    assert (folder / "output/submission.csv").exists() and len(kaggle.notebooks[SLUG]) == 1


def test_files_of_the_user_among_the_results_stay(push, folder, tmp_path):
    push()
    notes = [folder / "output" / name for name in ("note.txt", "submissions/quick/note.txt", "mine/note.txt")]
    for note in notes:
        note.parent.mkdir(exist_ok=True)
        note.write_text("mine")
    (folder / "output.partial").mkdir()
    (folder / "output.partial" / store.STAGED).touch()  # of an interrupted download
    (folder / "output.partial/submissions").symlink_to(tmp_path)
    before = (folder / "output/submission.csv").stat().st_ino
    assert push("--force").code == 0
    assert (folder / "output/submission.csv").stat().st_ino != before
    assert all(note.read_text() == "mine" for note in notes)
    assert not (tmp_path / "quick").exists() and (folder / "output/submissions.kept").is_symlink()
    assert not list((folder / "output").rglob("*.csv.kept"))


def test_without_waiting_a_later_run_fetches(push, kaggle, folder):
    run = push("--set", "notebook.wait=false")
    assert run.code == 0 and "not waiting" in run.out
    assert "GetKernelSessionStatus" not in kaggle.calls and not (folder / "output").exists()
    assert push().code == 0
    assert len(kaggle.notebooks[SLUG]) == 1 and read_state(folder)["status"] == "fetched"


def test_stopped_while_waiting_continues(push, kaggle, folder, monkeypatch):
    kaggle.session = itertools.chain(["RUNNING"], itertools.repeat("COMPLETE"))

    def stop(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(notebook_stage.time, "sleep", stop)
        run = push()
    assert (run.code, run.err.count("\n")) == (130, 1) and "the same command" in run.err
    assert read_state(folder)["status"] == "pushed"
    run = push()
    assert run.code == 0 and "version 1 was pushed" in run.out
    assert len(kaggle.notebooks[SLUG]) == 1


@pytest.mark.slow
def test_terminated_process_continues(kaggle, results, tmp_path, folder):
    """SIGTERM while the run on Kaggle takes long: exit code 143, without a remaining child process."""
    kaggle.session = itertools.chain(itertools.repeat("RUNNING", 1), itertools.repeat("COMPLETE"))
    command = [sys.executable, "run_pipeline.py", *PUSH, "--workspace", str(tmp_path / "user")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "running (" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error.count("\n")) == (143, 1), error
    assert read_state(folder)["status"] == "pushed"
    run = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert len(kaggle.notebooks[SLUG]) == 1


@pytest.mark.parametrize("fault", ["reset", "html"])
def test_push_whose_reply_was_lost_is_not_repeated(push, kaggle, folder, monkeypatch, fault):
    handler = kaggle.http.RequestHandlerClass
    save = handler.SaveKernel

    def save_without_reply(self, request):
        self._json = lambda *reply: None
        save(self, request)
        del self._json
        self._misbehave(fault)

    with monkeypatch.context() as patch:
        patch.setattr(handler, "SaveKernel", save_without_reply)
        run = push()
    assert (run.code, run.err.count("\n")) == (1, 1) and "may have been pushed" in run.err
    assert read_state(folder)["status"] == "pushing"
    run = push()
    assert run.code == 0, run.err
    assert len(kaggle.notebooks[SLUG]) == 1 and read_state(folder)["version"] == 1


def test_push_that_did_not_arrive_is_repeated(push, kaggle, folder):
    kaggle.fail["SaveKernel"] = "reset"
    assert push().code == 1
    assert not kaggle.notebooks
    kaggle.fail.clear()
    kaggle.notebooks[SLUG] = [{"text": "an older version"}]
    assert push().code == 0
    assert len(kaggle.notebooks[SLUG]) == 2 and read_state(folder)["version"] == 2


def rejection(text):
    return "json: " + json.dumps({"ref": "", "url": "", "versionNumber": None, "error": text})


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (409, 2, "notebook.title"),
        (rejection("The title 'x' is already in use."), 2, "notebook.title"),
        (rejection("Notebook not found"), 2, "notebook.title"),
        (413, 2, "less than 1 MB"),
        (rejection("Maximum batch GPU session count of 2 reached."), 1, "until another session has ended"),
        (rejection("GPU quota exceeded"), 1, "until another session has ended"),
        (rejection("Your account must be phone verified to use GPUs"), 2, "--device cpu"),
        (rejection("You must accept this competition's rules"), 2, "accept its rules"),
        (rejection("something new"), 2, "something new"),
        ('json: {"versionNumber": 1, "invalidCompetitionSources": ["digit-recognizer"]}', 2, "accept its rules"),
        ("json: {}", 1, "may have been pushed"),
        (400, 2, "failure 400"),
        (401, 2, "create a new one"),
        (403, 2, "verify your phone"),
        (404, 2, "no such notebook"),
        (429, 1, "too many requests"),
        (503, 1, "may have been pushed"),
        ("html", 1, "cannot be read"),
    ],
)
def test_failed_push_is_one_line_and_can_be_repeated(push, kaggle, folder, fault, code, message):
    kaggle.fail["SaveKernel"] = fault
    run = push()
    assert (run.code, run.err.count("\n")) == (code, 1), run.err
    assert run.err.startswith("error: ") and message in run.err and KEY not in run.out + run.err
    assert read_state(folder)["status"] == ("pushing" if "may have been pushed" in run.err else "refused")
    kaggle.fail.clear()
    assert push().code == 0
    assert len(kaggle.notebooks[SLUG]) == 1


def test_notebook_above_the_servers_limit(push, kaggle, monkeypatch):
    """The client shows only the HTTP status of an answer with {"error": ...}."""
    monkeypatch.setattr("pipeline.extras.notebook.notebook_file.MAX_BYTES", 2_000_000)
    monkeypatch.setattr("pipeline.extras.notebook.notebook_file.INTRODUCTION", "x" * 1_000_000)
    run = push()
    assert (run.code, run.err.count("\n")) == (2, 1) and "source code is too large" in run.err


@pytest.mark.slow
@pytest.mark.parametrize("call", ["SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput"])
def test_server_that_does_not_answer(kaggle, results, command, tmp_path, monkeypatch, call):
    """With the client in a process of its own, which is ended."""
    monkeypatch.setattr(kernels, "FETCH_TIMEOUT_FACTOR", 1)
    monkeypatch.setattr(notebook_stage, "MAX_FAILURES", 1)
    kaggle.fail[call] = "hang"
    start = time.monotonic()
    run = command(*PUSH, "--workspace", tmp_path / "user")
    assert time.monotonic() - start < 40
    assert (run.code, run.err.count("\n")) == (1, 1), run.err
    assert "did not answer" in run.err
    kaggle.fail.clear()
    monkeypatch.setattr(client, "TIMEOUT", 30)
    assert command(*PUSH, "--workspace", tmp_path / "user").code == 0
    assert len(kaggle.notebooks[SLUG]) == 1


def test_wrong_and_missing_credentials(push, kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "wrong")
    run = push()
    assert run.code == 2 and "401" in run.err
    monkeypatch.delenv("KAGGLE_KEY")
    run = push()
    assert run.code == 2 and "credentials are missing" in run.err
    assert not kaggle.notebooks


@pytest.mark.parametrize(
    ("status", "message", "outcome"),
    [("ERROR", "Your notebook ran out of memory", "failed"), ("CANCEL_ACKNOWLEDGED", "", "was cancelled")],
)
def test_failed_run_shows_the_end_of_its_log(push, kaggle, folder, status, message, outcome):
    kaggle.session, kaggle.failure_message = iter(["RUNNING", status]), message
    pieces = [{"stream_name": "stdout", "time": 1.0 * i, "data": f"line {i}\n"} for i in range(100)]
    kaggle.log = [*pieces, {"stream_name": "stderr", "time": 100.0, "data": "RuntimeError: the "}]
    kaggle.log.append({"stream_name": "stderr", "time": 100.0, "data": "last line\n\n"})
    run = push()
    assert (run.code, run.err.count("\n")) == (1, 1), run.err
    assert outcome in run.err and message in run.err and f"{SLUG}.log" in run.err
    shown = [line.strip() for line in run.lines() if line.startswith("    ")]
    assert shown == [f"line {i}" for i in range(86, 100)] + ["RuntimeError: the last line"]
    kaggle.session = iter(["COMPLETE"])
    assert push().code == 0  # pushes it again
    assert len(kaggle.notebooks[SLUG]) == 2 and read_state(folder)["version"] == 2


def test_some_failed_requests_do_not_end_the_waiting(push, kaggle):
    kaggle.fail["GetKernelSessionStatus"], kaggle.fail_times["GetKernelSessionStatus"] = 503, 6
    assert push().code == 0


def test_many_failed_requests_end_the_waiting(push, kaggle, folder, monkeypatch):
    monkeypatch.setattr(notebook_stage, "MAX_FAILURES", 3)
    kaggle.fail["GetKernelSessionStatus"] = 403
    run = push()
    assert (run.code, run.err.count("\n")) == (2, 1) and "the same command continues" in run.err
    kaggle.fail.clear()
    assert push().code == 0 and len(kaggle.notebooks[SLUG]) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("submission.csv", None, "wrote no submission.csv"),
        ("submission.csv", b"<html>expired</html>", "damaged (submission.csv)"),
        ("data/runs/quick/train/curves.png", b"<html>expired</html>", "damaged (curves.png)"),
        ("data/runs/quick/train/manifest.json", b"{}", "damaged (manifest.json is damaged)"),
    ],
)
def test_missing_and_damaged_results(push, kaggle, results, folder, name, content, message):
    """The client's version 2.2.4 writes an error page as if it were the file."""
    intact = dict(results)
    results[name] = content
    if content is None:
        del results[name]
    run = push()
    assert (run.code, run.err.count("\n")) == (1, 1), run.err
    assert message in run.err
    results.update(intact)
    assert push().code == 0
    assert len(kaggle.notebooks[SLUG]) == 1


def test_failed_download_keeps_the_earlier_results(push, kaggle, folder):
    push()
    kaggle.fail["Download"] = 403
    assert push("--force").code != 0
    assert (folder / "output/submission.csv").exists()
    assert read_state(folder)["status"] == "pushed"


def test_results_of_other_data_cannot_be_sent(push, results):
    receipt = json.loads(results["submissions/quick/submission.json"])
    results["submissions/quick/submission.json"] = json.dumps(receipt | {"can_be_submitted": False}).encode()
    run = push()
    assert run.code == 0 and "cannot be sent" in run.out and "\nsubmit  " not in run.out


def test_state_of_a_damaged_file_is_ignored(push, kaggle, folder):
    push()
    (folder / "push.json").write_text("{")
    assert push().code == 0
    assert len(kaggle.notebooks[SLUG]) == 2
