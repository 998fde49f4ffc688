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

ORGANIZATIONS = ("acme", "globex", "initech")
PAGES = {
    "overview": "./",
    "projects": "projects",
    "project": "projects/{project}",
    "job": "jobs/{project}/{merged}",
    "failed job": "jobs/{project}/{failed}",
    "model": "models/{project}/{merged}",
    "audit log": "audit",
    "tokens": "tokens",
}
"""The dashboard's pages, by what they show."""
write_base = partial(tiny.write_base, hidden=96, layers=6)
"""A model of some megabytes, whose layers are worth a map."""


@dataclass(frozen=True)
class Played:
    """The project, the job that made a model, and the one that could not."""

    collaboration: Collaboration
    merged: str
    failed: str

    @property
    def project(self) -> str:
        return self.collaboration.project

    def address(self, page: str) -> str:
        """The way from the dashboard's address to one of its pages."""
        return PAGES[page].format(project=self.project, merged=self.merged, failed=self.failed)


def play(deployment: Deployment) -> Played:
    """Three organizations contribute; the coordinator merges twice, the second time while bytes of one are lost."""
    collaboration = begin(deployment, ORGANIZATIONS, write_base)
    contribute(collaboration)
    played = Played(collaboration, merged="regmean-1", failed="regmean-2")
    recipe = gramfuse.Recipe(merge_method="regmean")
    with collaboration.coordinator.client() as client:
        client.submit(played.project, recipe, job=played.merged)
        client.wait(played.project, played.merged, timeout=60)
        with _bytes_lost(deployment, played.project, client):
            client.submit(played.project, recipe, job=played.failed)
            with pytest.raises(gramfuse.GramfuseError):
                client.wait(played.project, played.failed, timeout=60)
    return played


@contextmanager
def _bytes_lost(deployment: Deployment, project: str, client: gramfuse.Client) -> Iterator[None]:
    own = next(item for item in client.contributions(project) if item.organization == ORGANIZATIONS[0])
    lost = deployment.folder / "server" / "blobs" / "sha256" / client.contribution(project, own.id).files[0].sha256
    elsewhere = lost.rename(deployment.folder / "lost")
    yield
    elsewhere.rename(lost)
