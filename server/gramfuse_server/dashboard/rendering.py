"""Templates into answers. Every value is escaped; a page asked for by htmx comes without its frame."""

from functools import cache
from typing import Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gramfuse_server.clock import Clock
from gramfuse_server.dashboard import formats
from gramfuse_server.dashboard.browser import NO_STORE, root_of
from gramfuse_server.dashboard.cards import rendered
from gramfuse_shared.contract.identity import fingerprint_of
from gramfuse_shared.reporting.audits import audit_told, summary_told
from gramfuse_shared.reporting.contributions import why_passed_over
from gramfuse_shared.reporting.evaluations import score
from gramfuse_shared.version import __version__

WHOLE: Final = "page.html"
PART: Final = "part.html"


@cache
def _templates() -> Environment:
    """Return the templates, which are compiled once in a process."""
    made = Environment(
        loader=PackageLoader("gramfuse_server", "dashboard/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        size=formats.size,
        share=formats.share,
        duration=formats.duration,
        since=formats.since,
        until=formats.until,
        moment=formats.moment,
        coded=formats.coded,
        fingerprint=fingerprint_of,
        why_passed_over=why_passed_over,
        audit_told=audit_told,
        summary_told=summary_told,
        rendered=rendered,
        score=lambda value, metric: score(metric, value),
    )
    made.globals["version"] = __version__
    return made


class Renderer:
    """Renders the dashboard's templates."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._templates = _templates()

    def render(self, request: Request, template: str, *, status: int = 200, **values: object) -> Response:
        """Answer with a page. Templates know the way to the dashboard's address, `root`, and the time, `now`."""
        frame = PART if request.headers.get("hx-request") == "true" else WHOLE
        content = self._templates.get_template(template).render(
            frame=frame, root=root_of(request), here=_here(request), now=self._clock(), **values
        )
        return HTMLResponse(content, status_code=status, headers=NO_STORE)


def _here(request: Request) -> str:
    """Return a page's address as a link from itself."""
    path, query = str(request.scope["path"]), request.url.query
    return f"./{quote(path.rsplit('/', 1)[-1])}{'?' + query if query else ''}"
