"""A real server and worker on loopback, and each organization's client: everything is merged through these."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from benchmarks.paper.merges import Measure, Round
from play import clean_environment
from processes import Processes
from service import start_service

import gramfuse
from gramfuse.answering.configuration import Participation
from gramfuse.answering.participating import participate
from gramfuse.searching.strategies import GreedySearch
from gramfuse_shared.contract.policy import MergeMethod, RequestKind
from support import guard

POLICY: Final = gramfuse.Policy(
    methods=get_args(MergeMethod),
    cohorts="open",
    heads="shared",
    requests=get_args(RequestKind),
    minimum_rows_per_dimension=0,
    advised_rows_per_dimension=0,
    minimum_cohort=2,
    minimum_evaluation_examples=1,
)
"""Everything is allowed: ablations need few rows and many cohorts, and the texts are public. Not for real projects."""
PRIVATE_HEADS: Final = {"heads": "private", "head_parameters": (*POLICY.head_parameters, "*pooler.*")}
"""The pooler is read by some heads alone."""


@dataclass(frozen=True, slots=True)
class Consortium:
    """The organizations, signed in; the first coordinates."""

    clients: Mapping[str, gramfuse.Client]

    @property
    def coordinator(self) -> gramfuse.Client:
        """Who creates projects and submits jobs."""
        return next(iter(self.clients.values()))

    def begin(self, name: str, base: Path, *, private_heads: bool) -> str:
        """Create a project that everybody joins; return its full name."""
        policy = POLICY.model_copy(update=PRIVATE_HEADS) if private_heads else POLICY
        project = self.coordinator.create_project(name, base=base, policy=policy)
        for position, (organization, client) in enumerate(self.clients.items()):
            if position:
                self.coordinator.invite(project.id, organization)
            client.accept_policy(project.id, project.policy.digest)
        return project.id

    def push(
        self,
        project: str,
        base: Path,
        models: Mapping[str, Path],
        measured: Mapping[str, Path],
        kind: Literal["gram", "fisher"],
    ) -> None:
        """Everybody contributes a model and what was measured of it."""
        option = {"gram": "statistics", "fisher": "fisher"}[kind]
        for name, client in self.clients.items():
            found = {option: measured[name]}
            # ablations have few rows on purpose, and the texts are public
            client.push(project, model=models[name], base=base, confirm=lambda _: True, auditing=None, **found)

    def merge(self, project: str, recipe: gramfuse.Recipe, folder: Path) -> Path:
        """Run a job and pull its model, verified."""
        digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
        job = f"{recipe.merge_method.replace('_', '-')}-{digest[:12]}"
        target = folder / job
        if not target.exists():
            self.coordinator.submit(project, recipe, job=job)
            self.coordinator.wait(project, job)
            self.coordinator.pull(project, job, target)
        return target

    def ask(
        self, project: str, model: Path, kind: Round, measure: Measure, everybody: Mapping[str, Participation]
    ) -> Path:
        """Ask everybody about a model that was pulled; merge it anew with the answers, and pull that."""
        target = model.with_name(f"{model.name}-{kind.replace('+', 'p')}")
        if not target.exists():
            if kind == "regmean++":
                self.coordinator.refine(
                    project,
                    model.name,
                    result=target.name,
                    weighting=measure.weighting,
                    on_request=lambda _: self._answer(everybody),
                )
            elif kind == "refit":
                self.coordinator.refine(
                    project,
                    model.name,
                    result=target.name,
                    method="refit",
                    on_request=lambda _: self._answer(everybody),
                )
            else:
                self._refit(project, model.name, kind, target.name, everybody)
            self.coordinator.pull(project, target.name, target)
        return target

    def _refit(
        self,
        project: str,
        model: str,
        kind: Literal["head", "calibration"],
        result: str,
        everybody: Mapping[str, Participation],
    ) -> None:
        self.coordinator.ask(project, kind, model, request=result)
        self._answer(everybody)
        self.coordinator.wait_for_request(project, result)
        recipe = gramfuse.Recipe(merge_method=kind, base_model=model, request=result)
        self.coordinator.submit(project, recipe, job=result)
        self.coordinator.wait(project, result)

    def grow(
        self, project: str, recipe: gramfuse.Recipe, folder: Path, everybody: Mapping[str, Participation]
    ) -> list[Path]:
        """Search greedily, judged by everybody's dev sets; return the best model of each round, pulled."""
        found = self.coordinator.search(
            project, GreedySearch(recipe), name="greedy", keep=True, on_request=lambda _: self._answer(everybody)
        )
        for trial in found.curve:
            print(f"{trial.words}: dev F1 {100 * trial.value:.1f}", flush=True)
            self.coordinator.pull(project, trial.job, folder / trial.job)
        return [folder / trial.job for trial in found.curve]

    def _answer(self, everybody: Mapping[str, Participation]) -> None:
        for name, participation in everybody.items():
            participate(self.clients[name], participation, confirm=lambda _: True)

    def personal(self, name: str, merged: Path, own: Path) -> Path:
        """Put an organization's own head on a merged model that was pulled."""
        target = merged.with_name(f"{merged.name}-of-{name}")
        if not target.exists():
            policy = POLICY.model_copy(update=PRIVATE_HEADS)
            gramfuse.attach_head(merged, own, target, policy=policy, home=self.clients[name].home)
        return target


@contextmanager
def consortium(folder: Path, names: Sequence[str]) -> Iterator[Consortium]:
    """Start a server and a worker in an empty folder, given absolutely, and sign everybody in."""
    logs = folder / "logs"
    logs.mkdir(parents=True)
    environment = {
        name: value
        for name, value in clean_environment(os.environ, one_thread=False).items()
        if name != "PYTHONPATH"  # the demo's module names are no business of the service
    }
    with ExitStack() as stack:
        watched = list[int]()
        stack.callback(lambda: [guard.forget(process) for process in watched])  # once they are stopped
        processes = stack.enter_context(Processes())
        lock = stack.enter_context((folder / "lock").open("w")).fileno()
        service = start_service(processes, folder / "server", logs, environment, lock=lock)
        for process in (service.api.pid, service.worker.pid):
            guard.watch(process)
            watched.append(process)
        processes.run(service.operator.creating_organizations(*names))
        roles = {name: "participant" if position else "coordinator" for position, name in enumerate(names)}
        tokens = processes.read(*(service.operator.creating_token(name, role) for name, role in roles.items()))
        yield Consortium(
            {
                name: stack.enter_context(gramfuse.Client(service.url, token.strip(), home=folder / name))
                for name, token in zip(names, tokens, strict=True)
            }
        )
