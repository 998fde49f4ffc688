"""What commands that run a loop of requests and jobs have in common: a bar, and what Ctrl-C says of an open request."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from gramfuse.cli import bars, output
from gramfuse_shared.contract.requests import RequestInfo


@dataclass(slots=True)
class ShownLoop:
    """The bar of a loop, and the request that it waits for."""

    _show_bar: Callable[[float, str], None]
    waited: RequestInfo | None = None

    def wait_for(self, request: RequestInfo) -> None:
        """Note a request that is open."""
        self.waited = request

    def show(self, share: float, words: str, request: RequestInfo | None) -> None:
        """Show how far the loop is, and note what it waits for."""
        self._show_bar(share, words)
        self.waited = request


@contextmanager
def shown_loop(project: str, title: str) -> Iterator[ShownLoop]:
    """Show a loop; on Ctrl-C tell which request goes on without it, and exit."""
    with bars.steps(title) as show_bar:
        shown = ShownLoop(show_bar)
        try:
            yield shown
        except KeyboardInterrupt:
            if shown.waited is not None:
                way_back = f"`gramfuse request cancel {project} {shown.waited.id}` takes it back"
                output.note(f"request {shown.waited.id} stays open for answers; {way_back}")
            raise typer.Exit(output.EXIT_INTERRUPTED) from None
