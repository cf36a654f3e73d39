"""Notebooks on Kaggle, called kernels in its API: push one, ask for the status of its session, fetch its output.

Success is read from the content of each answer: the client returns normally after most failures.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.kaggle import client
from pipeline.kaggle.client import KaggleError
from pipeline.kaggle.competition import PAGE

WORK_PAGE = "https://www.kaggle.com/work"
NEW_TITLE = 'choose another title with --set notebook.title="..."'
FETCH_TIMEOUT_FACTOR = 10  # the client's version 2.2.4 writes each file in one piece

RUNNING = ("NEW_SCRIPT", "QUEUED", "RUNNING", "CANCEL_REQUESTED")
COMPLETE = "COMPLETE"

# What to do about a refusal, by the reason in Kaggle's answer (the first match), and whether the user can correct it.
ADVICE = (
    (r"too large|too long|size", "Kaggle accepts notebooks of less than 1 MB", True),
    (
        r"quota|session count|limit",
        f"wait until another session has ended, or stop it at {WORK_PAGE}, then run the same command again",
        False,
    ),
    (
        r"phone|verif",
        f"verify your phone number at {client.TOKEN_PAGE}, which GPUs require, or add --device cpu",
        True,
    ),
    (r"\brule|accept|join", f"join the competition and accept its rules at {PAGE}/rules", True),
    (r"title|slug|conflict|already|not found", NEW_TITLE, True),
)
# The same by HTTP status, for answers whose text says no more.
ADVICE_BY_STATUS = {
    403: f"accept the competition's rules at {PAGE}/rules, and verify your phone number at {client.TOKEN_PAGE}",
    404: f"the account has no such notebook: see {WORK_PAGE}",
    409: f"another notebook has this title or address: {NEW_TITLE}",
    413: "the notebook is too large: Kaggle accepts less than 1 MB",
}


class Refused(KaggleError):
    """Kaggle refused a request: nothing runs there because of it."""


class Push(NamedTuple):
    """A version of a notebook, which Kaggle runs."""

    version: int
    url: str


class Session(NamedTuple):
    """The state of a notebook's run: `status` is COMPLETE, ERROR, CANCEL_ACKNOWLEDGED or one of RUNNING."""

    status: str
    message: str  # of a failure


def get_username() -> str:
    """The name of the account that the credentials belong to. Raises KaggleError."""
    username = _request("get_username")["username"]
    if not username:
        raise KaggleError("the Kaggle credentials contain no user name: set KAGGLE_USERNAME", user_error=True)
    return str(username)


def push_notebook(folder: Path) -> Push:
    """Push the notebook that `kernel-metadata.json` in a folder describes, in a single attempt.

    Raises Refused, or a KaggleError that leaves open whether it was pushed.
    """
    reply = _request("push_notebook", retry=False, folder=str(folder))
    if reply["rejection"]:
        raise _refusal(reply["rejection"])
    if reply["invalid_competitions"]:
        raise Refused(
            "Kaggle pushed the notebook without the competition's data, so its run will fail: "
            f"join the competition and accept its rules at {PAGE}/rules, then run the same command again",
            user_error=True,
        )
    if not reply["version"]:
        raise KaggleError("Kaggle's reply names no version of the notebook")
    return Push(int(reply["version"]), str(reply["url"]))


def find_version(notebook: str, text: str) -> int | None:
    """The newest version of a notebook ("user/slug") if its source contains `text`, otherwise None.

    Raises KaggleError.
    """
    reply = client.send_request("find_notebook", notebook=notebook, text=text)
    if reply.get("error") in (403, 404):  # what Kaggle answers for notebooks that do not exist
        return None
    if "error" in reply:
        raise _explain(reply)
    return None if reply["version"] is None else int(reply["version"])


def get_session(notebook: str) -> Session:
    """The state of the run of a notebook ("user/slug/version"). Raises KaggleError."""
    reply = _request("get_session_status", notebook=notebook)
    return Session(reply["status"], reply["message"])


def fetch_output(notebook: str, folder: Path, pattern: str) -> None:
    """Download the output files whose name matches `pattern`, and the log as `<slug>.log`. Raises KaggleError."""
    _request(
        "fetch_output",
        download_folder=folder,
        notebook=notebook,
        folder=str(folder),
        pattern=pattern,
        timeout_factor=FETCH_TIMEOUT_FACTOR,
    )


def _request(action: str, **arguments: Any) -> dict[str, Any]:
    reply = client.send_request(action, **arguments)
    if "error" in reply:
        raise _explain(reply)
    return reply


def _explain(reply: dict[str, Any]) -> KaggleError:
    status, detail = reply["error"], reply.get("detail")
    if status != 400 and status not in ADVICE_BY_STATUS:
        return client.explain(reply)
    return _refusal(f"{status}: {detail}" if detail else f"{status}", ADVICE_BY_STATUS.get(status, ""))


def _refusal(reason: str, default_advice: str = "") -> Refused:
    """The error for a refused request, with what to do about it as far as that is known."""
    known = (
        (advice, user_error) for pattern, advice, user_error in ADVICE if re.search(pattern, reason, re.IGNORECASE)
    )
    advice, user_error = next(known, (default_advice, True))
    reason = " ".join(reason.split()).rstrip(".")
    return Refused(f"Kaggle refused the request ({reason})" + (f": {advice}" if advice else ""), user_error)
