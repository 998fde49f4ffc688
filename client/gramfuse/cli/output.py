"""What the command line prints, by the printing of both programs; the exit code and the next step of each error."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gramfuse_shared import errors
from gramfuse_shared.shell.commands import EXIT_ERROR
from gramfuse_shared.shell.printing import (
    FormatOption,
    OutputFormat,
    choose_format,
    console,
    is_json,
    note,
    reset_format,
    show,
    table,
    tell_error,
    to_json,
)

__all__ = [
    "EXIT_ERROR",
    "FormatOption",
    "OutputFormat",
    "choose_format",
    "console",
    "exit_code_of",
    "is_json",
    "note",
    "report_error",
    "reset_format",
    "show",
    "table",
    "to_json",
]

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 3
EXIT_UNREACHABLE: Final = 4
EXIT_JOB: Final = 5
EXIT_INTERRUPTED: Final = 130

EXIT_CODES_TEXT: Final = (
    "Exit codes: 0 done · 1 error (its code and message on stderr) · 2 wrong usage · 3 refused by the policy, or not "
    "confirmed · 4 the server cannot be reached or is not ready, try again · 5 the job or the request failed or was "
    "cancelled · 130 interrupted; running the same command again resumes."
)

_EXIT_CODES: Final[Mapping[type[errors.GramfuseError], int]] = MappingProxyType(
    {
        errors.PolicyViolationError: EXIT_REFUSED,
        errors.PolicyNotAcceptedError: EXIT_REFUSED,
        errors.CohortFrozenError: EXIT_REFUSED,
        errors.ModelNotReleasedError: EXIT_REFUSED,
        errors.AuditRefusedError: EXIT_REFUSED,
        errors.NotConfirmedError: EXIT_REFUSED,
        errors.TransportError: EXIT_UNREACHABLE,
        errors.UnavailableError: EXIT_UNREACHABLE,
        errors.JobFailedError: EXIT_JOB,
        errors.RequestFailedError: EXIT_JOB,
        errors.CancelledError: EXIT_JOB,
    }
)

_NEXT_STEPS: Final[Mapping[type[errors.GramfuseError], str]] = MappingProxyType(
    {
        errors.UnauthenticatedError: "sign in with `gramfuse login URL`, or set GRAMFUSE_TOKEN",
        errors.PolicyNotAcceptedError: "read and accept the policy with `gramfuse project join {project}`",
        errors.TransportError: "check URL and network; the same command again resumes what was under way",
        errors.UnavailableError: "try again in a moment; the same command resumes what was under way",
        errors.WeightsInvalidError: "train the model again, or restore it, and collect its statistics anew",
        errors.StatisticsInvalidError: "measure again what the message names; nothing was sent",
        errors.NotFoundError: "check the name; what your organization was not invited to does not exist for it",
    }
)


def report_error(error: errors.GramfuseError) -> int:
    """Print an error as one line and its next step on stderr; return the exit code."""
    tell_error(error, step=_next_step(error))
    return exit_code_of(error)


def exit_code_of(error: errors.GramfuseError) -> int:
    """Return the documented exit code of an error."""
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), EXIT_ERROR)


def _next_step(error: errors.GramfuseError) -> str | None:
    step = next((step for kind, step in _NEXT_STEPS.items() if isinstance(error, kind)), None)
    return step and step.format(project=error.facts.get("project", "PROJECT"))
