#!/usr/bin/env python3
"""The command line of the Digit Recognizer pipeline: `python run_pipeline.py --stage all`.

In the syntax of Python 2.7, so that any interpreter can say that it is too old.
"""

import sys


def main(arguments=None):
    # type: (list[str] | None) -> int
    """Import the command line and run it; returns the exit code."""
    if sys.version_info < (3, 11):
        sys.stderr.write(
            "error: this is Python %d.%d, and the pipeline requires Python 3.11 or newer: run `python3.11 -m venv "
            ".venv && .venv/bin/pip install -r requirements.txt`, then use .venv/bin/python\n" % sys.version_info[:2]
        )
        return 2
    previous = None
    try:  # imports take so long that many interruptions arrive here
        import signal

        previous = signal.signal(signal.SIGTERM, _stop)
        from pipeline.cli.main import main as run

        return run(arguments)
    except KeyboardInterrupt as stopped:
        sys.stderr.write("stopped: finished work is kept; the same command continues from there\n")
        return 128 + int(stopped.args[0] if stopped.args else 2)  # SIGINT
    except ImportError as error:
        if "--debug" in sys.argv:
            import traceback

            traceback.print_exc()
        from pipeline.errors import UserError, explain

        explained = explain(error)
        is_explained = isinstance(explained, UserError)
        kind = "" if is_explained else "%s: " % type(error).__name__
        sys.stderr.write("error: %s%s\n" % (kind, " ".join(str(explained).split())))
        return 2 if is_explained else 1
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _stop(number, frame):
    # type: (int, object) -> None
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
