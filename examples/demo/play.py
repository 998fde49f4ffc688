"""Three organizations merge their named-entity recognizers through a real gramfuse service: `make demo`.

Environment:
    DEMO_SIZE    full (default; ten minutes at most on two cores) or smoke (a handful of sentences, one minute)
    KEEP         1 leaves the service up at the end
    DEMO_FOLDER  where everything goes (default .demo)
"""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cache import Cache
from corpus import read_sentences, write_sentences
from participant import POLICY, TUNED, Participant, policy_digest
from processes import Command, CommandFailedError, Processes, Shell, console
from report import Report, print_table, write_page, write_summary
from rich.rule import Rule
from service import Service, start_service
from settings import DOMAINS, REGMEAN, SIMPLE, SIZES, UNSEEN, Domain, Size

KEPT_FOLDERS: Final = ("cache",)  # all else in the demo's folder is one run's
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


@dataclass(slots=True)
class Clock:
    """The demo's stages: each is announced, and its seconds are noted."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Announce a stage and note how long it took."""
        console.print()
        console.print(Rule(f"[bold]{title}", align="left"))
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


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

    def turns(self, who: Sequence[Participant]) -> list[Sequence[Participant]]:
        """Who acts together, one turn after the other."""
        return [who[first : first + self.size.at_once] for first in range(0, len(who), self.size.at_once)]


def play(demo: Demo, *, lock: int) -> tuple[Report, Service]:
    """Play the whole story in an empty folder; return what came out and the service, which still runs."""
    processes, folder, size = demo.processes, demo.folder, demo.size
    clock, logs, cache = Clock(), folder / "logs", Cache(folder / "cache")
    logs.mkdir()
    environment = clean_environment(os.environ, one_thread=size.at_once > 1)

    with clock.stage("service", "The operator starts an API and a worker"):
        service = start_service(processes, folder / "server", logs, environment, lock=lock)

    with clock.stage("sign in", "Each organization gets a token and signs in"):
        participants = [set_up(folder / domain.name, logs, environment, domain) for domain in DOMAINS]
        coordinator, *others = participants
        operator = service.operator
        demo.everybody(participants, lambda one: operator.creating_organization(one.name))
        roles = {one.name: "coordinator" if one is coordinator else "participant" for one in participants}
        tokens = processes.read(*(operator.creating_token(name, role) for name, role in roles.items()))
        secrets = dict(zip(roles, map(str.strip, tokens), strict=True))
        demo.everybody(participants, lambda one: one.signing_in(service.url, secrets[one.name]))

    with clock.stage("project", "One creates the project, the others join and fetch its base model"):
        processes.run(coordinator.building_base())
        shutil.copy(size.policy, coordinator.folder / POLICY)
        processes.run(coordinator.creating_project())
        for other in others:
            processes.run(coordinator.inviting(other.name))
        agreed = policy_digest(*processes.read(coordinator.showing_project()))
        demo.everybody(participants, lambda one: one.joining(agreed))
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
        demo.everybody(participants, Participant.pushing)

    with clock.stage("merge", "The coordinator merges: a simple average, and RegMean"):
        processes.run(coordinator.merging("linear", job=SIMPLE))
        processes.run(coordinator.merging("regmean", job=REGMEAN))
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
            console.print(f"[dim]{one.name} was trained by an earlier run: {os.path.relpath(kept)}[/]")


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


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the demo's folder; the kept service of an earlier run holds it too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            kept = folder / "stop.txt"
            hint = f"; stop it: {kept.read_text(encoding='utf-8').strip()}" if kept.exists() else ""
            msg = f"another demo, or the service that KEEP=1 left up, is using {folder}{hint}"
            raise CommandFailedError(msg) from None
        yield lock.fileno()


def clear(folder: Path) -> None:
    """Remove what an earlier run left, but not the trained models."""
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in KEPT_FOLDERS:
            shutil.rmtree(entry)
        elif entry.is_file() and entry.name != "lock":
            entry.unlink()


def keep_running(processes: Processes, service: Service, folder: Path) -> None:
    """Leave the service up, and say how to reach and to stop it."""
    processes.release()
    stop = f"kill {service.api.pid} {service.worker.pid}"
    (folder / "stop.txt").write_text(stop + "\n", encoding="utf-8")
    console.print(f"\nThe service is up at {service.url} (dashboard: {service.url}/dashboard).")
    home = service.operator.shell.environment["GRAMFUSE_SERVER_HOME"]
    console.print(f"An operator's token: GRAMFUSE_SERVER_HOME={home} gramfuse-server token create --operator")
    console.print(f"Stop it: [bold]{stop}[/]")


def main() -> int:
    """Play, and report; return the exit code."""
    size = SIZES.get(os.environ.get("DEMO_SIZE") or "full")
    if size is None:
        console.print(f"DEMO_SIZE is one of {', '.join(SIZES)}")
        return EXIT_USAGE
    folder = Path(os.environ.get("DEMO_FOLDER") or ".demo").absolute()
    try:
        with locked(folder) as lock, Processes() as processes:
            clear(folder)
            report, service = play(Demo(processes, folder, size), lock=lock)
            print_table(report, console)
            write_summary(report, folder / "summary.json")
            write_page(report, folder / "report.html")
            console.print(f"\nreport: {os.path.relpath(folder / 'report.html')}")
            if os.environ.get("KEEP") == "1":
                keep_running(processes, service, folder)
    except (CommandFailedError, OSError) as error:
        console.print("\n[bold red]The demo failed:[/] ", end="")
        console.print(str(error), markup=False)
        return EXIT_FAILED
    except KeyboardInterrupt:
        console.print("\ninterrupted; everything is stopped")
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
