"""Errors that are explained to the user in one line, without a traceback."""


class PipelineError(Exception):
    """A failure whose message says what is wrong and what to do; the command line exits with `exit_code`."""

    exit_code = 1


class UserError(PipelineError, ValueError):
    """A mistake in the command line, the settings or the data, which the user can correct."""

    exit_code = 2


class StageError(UserError):
    """A stage cannot run in the current state; the message says what to do."""
