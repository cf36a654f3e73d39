"""The official `kaggle` client, kept at arm's length: download, submit, list submissions.

Importing the client already authenticates, it has no time limits, prints what it likes, and reports a failed upload
by returning normally. So each call runs in a short-lived child process (this file, run as a script): one JSON
request on stdin, one JSON line on stdout, its chatter discarded, a time limit from outside.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tqdm import tqdm

SLUG = "digit-recognizer"
PAGE = f"https://www.kaggle.com/competitions/{SLUG}"
TRAIN_ROWS, TEST_ROWS = 42_000, 28_000
DIGITS = TRAIN_ROWS + TEST_ROWS  # the images of MNIST, from which the competition's two tables were drawn
# Mean pixel of MNIST's 70,000 images, and how far that of a random draw of 42,000 may be from it: seven standard errors
# of 11.06 / sqrt(42,000) * sqrt(1 - 42,000 / 70,000) = 0.034, 11.06 being the standard deviation of the images' means.
MEAN_PIXEL, MEAN_PIXEL_TOLERANCE = 33.386, 0.24
TOKEN_PAGE = "https://www.kaggle.com/settings"
# Seconds without an answer, or without a further byte of a download. A failure ends within 100 s: two attempts
# without a byte take 2 * PATIENCE + PAUSE; a download that was cut takes at most 1 + RESUMES times PATIENCE and the
# client's pauses of 2, 4, ... s between, and is not begun again.
PATIENCE = 30
RESUMES = 2
PAUSE = 3  # seconds before the one retry of what may pass: 429, 5xx, a broken connection

OTHERWISE = "or run with --data sample, or --data PATH for files you have"


class CompetitionError(RuntimeError):
    """What went wrong between here and Kaggle, and what to do next, in one line. `mistake`: the user can mend it."""

    def __init__(self, message, mistake=False):
        super().__init__(message)
        self.mistake = mistake


def has_credentials():
    """Whether the client would find credentials; they are not tried."""
    if os.environ.get("KAGGLE_API_TOKEN") or (os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY")):
        return True
    home = Path.home()
    files = [home / ".kaggle/access_token", home / ".kaggle/kaggle.json", home / ".config/kaggle/kaggle.json"]
    if os.environ.get("KAGGLE_CONFIG_DIR"):
        files.append(Path(os.environ["KAGGLE_CONFIG_DIR"]) / "kaggle.json")
    return any(file.is_file() for file in files)


def download(folder):
    """Fetch the competition's zip into `folder`; returns its path. Raises CompetitionError."""
    answer = _call({"do": "download", "folder": str(folder)}, grows=Path(folder))
    return Path(answer["path"])


def submit(file, message):
    """Send a submission file once, never a second time; returns Kaggle's reference number. Raises CompetitionError."""
    try:
        return _call({"do": "submit", "file": str(file), "message": message}, attempts=1)["ref"]
    except CompetitionError as error:
        if error.mistake or "nothing was submitted" in str(error):
            raise
        raise CompetitionError(
            f"{error}; it may have arrived all the same: submit looks before it sends again"
        ) from None


def submissions():
    """The account's submissions, newest first: dicts of ref, date, description, status, score, error."""
    return _call({"do": "submissions"})["submissions"]


def submissions_left():
    """How many submissions Kaggle still takes today."""
    return _call({"do": "limits"})["left"]


