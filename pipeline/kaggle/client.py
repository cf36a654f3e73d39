"""Download the competition's data, send submissions and list them, through the official `kaggle` client.

Importing the client already authenticates; it has no time limits, prints to stdout, and reports a failed upload by
returning normally. Each call therefore runs in a short-lived child process (`process.py`) with a time limit.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.kaggle.competition import PAGE, SLUG

TOKEN_PAGE = "https://www.kaggle.com/settings"

# Every failure is reported within 100 s: two attempts without a reply take 2 * TIMEOUT + RETRY_PAUSE; an interrupted
# download takes at most (1 + MAX_RESUMES) * TIMEOUT and the client's pauses of 2, 4, ... s, and has no second attempt.
TIMEOUT = 30  # seconds without a reply, or without another byte of a download
MAX_RESUMES = 2
RETRY_PAUSE = 3  # seconds before the second attempt after a temporary failure: 429, 5xx, a broken connection

# What happened and what to do, by the error that the child process reports: a word or an HTTP status.
JOIN = f"join the competition and accept its rules at {PAGE}/rules"
USER_ERRORS = {
    "credentials": "Kaggle credentials are missing or invalid: run `kaggle auth login`, or create a token at "
    f"{TOKEN_PAGE} and put it into ~/.kaggle/access_token or KAGGLE_API_TOKEN (which takes precedence over all other "
    "credentials)",
    "package": "the kaggle package cannot be imported: pip install -r requirements.txt",
    400: "Kaggle rejected the request (400)",
    401: f"Kaggle rejected the key or token (401): create a new one at {TOKEN_PAGE} (a KAGGLE_API_TOKEN in the "
    "environment takes precedence over all other credentials)",
    403: f"Kaggle denied access (403): {JOIN}",
    404: f"Kaggle found no such competition or file (404): see {PAGE}",
}
FAILURES = {
    "timeout": f"Kaggle did not answer for {TIMEOUT} s: try again later",
    "connection": "Kaggle cannot be reached: check the network",
    "upload": "Kaggle did not accept the upload, and nothing was submitted: try again later",
    "reply": "Kaggle's reply cannot be read: it may come from a proxy or a login page",
    "disk": "the download could not be written",
    "crash": "the kaggle client failed",
    429: "Kaggle received too many requests (429): wait some minutes and try again",
}
OTHER_SOURCES = "or run with --data sample, or --data PATH for files that you have"


class KaggleError(PipelineError):
    """A request to Kaggle failed; the exit code is 2 if the user can correct it (`user_error`)."""

    def __init__(self, message: str, user_error: bool = False) -> None:
        super().__init__(message)
        if user_error:
            self.exit_code = 2


def find_credentials() -> tuple[bool, str]:
    """Whether the client has credentials, which may be invalid; if not, also what prevents it from reading them."""
    reply = send_request("find_credentials", retry=False)
    return "error" not in reply, "" if reply.get("error") in (None, "credentials") else str(explain(reply))


def download_archive(folder: Path) -> Path:
    """Download the competition's zip into `folder`, and return its path. Raises KaggleError."""
    return Path(_call("download", download_folder=folder, folder=str(folder))["path"])


def send_submission(file: Path, message: str) -> int:
    """Send a submission file, in a single attempt, and return Kaggle's reference number. Raises KaggleError."""
    try:
        return int(_call("submit", retry=False, file=str(file), message=message)["ref"])
    except KaggleError as error:
        if error.exit_code == 2 or "nothing was submitted" in str(error):
            raise
        message = f"{error}; the submission may have arrived: --stage submit checks this before it sends again"
        raise KaggleError(message) from None


def submit_command(file: str, receipt: Mapping[str, Any]) -> str:
    """The command of the official client that sends a submission file with this receipt."""
    message = f"{receipt['message']} {receipt['tag']}"
    return f"kaggle competitions submit -c {SLUG} -f {shlex.quote(file)} -m {shlex.quote(message)}"


