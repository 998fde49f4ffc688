"""Ask before anything irreversible; without a terminal and without an explicit yes, do not do it."""

import sys

from gramfuse.cli import output
from gramfuse_shared.errors import NotConfirmedError


def require_confirmed(question: str, *, yes: bool, option: str = "--yes") -> None:
    """Require a yes, from the option or from the person at the terminal.

    Raises:
        NotConfirmedError: the answer was no, or there is nobody to ask.
    """
    if not is_confirmed(question, yes=yes, option=option):
        msg = "not confirmed; nothing was done"
        raise NotConfirmedError(msg)


def is_confirmed(question: str, *, yes: bool, option: str = "--yes") -> bool:
    """Tell whether the option or the person at the terminal says yes.

    Raises:
        NotConfirmedError: there is nobody to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        msg = f"there is no terminal to ask at: {question} Give {option} to say yes"
        raise NotConfirmedError(msg)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def tell_before_asking(text: str, *, yes: bool) -> None:
    """Show what a question is about: to people always, to a program only where a person sits before it and is asked."""
    output.note(text, always=not yes and sys.stdin.isatty())
