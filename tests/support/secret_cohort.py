"""Organizations that merge by secure sums, each at its own machine: tiny models, statistics, scales, identities."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

import gramfuse
from gramfuse.answering.configuration import Participation
from gramfuse.answering.participating import Handled, participate
from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.participation import Client
from gramfuse.trust import Trust
from gramfuse_server.database import reading
from gramfuse_server.tables import JobRow
from gramfuse_shared.contract.requests import RequestInfo
from support import tiny
from support.client_world import URL, Site
from support.server_world import World
from support.worker_world import InProcessWorker

PROJECT = "acme.tweets"
NAMES = ("acme", "globex", "initech", "umbrella", "hooli")
POLICY = gramfuse.Policy(
    aggregation="secure",
    methods=("linear", "regmean", "fisher"),
    heads="shared",
    minimum_rows_per_dimension=1,
    advised_rows_per_dimension=1,
)


class Machine(Site):
    """A site whose waiting lets the worker inspect and merge whatever there is."""

    worker: InProcessWorker

    def _let_the_worker_work(self, _seconds: float) -> None:
        self.worker.inspect_all()

    def follow(self, request: httpx.Request) -> bool:
        """Merge what is queued before a job's events are followed."""
        if request.url.path.endswith("/events"):
            with reading(self.worker.database) as session:
                queued = session.scalars(select(JobRow.id).where(JobRow.state == "queued")).all()
            for job in queued:
                self.worker.run(PROJECT, job)
        return False


@dataclass
class SecretCohort:
    """Everybody's machines and files; the first coordinates."""

    machines: dict[str, Machine]
    folder: Path
    shown: list[PreparedAnswer] = field(default_factory=list)

    @property
    def coordinator(self) -> Machine:
        return next(iter(self.machines.values()))

    def place(self, name: str) -> Path:
        return self.folder / name

    def participation(self, name: str, **changes: Any) -> Participation:
        place = self.place(name)
        named: dict[str, Any] = {
            "project": PROJECT,
            "model": place / "tuned",
            "statistics": place / "statistics.safetensors",
            "folder": place / "answers",
        }
        return Participation.model_validate(named | changes)

    def answer(self, name: str, *, client: Client | None = None, **changes: Any) -> list[Handled]:
        """Let one organization answer whatever waits for it, its person saying yes to all."""

        def confirm(prepared: PreparedAnswer) -> bool:
            self.shown.append(prepared)
            return True

        with client or self.machines[name].client() as opened:
            return participate(
                opened, self.participation(name, **changes), confirm=confirm, clock=self.coordinator.world.clock
            )

    def answer_all(self, _: RequestInfo | None = None, *, but: Sequence[str] = ()) -> None:
        for name in self.machines:
            if name not in but:
                self.answer(name)

    def sum(self, recipe: gramfuse.Recipe, *, result: str = "summed", **options: Any) -> Any:
        with self.coordinator.client() as client:
            return client.sum(PROJECT, recipe, result=result, **({"on_request": self.answer_all} | options))


def begin(
    world: World,
    worker: InProcessWorker,
    folder: Path,
    *,
    count: int = 3,
    policy: gramfuse.Policy = POLICY,
    verified: bool = True,
    contribute: bool = True,
) -> SecretCohort:
    """Create the project with its scales; everybody joins, verifies the roster, tunes, measures, and contributes."""
    cohort = SecretCohort({}, folder)
    base = folder / "base"
    tiny.write_base(base, hidden=24)
    tiny.write_texts(folder / "public.jsonl", count=60, words=12, seed=99)
    scales = folder / "scales.safetensors"
    gramfuse.save_scales(gramfuse.collect_scales(base, texts_of(folder / "public.jsonl")), scales)
    for number, name in enumerate(NAMES[:count]):
        machine = Machine(world, name, "participant" if number else "coordinator", folder)
        machine.worker, machine.wire.breaks_at = worker, machine.follow
        cohort.machines[name] = machine
    with cohort.coordinator.client() as client:
        project = client.create_project("tweets", base=base, policy=policy, scales=scales)
        for name in NAMES[1:count]:
            client.invite(PROJECT, name)
    for seed, (name, machine) in enumerate(cohort.machines.items(), start=1):
        with machine.client() as client:
            client.accept_policy(PROJECT, client.project(PROJECT).policy.digest)
        machine.home.remember_base(project.base, base)
        place = cohort.place(name)
        place.mkdir()
        tiny.write_texts(place / "texts.jsonl", count=60, words=12, seed=seed)
        tiny.write_tuned(base, place / "tuned", seed=seed)
        gramfuse.collect(place / "tuned", texts_of(place / "texts.jsonl")).save(place / "statistics.safetensors")
    if verified:
        verify(cohort)
    if contribute:
        for name in cohort.machines:
            push(cohort, name)
    return cohort


def verify(cohort: SecretCohort) -> None:
    """Everybody compares everybody's fingerprints."""
    for machine in cohort.machines.values():
        with machine.client() as client:
            project = client.project(PROJECT)
            keys = {entry.organization: entry.identity or "" for entry in project.participants}
            Trust.of(machine.home, URL, PROJECT).verify(keys)


def push(cohort: SecretCohort, name: str) -> Any:
    place = cohort.place(name)
    with cohort.machines[name].client() as client:
        return client.push(
            PROJECT,
            model=place / "tuned",
            statistics=place / "statistics.safetensors",
            confirm=lambda _: True,
        )


def texts_of(path: Path) -> list[Any]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
