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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cache import Cache
from corpus import read_sentences, write_sentences
from participant import TUNED, Participant, finetune
from processes import CommandFailedError, Processes, Shell, console
from report import Report, print_table, write_page, write_summary
from rich.rule import Rule
from service import Service, create_token, start_service
from settings import DOMAINS, REGMEAN, SIMPLE, SIZES, UNSEEN, Domain, Size

KEPT_FOLDERS: Final = ("cache",)  # all else in the demo's folder is one run's
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


@dataclass(slots=True)
class Stages:
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


def play(processes: Processes, folder: Path, size: Size, *, lock: int) -> tuple[Report, Service]:
    """Play the whole story in an empty folder; return what came out and the service, which still runs."""
    stages, environment = Stages(), clean_environment(os.environ)
    logs, cache = folder / "logs", Cache(folder / "cache")
    logs.mkdir()

    with stages.stage("service", "The operator starts an API and a worker"):
        service = start_service(processes, folder / "server", logs, environment, lock=lock)

    with stages.stage("sign in", "Each organization gets a token and signs in"):
        participants = [
            enter(processes, service, folder / domain.name, logs, environment, domain, coordinates=number == 0)
            for number, domain in enumerate(DOMAINS)
        ]
    coordinator, *others = participants

    with stages.stage("project", "One creates the project, the others join and fetch its base model"):
        coordinator.create_project(policy=size.policy)
        for participant in others:
            coordinator.invite(participant)
        agreed = coordinator.policy_digest()
        for participant in participants:
            participant.join(agreed)
        for participant in others:
            participant.pull_base()

    for turn in turns(participants, size.at_once):
        names = ", ".join(participant.name for participant in turn)
        with stages.stage(f"fine-tune {names}", f"{names}: fine-tune the base on own text"):
            finetune(turn, cache, size)
    for turn in turns(participants, size.at_once):
        names = ", ".join(participant.name for participant in turn)
        with stages.stage(f"statistics {names}", f"{names}: measure the layers' inputs"):
            processes.run_together([participant.collecting() for participant in turn])
    with stages.stage("push", "Everybody pushes what the policy allows"):
        for participant in participants:
            participant.push()

    with stages.stage("merge", "The coordinator merges: a simple average, and RegMean"):
        coordinator.merge("linear", job=SIMPLE)
        coordinator.merge("regmean", job=REGMEAN)
    with stages.stage("pull", "The models come back and are verified"):
        merged = {SIMPLE: coordinator.pull(SIMPLE), REGMEAN: coordinator.pull(REGMEAN)}
        for participant in others:
            participant.pull(REGMEAN)

    with stages.stage("evaluate", "Every model is tested on every domain"):
        models = {participant.name: participant.folder / TUNED for participant in participants} | merged
        scores = json.loads(processes.read(coordinator.testing(models, write_tests(folder / "tests", size))))

    return Report(size.name, scores, stages.seconds), service


def turns(participants: Sequence[Participant], at_once: int) -> list[Sequence[Participant]]:
    """Who computes together, one turn after the other."""
    return [participants[first : first + at_once] for first in range(0, len(participants), at_once)]


def enter(
    processes: Processes,
    service: Service,
    folder: Path,
    logs: Path,
    environment: Mapping[str, str],
    domain: Domain,
    *,
    coordinates: bool,
) -> Participant:
    """Create an organization on the server, and its folder and home on this machine; sign it in."""
    role = "coordinator" if coordinates else "participant"
    token = create_token(processes, service, domain.name, role, log=logs / "operator.log")
    folder.mkdir()
    shell = Shell(domain.name, folder, {**environment, "GRAMFUSE_HOME": str(folder / "home")})
    participant = Participant(domain, shell, logs / f"{domain.name}.log", processes)
    participant.sign_in(service.url, token)
    return participant


def write_tests(folder: Path, size: Size) -> dict[str, Path]:
    """Write the test set of each domain, as much of it as this size takes."""
    folder.mkdir()
    tests = {domain.name: folder / f"{domain.name}.jsonl" for domain in (*DOMAINS, UNSEEN)}
    for domain in (*DOMAINS, UNSEEN):
        write_sentences(tests[domain.name], read_sentences(domain.sentences("test"), at_most=size.test_sentences))
    return tests


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of every child: this Python's programs first, no hub, nothing of gramfuse that was set before."""
    programs = str(Path(sys.executable).parent)
    inherited = {name: value for name, value in environment.items() if not name.startswith("GRAMFUSE_")}
    path = os.pathsep.join([programs, inherited.get("PATH", os.defpath)])
    return inherited | {"PATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


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
    console.print(
        f"An operator's token: GRAMFUSE_SERVER_HOME={service.operator.folder} gramfuse-server token create --operator"
    )
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
            report, service = play(processes, folder, size, lock=lock)
            print_table(report, console)
            write_summary(report, folder / "summary.json")
            write_page(report, folder / "report.html")
            console.print(f"\nreport: {os.path.relpath(folder / 'report.html')}")
            if os.environ.get("KEEP") == "1":
                keep_running(processes, service, folder)
    except (CommandFailedError, OSError) as error:
        console.print(f"\n[bold red]The demo failed:[/] {error}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        console.print("\ninterrupted; everything is stopped")
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
