"""A project with its participants, set up through the SDK: quicker than by commands, which other tests type."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gramfuse
from gramfuse.measuring.texts import Text
from support import tiny
from support.deployment import Deployment, Desk

POLICY = gramfuse.Policy(heads="shared", minimum_rows_per_dimension=1)


@dataclass(frozen=True)
class Collaboration:
    """Desks with their tokens, the coordinator first."""

    desks: tuple[Desk, ...]
    project: str

    @property
    def coordinator(self) -> Desk:
        return self.desks[0]

    def path(self, rest: str = "") -> str:
        return f"/v1/projects/{self.project}{rest}"


def begin(
    deployment: Deployment,
    organizations: Sequence[str],
    write_base: Callable[[Path], None] = tiny.write_base,
    *,
    url: str | None = None,
    policy: gramfuse.Policy = POLICY,
) -> Collaboration:
    """Make the organizations and their tokens, the first's a coordinator's, and begin a project; a worker must run."""
    desks = tuple(
        deployment.desk(name, role="participant" if number else "coordinator", url=url)
        for number, name in enumerate(organizations)
    )
    return gather(desks, write_base, policy=policy)


def gather(
    desks: tuple[Desk, ...],
    write_base: Callable[[Path], None] = tiny.write_base,
    *,
    name: str = "tweets",
    policy: gramfuse.Policy = POLICY,
) -> Collaboration:
    """Create the project at the first desk, join it at all, and give everybody the base; a worker must run."""
    base = desks[0].folder / "base"
    write_base(base)
    with desks[0].client() as coordinator:
        project = coordinator.create_project(name, base=base, policy=policy)
        for desk in desks[1:]:
            coordinator.invite(project.id, desk.name)
    for desk in desks:
        with desk.client() as client:
            client.accept_policy(project.id, project.policy.digest)
            if desk is not desks[0]:
                client.pull_base(project.id, desk.folder / "base")
    return Collaboration(desks, project.id)


def tune(desk: Desk, *, seed: int) -> None:
    """Make this organization's own model, texts and statistics."""
    tiny.write_texts(desk.folder / "texts.jsonl", seed=seed)
    tiny.write_tuned(desk.folder / "base", desk.folder / "tuned", seed=seed)


def measure(desk: Desk) -> Path:
    """Collect statistics as `gramfuse stats collect` does."""
    lines = (desk.folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts: list[Text] = [json.loads(line)["text"] for line in lines]
    path = desk.folder / "statistics.safetensors"
    gramfuse.collect(desk.folder / "tuned", texts).save(path)
    return path


def contribute(collaboration: Collaboration, *, statistics: bool = True) -> None:
    """Everybody tunes, measures and pushes; without statistics, weights alone."""
    for seed, desk in enumerate(collaboration.desks, start=1):
        tune(desk, seed=seed)
        measured = measure(desk) if statistics else None
        with desk.client() as client:
            client.push(
                collaboration.project,
                model=desk.folder / "tuned",
                statistics=measured,
                confirm=lambda _: True,
                auditing=None,
            )
