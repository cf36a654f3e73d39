"""Run one request through the official `kaggle` client: the child process that `kaggle_client` starts.

The request is JSON on stdin; the reply is one JSON line, the last on stdout. It is run as a script and imports nothing
of this package.
"""

import functools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer the request on stdin."""
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    reply_stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the client prints to stdout
    try:
        reply = run_request(json.load(sys.stdin))
    except BaseException as error:  # without credentials the client raises SystemExit
        reply = describe_error(error)
    print(json.dumps(reply), file=reply_stream, flush=True)


def run_request(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a request, whose `action` is download, submit, list_submissions, count_submissions_left, or one of
    those of `run_notebook_request`.
    """
    try:
        from kaggle.api.kaggle_api_extended import KaggleApi
    except ModuleNotFoundError as error:
        return {"error": "package", "detail": str(error)}
    api = KaggleApi()
    api.authenticate()
    api.download_file = functools.partial(api.download_file, max_retries=request["max_resumes"])
    action, competition = request["action"], request["competition"]
    if action == "download":
        api.competition_download_files(competition, path=request["folder"], force=True, quiet=True)
        return {"path": str(next(Path(request["folder"]).glob("*.zip")))}
    if action == "submit":
        result = api.competition_submit(request["file"], request["message"], competition, quiet=True)
        reference = getattr(result, "ref", 0)  # a failed upload returns normally, without a reference number
        return {"ref": reference} if reference else {"error": "upload", "detail": str(result.message)[:200]}
    if action == "count_submissions_left":
        limits = api.competition_get_submission_limits(competition)
        return {"left": limits.num_allowed_now, "sent": limits.num_total}
    if action == "list_submissions":
        submissions = api.competition_submissions(competition, page_size=100) or []
        return {"submissions": [_as_dict(submission) for submission in submissions if submission is not None]}
    return run_notebook_request(api, request)


def run_notebook_request(api: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a request: get_username, push_notebook, find_notebook, get_session_status or fetch_output."""
    action = request["action"]
    if action == "get_username":
        return {"username": api.get_config_value("username")}
    if action == "push_notebook":
        result = api.kernels_push(request["folder"])
        return {
            "url": result.url,
            "version": result.version_number,
            "rejection": result.error or "",
            "invalid_competitions": list(result.invalid_competition_sources or []),
        }
    if action == "find_notebook":
        return _find_notebook(api, request["notebook"], request["text"])
    if action == "get_session_status":
        session = api.kernels_status(request["notebook"])
        return {"status": session.status.name, "message": session.failure_message or ""}
    api.kernels_output(request["notebook"], request["folder"], file_pattern=request["pattern"], force=True)
    return {}


def _find_notebook(api: Any, name: str, text: str) -> dict[str, Any]:
    """The newest version of a notebook, if its source contains `text`; otherwise None."""
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

    request = ApiGetKernelRequest()
    request.user_name, request.kernel_slug = name.split("/")
    with api.build_kaggle_client() as client:
        notebook = client.kernels.kernels_api_client.get_kernel(request)
    contains_text = text in (notebook.blob.source or "")
    return {"version": notebook.metadata.current_version_number if contains_text else None}


def _as_dict(submission: Any) -> dict[str, Any]:
    return {
        "ref": submission.ref,
        "date": str(submission.date),
        "description": str(submission.description or ""),
        "status": str(getattr(submission.status, "name", submission.status)).rsplit(".", 1)[-1].upper(),
        "score": submission.public_score,
        "error": submission.error_description,
    }


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception of the client as {"error": kind or HTTP status, "detail", "temporary"}, without headers or keys."""
    import requests

    # For notebooks, the client replaces the error of an HTTP status by a ValueError.
    response = next((r for e in (error, error.__context__) if (r := getattr(e, "response", None)) is not None), None)
    if response is not None:  # a 4xx response is falsy
        try:
            content = response.json()
            detail = str(content.get("message") or content.get("error") or "")[:200]
        except (ValueError, AttributeError):
            detail = ""
        status = response.status_code
        return {"error": status, "detail": detail, "temporary": status == 429 or status >= 500}
    if isinstance(error, SystemExit):
        return {"error": "credentials"}
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError, StopIteration)):
        return {"error": "reply", "detail": type(error).__name__}
    if isinstance(error, requests.RequestException):
        return {"error": "connection", "detail": type(error).__name__, "temporary": True}
    if isinstance(error, OSError):  # last, because the errors of requests are OSErrors
        return {"error": "disk", "detail": error.strerror or type(error).__name__}
    return {"error": "crash", "detail": type(error).__name__}


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent process has died: the client itself would wait for a reply forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
