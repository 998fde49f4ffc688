"""What commands of requests have in common: their options, how answers are counted, the bar of a loop, and Ctrl-C."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Final, cast, get_args

import typer

from gramfuse.cli import bars, output
from gramfuse.naming import first_names
from gramfuse_shared.contract.manifest import Weighting
from gramfuse_shared.contract.requests import DAY_SECONDS, MeasuredBlock, RequestInfo
from gramfuse_shared.errors import ConfigurationError

WeightingOption = Annotated[
    Weighting, typer.Option(help="Of gram: output_gradient counts a row by the loss's gradient at its layer's output.")
]
DaysOption = Annotated[float, typer.Option("--days", min=0.001, max=365, help="Until the deadline of a request.")]

_MOST_NAMED: Final = 5


@dataclass(slots=True)
class ShownLoop:
    """The bar of a loop, and the request that it waits for."""

    _show_bar: Callable[[float, str], None]
    waited: RequestInfo | None = None
    known: list[str] = field(default_factory=list)

    def wait_for(self, request: RequestInfo) -> None:
        """Note a request that is open."""
        self.waited = request

    def show(self, share: float, words: str, request: RequestInfo | None) -> None:
        """Show how far the loop is, and note what it waits for."""
        self._show_bar(share, words)
        self.waited = request


@contextmanager
def shown_loop(project: str, title: str) -> Iterator[ShownLoop]:
    """Show a loop, and tell which merges were there; on Ctrl-C tell which request goes on without it, and exit."""
    with bars.steps(title) as show_bar:
        shown = ShownLoop(show_bar)
        try:
            yield shown
        except KeyboardInterrupt:
            if shown.waited is not None:
                way_back = f"`gramfuse request cancel {project} {shown.waited.id}` takes it back"
                output.note(f"request {shown.waited.id} stays open for answers; {way_back}")
            raise typer.Exit(output.EXIT_INTERRUPTED) from None
    if shown.known:
        output.note(describe_known(shown.known))


def describe_known(jobs: Sequence[str]) -> str:
    """Say that merges were there already, from an earlier run under the same id."""
    were, they = ("merge was", "it is") if len(jobs) == 1 else ("merges were", "they are")
    named = first_names(jobs, _MOST_NAMED)
    return f"{len(jobs)} {were} there already ({named}), and {they} not made anew: another --id makes all of them anew"


def seconds_of(days: float) -> int:
    """Return the seconds until a deadline that is given in days."""
    return max(60, round(days * DAY_SECONDS))


def describe_answers(request: RequestInfo) -> str:
    """Write how many have answered."""
    return f"{count_answers(request)} of {len(request.asked)} have answered"


def count_answers(request: RequestInfo) -> int:
    """Return how many have answered."""
    return sum(place.state == "accepted" for place in request.asked)


def chosen_block(block: str | None) -> MeasuredBlock | None:
    """Return whose weights a block has while it is measured; raises ConfigurationError for another word."""
    if block is not None and block not in get_args(MeasuredBlock):
        msg = f"--block is {block!r}; it is one of {', '.join(get_args(MeasuredBlock))}"
        raise ConfigurationError(msg)
    return cast("MeasuredBlock | None", block)
