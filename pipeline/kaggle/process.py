"""Run one request through the official `kaggle` client: the child process that `client.py` starts.

The request is JSON on stdin; the reply is one JSON line, the last on stdout. It is run as a script and imports nothing
of this package.
"""

import errno
import functools
import json
import os
import re
import ssl
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

NO_HOME = "there is no home folder: set HOME, or create an entry for this user in /etc/passwd"


class LocalError(Exception):
    """The client cannot work because of something on this machine. The message contains no key or token."""


class CredentialsFoundError(Exception):
    """The client has credentials, and would now send them."""


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
    """The reply to a request, whose `action` is find_credentials, download, submit, list_submissions,
    count_submissions_left, or one of those of `run_notebook_request`.
    """
    if request["action"] == "find_credentials":
        return find_credentials()
    if not _has_home():  # the client would create a folder with the name "~"
        raise LocalError(NO_HOME)
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


def find_credentials() -> dict[str, Any]:
    """An empty reply if the client has credentials, which may be invalid. Raises what the client raises if not.

    The client decides, without a network and without the folder that it creates when it is imported.
    """
    with patch("os.makedirs"), patch("requests.Session.send", side_effect=CredentialsFoundError):
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
        except ModuleNotFoundError as error:
            return {"error": "package", "detail": str(error)}
        api = KaggleApi()
        try:
            api.authenticate()
        except CredentialsFoundError:
            pass
        except Exception:  # a place that cannot be read, which does not hide a key in another place
            if not {api.CONFIG_NAME_USER, api.CONFIG_NAME_KEY} <= api.config_values.keys():
                raise
    return {}


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

    try:
        _check_credentials()
        if isinstance(error, OSError) and getattr(error, "response", None) is None:
            names = ["REQUESTS_CA_BUNDLE" if os.environ.get("REQUESTS_CA_BUNDLE") else "CURL_CA_BUNDLE"]
            # requests does not use SSL_CERT_FILE, but what some administrators install beneath it does.
            check_certificates(names + ["SSL_CERT_FILE"] * isinstance(error, requests.exceptions.SSLError))
    except (LocalError, OSError) as cause:
        error = cause
    if isinstance(error, LocalError):
        return {"error": "local", "detail": str(error)}
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
        reason = error.strerror or type(error).__name__
        if error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            return {"error": "disk", "detail": reason}
        # The client tries a token as a file name, so what comes from a variable is not shown.
        name = next((name for name, value in os.environ.items() if value == error.filename), error.filename)
        access = isinstance(error, PermissionError)
        advice = "give this user access to it, or set HOME to another folder" if access else "correct or remove it"
        return {"error": "local", "detail": f"the kaggle client cannot use {name} ({reason}): {advice}"}
    return {"error": "crash", "detail": type(error).__name__}


def _has_home() -> bool:
    return os.path.isabs(os.path.expanduser("~")) or "KAGGLE_CONFIG_DIR" in os.environ


def _check_credentials() -> None:
    """Raise LocalError or OSError if the credentials that the client uses, the first in its order, cannot be right."""
    if not _has_home():
        raise LocalError(NO_HOME)
    try:
        from kaggle.api.kaggle_api_extended import KaggleApi
    except ImportError:  # the first import failed, for the reason that is described
        return None
    token, folder = os.environ.get("KAGGLE_API_TOKEN", ""), os.path.expanduser("~/.kaggle")
    if token and not os.path.exists(token):
        if token.startswith(("/", "./", "~")):
            raise LocalError("KAGGLE_API_TOKEN names a file that does not exist")
        return _check_value("KAGGLE_API_TOKEN", token)
    files = [(path, path) for path in (f"{folder}/access_token", f"{folder}/access_token.txt")]
    for name, path in [("KAGGLE_API_TOKEN", token), *files] if token else files:
        if text := _read_text(name, path).strip():
            return _check_value(name, text)
    variables = {name: value for name in ("username", "key") if (value := os.environ.get(f"KAGGLE_{name.upper()}"))}
    values = variables if len(variables) == 2 else _read_json(KaggleApi.config) | variables
    names = [name for name in ("username", "key") if name in values]
    for name in names:
        _check_value(
            f"KAGGLE_{name.upper()}" if name in variables else f"{name} in {KaggleApi.config}", str(values[name])
        )
    if len(names) == 1:
        raise LocalError(
            f"Kaggle credentials are missing: there is only the {names[0]}; set KAGGLE_USERNAME and KAGGLE_KEY"
        )
    if not names:
        _read_json(f"{folder}/credentials.json")
    return None


def _check_value(name: str, value: str) -> None:
    """Raise LocalError if a key, token or user name has a character that none has, as after a careless copy."""
    if not value:
        raise LocalError(f"{name} is empty")
    if other := re.sub("[!#-&(-_a-~]", "", value):  # printable ASCII without spaces and quotation marks
        character = "line break" if other[0] in "\r\n" else unicodedata.name(other[0], f"U+{ord(other[0]):04X}").lower()
        raise LocalError(f"{name} contains a character that does not belong there ({character}): copy it again")


def _read_text(name: str, path: str) -> str:
    """The text in a file; "" if there is none. Raises LocalError, or OSError."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except UnicodeDecodeError:
        raise LocalError(f"{name} is not UTF-8 text: save it as UTF-8 (PowerShell writes UTF-16)") from None


def _read_json(path: str) -> dict[str, Any]:
    """The JSON object in a file; {} if there is none. Raises LocalError, or OSError."""
    text = _read_text(path, path)
    try:
        values = json.loads(text or "{}")
    except ValueError as error:
        raise LocalError(f"{path} is not valid JSON ({error}): download it again") from None
    if not isinstance(values, dict):
        raise LocalError(f"{path} is not a JSON object with username and key: download it again")
    return values


def check_certificates(names: Iterable[str]) -> None:
    """Raise LocalError if a variable with one of these names leads to certificates that cannot be read."""
    for name in names:
        if path := os.environ.get(name):
            try:
                location = {"capath": path} if os.path.isdir(path) else {"cafile": path}
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(**location)
            except OSError as error:
                raise LocalError(
                    f"{name} names {path}, which cannot be read as certificates "
                    f"({error.strerror or type(error).__name__}): correct or unset it"
                ) from None


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent process has died: the client itself would wait for a reply forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
