"""Ask the official client and the pipeline about credentials in many environments, in one process: the import is slow.

Run as `python -m tests.kaggle_places`; stdin has a list of [action, environment], stdout a list of replies.
"""

import json
import os
import sys
from pathlib import Path

from pipeline.kaggle import process


def reply_of_client():
    """Whether the unmodified client authenticates: "yes", "no" or "error"."""
    try:
        from kaggle.api.kaggle_api_extended import KaggleApi

        KaggleApi().authenticate()
    except SystemExit:
        return "no"
    except Exception:
        return "error"
    return "yes"


def reply_of_pipeline(action):
    """The reply of the pipeline's child process, and what it created in the home folder."""
    home = Path(os.environ["HOME"])
    before = {*home.rglob("*")}
    try:
        request = {"action": action, "competition": "digit-recognizer", "max_resumes": 1, "folder": str(Path.cwd())}
        reply = process.run_request(request)
    except BaseException as error:
        reply = process.describe_error(error)
    return reply, sorted(str(path) for path in {*home.rglob("*")} - before)


def main():
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the client prints to stdout
    common, replies = dict(os.environ), []
    for action, environment in json.load(sys.stdin):
        os.environ.clear()
        os.environ.update(common | environment)
        for name in [name for name in sys.modules if name == "kaggle" or name.startswith("kaggle.")]:
            del sys.modules[name]  # its class has read the environment
        replies.append(reply_of_client() if action == "authenticate" else reply_of_pipeline(action))
    json.dump(replies, output)


if __name__ == "__main__":
    main()
