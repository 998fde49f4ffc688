"""`gramfuse participate`: answer what the server asks, from local data, with a person's consent."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gramfuse.answering.configuration import Participation, read_participation
from gramfuse.answering.participating import Handled, participate
from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.cli import bars, output, session
from gramfuse.cli.asking import is_confirmed, tell_before_asking
from gramfuse.cli.measuring import first_interrupt
from gramfuse_shared.contract.requests import RequestInfo
from gramfuse_shared.errors import CancelledError, GramfuseError

app = typer.Typer(add_completion=False)

_EXAMPLES = """Examples:

    gramfuse participate participate.yaml
    gramfuse participate participate.yaml --watch --every 60

A configuration, whose paths start from its own folder:

    project: acme.tweets
    model: tuned
    held_out: {texts: test.jsonl, tokens: tokens, tags: tags}
    measured: {texts: mine.jsonl, tokens: tokens}
    calibrated: {texts: dev.jsonl, tokens: tokens, tags: tags}
    allow: [evaluate]
"""


@app.command("participate", epilog=_EXAMPLES)
def participate_command(
    configuration: Annotated[Path, typer.Argument(help="Names project, model and local texts (YAML or JSON).")],
    yes: Annotated[bool, typer.Option("--yes", help="Send every answer without being asked.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on looking for requests until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds between two looks of --watch.")] = 30.0,
) -> None:
    """Answer the requests that wait for your organization: computed here, and shown before anything leaves.

    `held_out` answers evaluate, `measured` gram and, with `model`, head, `calibrated` (or `held_out`) calibration.
    Kinds under `allow` are sent without a question, all others only after a yes. Running it again goes on where it
    stopped; an answer that was computed is not computed again, unless texts, model or configuration have changed. What
    cannot be answered is told behind all the others. With --watch, what was declined or cannot be answered is left
    alone until the command is started again.
    """
    participation = read_participation(configuration)
    if not watch:
        handled = _answer(participation, yes=yes, on_failure=lambda *_: None)
        _show(handled, participation)
        _raise_first(handled)
        return
    with first_interrupt("stopping; Ctrl-C again stops at once") as stopped:
        output.note(f"looking for requests of {participation.project} every {every:g} s; Ctrl-C ends it", always=True)
        told: set[tuple[str, str]] = set()
        left_alone: set[str] = set()

        def tell_failure(request: RequestInfo, error: GramfuseError) -> None:
            consequence = "it is left alone until this command is started again"
            output.note(f"{request.id} cannot be answered [{error.code}]: {error.message}; {consequence}", always=True)

        while not stopped.is_set():
            try:
                handled = _answer(
                    participation, yes=yes, is_cancelled=stopped.is_set, on_failure=tell_failure, skip=left_alone
                )
            except CancelledError as error:
                output.note(error.message)
                break
            except GramfuseError as error:
                if not error.retryable:
                    raise
                output.note(f"{error.message}; trying again in {every:g} s", always=True)
                handled = []
            left_alone.update(one.request.id for one in handled if one.outcome in {"failed", "declined"})
            news = [one for one in handled if (one.request.id, one.outcome) not in told]
            told.update((one.request.id, one.outcome) for one in news)
            if news:
                _show(news, participation)
            stopped.wait(every)


def _answer(
    participation: Participation,
    *,
    yes: bool,
    is_cancelled: Callable[[], bool] = lambda: False,
    on_failure: Callable[[RequestInfo, GramfuseError], None],
    skip: Collection[str] = (),
) -> list[Handled]:
    def confirm(prepared: PreparedAnswer) -> bool:
        tell_before_asking(str(prepared), yes=yes)
        return is_confirmed(f"Send this answer to {prepared.answer.request} of {prepared.answer.project}?", yes=yes)

    with session.open_client() as client:
        return participate(
            client,
            participation,
            confirm=confirm,
            on_allowed=lambda prepared: output.note(str(prepared)),
            on_failure=on_failure,
            skip=skip,
            measuring=lambda request: bars.measurement(f"{request.id}:"),
            transferring=bars.transfer,
            is_cancelled=is_cancelled,
        )


def _raise_first(handled: Sequence[Handled]) -> None:
    """Tell why requests could not be answered, if there are any, and raise the first's error by its own class."""
    failed = [(one.request.id, one.error) for one in handled if one.error is not None]
    for request, error in failed[1:]:
        output.note(f"{request} cannot be answered [{error.code}]: {error.message}")
    for request, error in failed[:1]:
        msg = f"{request} cannot be answered: {error.message}"
        raise type(error)(msg, **error.facts) from error


def _show(handled: Sequence[Handled], participation: Participation) -> None:
    rows = [(one.request.id, one.request.kind, ", ".join(one.request.models), one.outcome) for one in handled]
    result = [_told(one) for one in handled]
    if not handled and not output.is_json():
        output.note("no request waits for your organization", always=True)
        return
    output.show(result, output.table(("request", "kind", "models", "outcome"), rows))
    for one in handled:
        if one.outcome == "no local data":
            lacking = participation.lacking(one.request)
            output.note(f"{one.request.id} waits for an answer: add {lacking} to the configuration, and run this again")


def _told(one: Handled) -> dict[str, Any]:
    found: dict[str, Any] = {"request": one.request.id, "kind": one.request.kind, "outcome": one.outcome}
    return found if one.error is None else found | {"error": {"code": one.error.code, "message": one.error.message}}
