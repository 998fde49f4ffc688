"""What was done on a server before somebody looks at its dashboard: a merge that succeeded, and one that failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

import gramfuse
from support import tiny
from support.collaboration import Collaboration, begin, contribute
from support.deployment import Deployment

POLICY = gramfuse.Policy(heads="shared", minimum_rows_per_dimension=1, requests=("evaluate",))
ORGANIZATIONS = ("acme", "globex", "initech")
OPERATORS_PAGES = {
    "overview": "./",
    "projects": "projects",
    "project": "projects/{project}",
    "deletion": "projects/{project}/delete",
    "quota": "projects/{project}/quota",
    "contribution": "contributions/{project}/{contribution}",
    "job": "jobs/{project}/{merged}",
    "failed job": "jobs/{project}/{failed}",
    "priority": "jobs/{project}/{failed}/priority",
    "model": "models/{project}/{merged}",
    "organizations": "organizations",
    "audit log": "audit",
    "tokens": "tokens",
}
"""What an operator is shown, by what it shows."""
MEMBERS_PAGES = {
    "home": "./",
    "projects": "projects",
    "project": "projects/{project}",
    "order": "projects/{project}/merge",
    "removal": "projects/{project}/participants/globex/remove",
    "contribution": "contributions/{project}/{contribution}",
    "request": "requests/{project}/{request}",
    "job": "jobs/{project}/{merged}",
    "question": "jobs/{project}/{failed}/retry",
    "model": "models/{project}/{merged}",
    "tokens": "tokens",
}
"""What a coordinator is shown."""
write_base = partial(tiny.write_base, hidden=96, layers=6)
"""A model of some megabytes, whose layers are worth a map."""


@dataclass(frozen=True)
class Played:
    """The project, the coordinator's contribution, the job that made a model, the one that could not, and a request."""

    collaboration: Collaboration
    contribution: str
    merged: str = "regmean-1"
    failed: str = "regmean-2"
    request: str = "how-good"

    @property
    def project(self) -> str:
        return self.collaboration.project

    def address(self, page: str) -> str:
        """Fill a page's address in; it leads there from the dashboard's."""
        names = {field: getattr(self, field) for field in ("project", "contribution", "merged", "failed", "request")}
        return page.format(**names)


def play(deployment: Deployment) -> Played:
    """Three organizations contribute; the coordinator merges twice, the second time while bytes of one are lost."""
    collaboration = begin(deployment, ORGANIZATIONS, write_base, policy=POLICY)
    contribute(collaboration)
    recipe = gramfuse.Recipe(merge_method="regmean")
    with collaboration.coordinator.client() as client:
        own = next(
            item.id for item in client.contributions(collaboration.project) if item.organization == ORGANIZATIONS[0]
        )
        played = Played(collaboration, own)
        client.submit(played.project, recipe, job=played.merged)
        client.wait(played.project, played.merged, timeout=60)
        with _bytes_lost(deployment, client.contribution(played.project, own).files[0].sha256):
            client.submit(played.project, recipe, job=played.failed)
            with pytest.raises(gramfuse.GramfuseError):
                client.wait(played.project, played.failed, timeout=60)
        client.ask(played.project, "evaluate", played.merged, request=played.request)
    return played


@contextmanager
def _bytes_lost(deployment: Deployment, sha256: str) -> Iterator[None]:
    lost = deployment.folder / "server" / "blobs" / "sha256" / sha256
    elsewhere = lost.rename(deployment.folder / "lost")
    yield
    elsewhere.rename(lost)
