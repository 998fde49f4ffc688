"""What one organization does, each step by the command that a user would type."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache import Cache, training_key
from corpus import read_sentences, write_sentences
from processes import Processes, Shell, console
from settings import HERE, PROJECT, Domain, Size

BASE, TRAIN, TUNED, STATISTICS = "base", "train.jsonl", "tuned", "statistics.safetensors"


@dataclass(frozen=True, slots=True)
class Participant:
    """An organization: its domain, its folder of private text and models, its shell with its own token."""

    domain: Domain
    shell: Shell
    log: Path
    processes: Processes

    @property
    def folder(self) -> Path:
        """Where this organization keeps everything."""
        return self.shell.folder

    # --- the coordinator's steps -----------------------------------------------------------------------------------

    def create_project(self, *, policy: Path) -> None:
        """Build a task-ready base model and create the project with it."""
        self._python("base.py", BASE)
        shutil.copy(policy, self.folder / "policy.yaml")
        _, _, name = PROJECT.partition(".")
        self._gramfuse("project", "create", name, "--base", BASE, "--policy", "policy.yaml")

    def invite(self, other: "Participant") -> None:
        """Let another organization see the project."""
        self._gramfuse("project", "invite", PROJECT, other.domain.name)

    def merge(self, method: str, *, job: str) -> None:
        """Submit a job and wait for it."""
        self._gramfuse("job", "submit", PROJECT, "--method", method, "--id", job)
        self._gramfuse("job", "wait", PROJECT, job)

    # --- everybody's steps -----------------------------------------------------------------------------------------

    def sign_in(self, url: str, token: str) -> None:
        """Keep the token in this organization's own home folder."""
        self._gramfuse("login", url, "--token", "-", typed=token + "\n")

    def join(self) -> None:
        """Accept the project's policy by its digest, which binds this organization to just that text."""
        command = ["gramfuse", "project", "show", PROJECT, "--format", "json"]
        project = json.loads(self.processes.read(self.shell, command, log=self.log))
        self._gramfuse("project", "join", PROJECT, "--accept-policy", project["policy"]["digest"])

    def pull_base(self) -> None:
        """Fetch the base model that everybody fine-tunes."""
        self._gramfuse("project", "base", "pull", PROJECT, BASE)

    def finetune(self, cache: Cache, size: Size) -> None:
        """Fine-tune the base on this organization's text, unless an earlier run did just that."""
        sentences = self.folder / TRAIN
        write_sentences(sentences, read_sentences(self.domain.sentences("train"), at_most=size.train_sentences))
        options = ["--epochs", str(size.epochs)]
        programs = [HERE / "finetune.py", HERE / "corpus.py"]
        key = training_key(self.folder / BASE, sentences, programs, options)
        kept, known = cache.obtain(key, lambda target: self._python("finetune.py", BASE, TRAIN, str(target), *options))
        if known:
            console.print(f"[dim]trained by an earlier run: {os.path.relpath(kept)}[/]")
        (self.folder / TUNED).symlink_to(kept, target_is_directory=True)

    def collect(self) -> None:
        """Measure the tuned model's layer inputs on the text that it was tuned on."""
        self._gramfuse(
            "stats", "collect", "--model", TUNED, "--texts", TRAIN, "--tokens", "tokens", "--out", STATISTICS
        )

    def push(self) -> None:
        """Send what the policy allows of the weights and statistics."""
        files = ["--model", TUNED, "--statistics", STATISTICS, "--base", BASE]
        self._gramfuse("contribution", "push", PROJECT, *files, "--yes")

    def pull(self, model: str) -> Path:
        """Fetch a merged model and check its files against its signed receipt."""
        self._gramfuse("model", "pull", PROJECT, model, model)
        self._gramfuse("model", "verify", model)
        return self.folder / model

    # --- how a command is run --------------------------------------------------------------------------------------

    def _gramfuse(self, *arguments: str, typed: str | None = None) -> None:
        self.processes.run(self.shell, ["gramfuse", *arguments], typed=typed)

    def _python(self, program: str, *arguments: str) -> None:
        path = os.path.relpath(HERE / program, self.folder)
        self.processes.run(self.shell, ["python", path, *arguments], log=self.log)


def evaluate(
    participant: Participant, models: Mapping[str, Path], tests: Sequence[tuple[str, Path]]
) -> dict[str, dict[str, float]]:
    """Measure models on test sets: {model: {test set: entity F1 in percent}}."""
    command = ["python", os.path.relpath(HERE / "evaluate.py", participant.folder)]
    command += [f"--model={name}={os.path.relpath(folder, participant.folder)}" for name, folder in models.items()]
    command += [f"--test={name}={os.path.relpath(file, participant.folder)}" for name, file in tests]
    scores: dict[str, dict[str, float]] = json.loads(
        participant.processes.read(participant.shell, command, log=participant.log)
    )
    return scores
