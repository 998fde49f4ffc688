"""Three organizations merge their named-entity recognizers through a real gramfuse service: `make demo`.

Environment:
    DEMO_SIZE    full (default; ten minutes at most on two cores) or smoke (a handful of sentences, one minute)
    KEEP         1 leaves the service up at the end
    DEMO_FOLDER  where everything goes (default .demo, for smoke .demo/smoke)
"""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cache import Cache
from folder import CACHE, FolderRefusedError, Held, held
from page import write_page
from participant import POLICY, TUNED, Participant, policy_digest
from processes import Command, CommandFailedError, Processes, Shell, console
from report import Report, print_table, write_summary
from rich.rule import Rule
from sentences import read_sentences, write_sentences
from service import Service, start_service
from settings import DOMAINS, PROJECT, REGMEAN, SIMPLE, SIZES, UNSEEN, Domain, Size

PROGRAMS: Final = Path(sys.executable).parent  # where this environment's gramfuse and gramfuse-server are
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


@dataclass(slots=True)
class Clock:
    """The demo's stages: each is announced, and its seconds are noted and told."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Announce a stage and note how long it took."""
        console.print()
        console.print(Rule(f"[bold]{title}", align="left"))
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        console.print(f"[dim]took {self.seconds[name]:.1f} s[/]")


@dataclass(frozen=True, slots=True)
class Demo:
    """One run. Participants take turns of `size.at_once`, each turn at the same time."""

    processes: Processes
    folder: Path
    size: Size

    def everybody(self, who: Sequence[Participant], step: Callable[[Participant], Command]) -> None:
        """Let each of them take a step."""
        for turn in self.turns(who):
            self.processes.run(*map(step, turn))

    def everybody_briefly(self, who: Sequence[Participant], step: Callable[[Participant], Command], what: str) -> None:
        """Let each of them take a step that tells all of them the same: only the first's is shown in full."""
        first, *others = who
        where = typed(self.folder / "logs")
        console.print(f"[dim]{', '.join(one.name for one in others)}: {what}, which is in {where}[/]")
        self.everybody(who, lambda one: replace(step(one), heard=one is first))

    def turns(self, who: Sequence[Participant]) -> list[Sequence[Participant]]:
        """Who acts together, one turn after the other."""
        return [who[first : first + self.size.at_once] for first in range(0, len(who), self.size.at_once)]


def play(demo: Demo, *, lock: int) -> tuple[Report, Service]:
    """Play the whole story in an empty folder; return what came out and the service, which still runs."""
    processes, folder, size = demo.processes, demo.folder, demo.size
    clock, logs, cache = Clock(), folder / "logs", Cache(folder / CACHE)
    logs.mkdir()
    environment = clean_environment(os.environ, one_thread=size.at_once > 1)
    if size.thresholds is not None:
        environment["GRAMFUSE_AUDIT_THRESHOLDS"] = str(size.thresholds)

    participants = [set_up(folder / domain.name, logs, environment, domain) for domain in DOMAINS]
    coordinator, *others = participants
    building = coordinator.building_base()
    with clock.stage("service", "The operator starts an API and a worker; one organization builds the base model"):
        base = processes.start(building)
        service = start_service(processes, folder / "server", logs, environment, lock=lock)

    with clock.stage("sign in", "Each organization gets a token and signs in"):
        operator = service.operator
        processes.run(operator.creating_organizations(*(one.name for one in participants)))
        roles = {one.name: "coordinator" if one is coordinator else "participant" for one in participants}
        tokens = processes.read(*(operator.creating_token(name, role) for name, role in roles.items()))
        secrets = dict(zip(roles, map(str.strip, tokens), strict=True))
        demo.everybody(participants, lambda one: one.signing_in(service.url, secrets[one.name]))

    with clock.stage("project", "One creates the project, the others join it and fetch the base model"):
        processes.wait_for(base, building)
        shutil.copy(size.policy, coordinator.folder / POLICY)
        processes.run(coordinator.creating_project())
        processes.run(coordinator.inviting(*(other.name for other in others)))
        agreed = policy_digest(*processes.read(coordinator.showing_project()))
        demo.everybody_briefly(participants, lambda one: one.joining(agreed), "the same policy")
        demo.everybody(others, Participant.pulling_base)

    for turn in demo.turns(participants):
        names = ", ".join(one.name for one in turn)
        with clock.stage(f"fine-tune {names}", f"{names}: fine-tune the base on own text"):
            finetune(processes, turn, cache, size)
    for turn in demo.turns(participants):
        names = ", ".join(one.name for one in turn)
        with clock.stage(f"statistics {names}", f"{names}: measure the layers' inputs"):
            processes.run(*map(Participant.collecting, turn))
    with clock.stage("push", "Everybody pushes what the policy allows"):
        demo.everybody_briefly(participants, Participant.pushing, "a list of the same form")

    with clock.stage("merge", "The coordinator merges: a simple average, and RegMean"):
        processes.run(coordinator.merging("linear", job=SIMPLE))
        processes.run(coordinator.merging("regmean", job=REGMEAN))
        for job in (SIMPLE, REGMEAN):
            processes.run(coordinator.waiting(job))
    with clock.stage("pull", "The models come back and are verified"):
        processes.run(coordinator.pulling(SIMPLE))
        processes.run(coordinator.verifying(SIMPLE))
        demo.everybody(participants, lambda one: one.pulling(REGMEAN))
        demo.everybody(participants, lambda one: one.verifying(REGMEAN))

    with clock.stage("evaluate", "Every model is tested on every domain"):
        models = {one.name: one.folder / TUNED for one in participants}
        models |= {model: coordinator.folder / model for model in (SIMPLE, REGMEAN)}
        (scores,) = processes.read(coordinator.testing(models, write_tests(folder / "tests", size)))

    return Report(size.name, json.loads(scores), clock.seconds), service