def list_submissions() -> list[dict[str, Any]]:
    """The account's submissions, newest first. Raises KaggleError.

    Each has ref, date, description, status (PENDING, COMPLETE or ERROR), score (public, as text) and error.
    """
    return list(_call("list_submissions")["submissions"])


def count_submissions_left() -> int:
    """Number of submissions that Kaggle accepts today. Raises KaggleError."""
    reply = _call("count_submissions_left")
    if not reply["left"] and not reply["sent"]:  # the client's documentation: zeros if the user is not on a team yet
        raise KaggleError(f"Kaggle accepts no submission yet: {JOIN}", user_error=True)
    return int(reply["left"])


def _call(action: str, retry: bool = True, download_folder: Path | None = None, **arguments: Any) -> dict[str, Any]:
    """The child's reply, after a temporary failure that of a second attempt. Raises KaggleError."""
    reply = send_request(action, retry, download_folder, **arguments)
    if "error" in reply:
        raise explain(reply, f", {OTHER_SOURCES}" if download_folder else "")
    return reply


def send_request(
    action: str, retry: bool = True, download_folder: Path | None = None, timeout_factor: int = 1, **arguments: Any
) -> dict[str, Any]:
    """The child's reply, after a temporary failure that of a second attempt; {"error", "detail"} after a failure."""
    request = {"action": action, "competition": SLUG, "max_resumes": MAX_RESUMES, **arguments}
    reply = _run_child(request, download_folder, timeout_factor)
    if retry and reply.get("temporary"):
        time.sleep(RETRY_PAUSE)
        reply = _run_child(request, download_folder, timeout_factor)
    return reply


def explain(reply: dict[str, Any], advice: str = "") -> KaggleError:
    """The error that a failed reply describes, with advice at the end."""
    kind, detail = reply["error"], reply.get("detail")
    if kind == "local":  # a cause on this machine, with what to do
        return KaggleError(f"{detail}{advice}", user_error=True)
    message = USER_ERRORS.get(kind) or FAILURES.get(kind) or f"Kaggle failed ({kind}): try again later"
    return KaggleError(message + (f" ({detail})" if detail else "") + advice, user_error=kind in USER_ERRORS)


def _run_child(request: dict[str, Any], download_folder: Path | None, timeout_factor: int) -> dict[str, Any]:
    """The reply of a child process, which is killed if neither a reply nor the download comes for some time.

    timeout_factor: this time, in units of TIMEOUT.
    """
    # An empty KAGGLE_KEY, as from a compose file, is no key, but the client would prefer it to kaggle.json.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("VERBOSE") and (value or not name.startswith("KAGGLE_"))
    }
    # Not pipes: a long reply would fill one, and the child would block.
    with tempfile.TemporaryFile() as request_file, tempfile.TemporaryFile() as reply_file:
        request_file.write(json.dumps(request).encode())
        request_file.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("process.py"))],
            stdin=request_file,
            stdout=reply_file,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        try:
            size, last_progress = 0, time.monotonic()
            with tqdm(desc="download", unit="B", unit_scale=True, disable=None if download_folder else True) as bar:
                while child.poll() is None:
                    time.sleep(0.05)
                    new_size = _folder_size(download_folder) if download_folder else 0
                    if new_size > size:
                        bar.update(new_size - size)
                        size, last_progress = new_size, time.monotonic()
                    if time.monotonic() - last_progress > TIMEOUT * timeout_factor:
                        return {"error": "timeout"}
        finally:
            child.kill()
            child.wait()
        reply_file.seek(0)
        try:
            reply = dict(json.loads(reply_file.read().splitlines()[-1]))
        except (ValueError, TypeError, IndexError):
            return {"error": "crash", "detail": f"exit code {child.returncode}"}
        return {**reply, "temporary": reply.get("temporary") and not size}


def _folder_size(folder: Path) -> int:
    """Bytes of all files below a folder, in which another process creates and deletes files."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size