def _call(request, grows=None, attempts=2):
    """The child's answer. An attempt that failed for a passing reason is repeated once, unless `attempts` is 1."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(PAUSE)
        answer = _ask_child(request, grows)
        if "error" not in answer:
            return answer
        error = _explain(answer, OTHERWISE if grows else "")
        if not answer.get("passing"):
            break
    raise error


def _ask_child(request, grows):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERBOSE")}
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed below; a pipe would fill up and block the child)
    child = subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    size = 0
    try:
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
        sign_of_life = time.monotonic()
        with tqdm(desc="download", unit="B", unit_scale=True, disable=None if grows else True) as bar:
            while child.poll() is None:
                time.sleep(0.05)
                now = sum(f.stat().st_size for f in grows.iterdir() if f.suffix == ".zip") if grows else 0
                if now > size:
                    bar.update(now - size)
                    sign_of_life, size = time.monotonic(), now
                if time.monotonic() - sign_of_life > PATIENCE:
                    return {"error": "silence"}
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").splitlines()
        answer = json.loads(lines[-1]) if lines else None
        if not isinstance(answer, dict):
            return {"error": "crash", "detail": f"exit code {child.returncode}"}
        return {**answer, "passing": answer.get("passing") and not size}
    except (ValueError, BrokenPipeError):
        return {"error": "crash", "detail": f"exit code {child.wait()}"}
    finally:
        child.kill()
        child.wait()
        output.close()


def _explain(answer, otherwise):
    """The CompetitionError for a child's error: what happened, and what to do."""
    otherwise = f", {otherwise}" if otherwise else ""
    detail = answer.get("detail", "")
    known = {
        "credentials": (
            f"Kaggle took no credentials: there are none, or the key or token is wrong. Make a token at {TOKEN_PAGE} "
            f"and put it into ~/.kaggle/access_token or KAGGLE_API_TOKEN (which comes before all else){otherwise}",
            True,
        ),
        "package": ("the kaggle package cannot be imported: pip install -r requirements.txt", True),
        "silence": (f"Kaggle did not answer for {PATIENCE} s: try again later{otherwise}", False),
        "connection": (f"Kaggle cannot be reached ({detail}): check the network{otherwise}", False),
        "upload": (f"Kaggle took no upload of the file ({detail}): nothing was submitted, try again later", False),
        "reply": (f"Kaggle's answer cannot be read ({detail}): a proxy or login page may stand between", False),
        "disk": (f"the download could not be written: {detail}", False),
        401: (
            f"Kaggle refused the key or token (401): make a new one at {TOKEN_PAGE} "
            "(an old KAGGLE_API_TOKEN in the environment comes before all else)",
            True,
        ),
        403: (f"Kaggle refuses (403): join the competition and accept its rules at {PAGE}/rules", True),
        404: (f"Kaggle knows no such competition or file (404): see {PAGE}", True),
        400: (f"Kaggle refused the request (400: {detail})", True),
        429: ("Kaggle asks to slow down (429): wait some minutes and try again", False),
    }
    kind = answer["error"]
    if kind in known:
        return CompetitionError(*known[kind])
    if isinstance(kind, int):
        return CompetitionError(f"Kaggle failed ({kind}): try again later{otherwise}")
    return CompetitionError(f"the kaggle client failed ({detail or kind})")


def _child():
    """Run one request through the client; the answer is the last line of stdout."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the client's own prints
    try:
        answer = _serve(json.load(sys.stdin))
    except BaseException as error:  # SystemExit is how the client says that it has no credentials
        answer = _classify(error)
    print(json.dumps(answer), file=answer_to, flush=True)


def _end_with(parent):
    """End this process when its parent has died: the client would wait for an answer for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _serve(request):
    try:
        from kaggle.api.kaggle_api_extended import KaggleApi
    except ModuleNotFoundError as error:
        return {"error": "package", "detail": str(error)}
    api = KaggleApi()
    api.authenticate()
    api.download_file = functools.partial(api.download_file, max_retries=RESUMES)
    if request["do"] == "download":
        api.competition_download_files(SLUG, path=request["folder"], force=True, quiet=True)
        return {"path": str(next(Path(request["folder"]).glob("*.zip")))}
    if request["do"] == "submit":
        reply = api.competition_submit(request["file"], request["message"], SLUG, quiet=True)
        ref = getattr(reply, "ref", 0)
        return {"ref": ref} if ref else {"error": "upload", "detail": str(reply.message)[:200]}
    if request["do"] == "limits":
        return {"left": api.competition_get_submission_limits(SLUG).num_allowed_now}
    return {
        "submissions": [
            {
                "ref": one.ref,
                "date": str(one.date),
                "description": str(one.description or ""),
                "status": str(getattr(one.status, "name", one.status)).rsplit(".", 1)[-1].upper(),
                "score": one.public_score,
                "error": one.error_description,
            }
            for one in api.competition_submissions(SLUG, page_size=100) or []
            if one is not None
        ]
    }


def _classify(error):
    """A client's exception as {"error": kind or HTTP status, "detail", "passing"}; never with a header or a key."""
    import requests

    response = getattr(error, "response", None)
    if response is not None:  # a 4xx response is falsy
        try:
            detail = str(response.json().get("message", ""))[:200]
        except (ValueError, AttributeError):
            detail = ""
        status = response.status_code
        return {"error": status, "detail": detail, "passing": status == 429 or status >= 500}
    if isinstance(error, SystemExit):
        return {"error": "credentials"}
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError, StopIteration)):
        return {"error": "reply", "detail": type(error).__name__}
    if isinstance(error, requests.RequestException):
        return {"error": "connection", "detail": type(error).__name__, "passing": True}
    if isinstance(error, OSError):
        return {"error": "disk", "detail": error.strerror or type(error).__name__}
    return {"error": "crash", "detail": type(error).__name__}


if __name__ == "__main__":
    _child()