def set_up(folder: Path, logs: Path, environment: Mapping[str, str], domain: Domain) -> Participant:
    """Make an organization's folder, with a home of its own for its client."""
    folder.mkdir()
    shell = Shell(domain.name, folder, {**environment, "GRAMFUSE_HOME": str(folder / "home")})
    return Participant(domain, shell, logs / f"{domain.name}.log")


def finetune(processes: Processes, turn: Sequence[Participant], cache: Cache, size: Size) -> None:
    """Fine-tune at the same time, except for those whose like an earlier run trained."""
    keys = {one.name: one.lay_out_text(size) for one in turn}
    missing = [one for one in turn if not cache.kept(keys[one.name]).exists()]
    processes.run(*(one.training(cache.begin(keys[one.name]), size) for one in missing))
    for one in missing:
        cache.finish(keys[one.name])
    for one in turn:
        kept = cache.kept(keys[one.name])
        (one.folder / TUNED).symlink_to(kept, target_is_directory=True)
        if one not in missing:
            console.print(f"[dim]{one.name} was trained by an earlier run: {typed(kept)}[/]")


def write_tests(folder: Path, size: Size) -> dict[str, Path]:
    """Write the test set of each domain, as much of it as this size takes."""
    folder.mkdir()
    tests = {domain.name: folder / f"{domain.name}.jsonl" for domain in (*DOMAINS, UNSEEN)}
    for domain in (*DOMAINS, UNSEEN):
        write_sentences(tests[domain.name], read_sentences(domain.sentences("test"), at_most=size.test_sentences))
    return tests


def clean_environment(environment: Mapping[str, str], *, one_thread: bool) -> dict[str, str]:
    """The environment of every child: this Python's programs first, no hub, nothing of gramfuse that was set before.

    Programs that compute at the same time get one thread each: more would only fight over the cores.
    """
    programs = str(Path(sys.executable).parent)
    inherited = {name: value for name, value in environment.items() if not name.startswith("GRAMFUSE_")}
    path = os.pathsep.join([programs, inherited.get("PATH", os.defpath)])
    threads = {"OMP_NUM_THREADS": "1"} if one_thread else {}
    return inherited | threads | {"PATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def introduce(demo: Demo) -> None:
    """Say what will be seen, how long it will take, and how to read the prompts."""
    names = ", ".join(domain.name for domain in DOMAINS)
    console.print(f"Three organizations ({names}) merge their models through a real service.")
    console.print(f"This takes {demo.size.expected}.")
    folder = typed(demo.folder)
    console.print(
        f"[dim]`NAME$ command` was typed in {folder}/NAME, with {typed(PROGRAMS)} on the PATH and "
        f"GRAMFUSE_HOME={folder}/NAME/home (the operator: in {folder}/server, its GRAMFUSE_SERVER_HOME).[/]"
    )


def keep_running(processes: Processes, service: Service, held: Held) -> None:
    """Leave the service up, and say how to reach, to enter and to stop it, in commands for this folder."""
    processes.release()
    stop = f"kill {service.api.pid} {service.worker.pid}"
    held.leave_word(stop + "\n")
    server, coordinator = service.operator.shell.folder, held.path / DOMAINS[0].name
    console.print(f"\nThe service is up at [bold]{service.url}[/]")
    for purpose, line in (
        ("Watch it in a browser:", f"{service.url}/dashboard"),
        (
            "The dashboard asks for an operator's token; this prints one:",
            f"GRAMFUSE_SERVER_HOME={quoted(server)} {quoted(PROGRAMS / 'gramfuse-server')} token create --operator",
        ),
        (
            f"Be {DOMAINS[0].name}:",
            f"GRAMFUSE_HOME={quoted(coordinator / 'home')} {quoted(PROGRAMS / 'gramfuse')} model list {PROJECT}",
        ),
    ):
        console.print(purpose)
        console.print(f"  {line}", markup=False)
    console.print(f"Stop it: [bold]{stop}[/]")


def typed(path: Path) -> str:
    """A path as one types it where the demo was started: relative to here if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def quoted(path: Path) -> str:
    """A path as one types it, safe from the shell."""
    return shlex.quote(typed(path))


def tidy(logs: Path) -> None:
    """Remove the logs in which nothing was written."""
    for log in logs.glob("*.log"):
        if log.stat().st_size == 0:
            log.unlink()


def main() -> int:
    """Play, and report; return the exit code."""
    size = SIZES.get(os.environ.get("DEMO_SIZE") or "full")
    if size is None:
        console.print(f"DEMO_SIZE is one of {', '.join(SIZES)}")
        return EXIT_USAGE
    folder = Path(os.environ.get("DEMO_FOLDER") or size.folder).absolute()
    try:
        with held(folder) as right, Processes() as processes:
            right.clear()
            demo = Demo(processes, folder, size)
            introduce(demo)
            report, service = play(demo, lock=right.descriptor)
            print_table(report, console)
            write_summary(report, folder / "summary.json")
            write_page(report, folder / "report.html")
            console.print(f"\nreport: {typed(folder / 'report.html')}")
            console.print(f"merged model: {typed(folder / DOMAINS[0].name / REGMEAN)}")
            if os.environ.get("KEEP") == "1":
                keep_running(processes, service, right)
            else:
                tidy(folder / "logs")
    except (CommandFailedError, FolderRefusedError, OSError) as error:
        console.print("\n[bold red]The demo failed:[/] ", end="")
        console.print(str(error), markup=False)
        return EXIT_FAILED
    except KeyboardInterrupt:
        console.print("\ninterrupted; everything is stopped")
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
