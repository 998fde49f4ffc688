"""What one organization does, each step by the command that a user would type."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache import Cache, training_key
from corpus import read_sentences, write_sentences
from processes import Command, Processes, Shell, console
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
    def name(self) -> str:
        """The organization's name, which is its domain's."""
        return self.domain.name

    @property
    def folder(self) -> Path:
        """Where this organization keeps everything."""
        return self.shell.folder

    # --- the coordinator's steps -----------------------------------------------------------------------------------

    def create_project(self, *, policy: Path) -> None:
        """Build a task-ready base model and create the project with it."""
        self.processes.run(self._python("base.py", BASE))
        shutil.copy(policy, self.folder / "policy.yaml")
        _, _, name = PROJECT.partition(".")
        self._gramfuse("project", "create", name, "--base", BASE, "--policy", "policy.yaml")

    def invite(self, other: "Participant") -> None:
        """Let another organization see the project."""
        self._gramfuse("project", "invite", PROJECT, other.name)

    def merge(self, method: str, *, job: str) -> None:
        """Submit a job, then follow it to its end."""
        self._gramfuse("job", "submit", PROJECT, "--method", method, "--id", job, "--wait")

    # --- everybody's steps -----------------------------------------------------------------------------------------

    def sign_in(self, url: str, token: str) -> None:
        """Keep the token in this organization's own home folder."""
        self._gramfuse("login", url, "--token", "-", typed=token + "\n")

    def policy_digest(self) -> str:
        """Look up which text is to be accepted; the coordinator tells the others."""
        show = Command(self.shell, ["gramfuse", "project", "show", PROJECT, "--format", "json"], self.log)
        project = json.loads(self.processes.read(show))
        return str(project["policy"]["digest"])

    def join(self, policy_digest: str) -> None:
        """Read the policy and accept it; the digest binds this organization to just that text."""
        self._gramfuse("project", "join", PROJECT, "--accept-policy", policy_digest)

    def pull_base(self) -> None:
        """Fetch the base model that everybody fine-tunes."""
        self._gramfuse("project", "base", "pull", PROJECT, BASE)

    def collecting(self) -> Command:
        """Measure the tuned model's layer inputs on the text that it was tuned on."""
        files = ["--model", TUNED, "--texts", TRAIN, "--tokens", "tokens", "--out", STATISTICS]
        return Command(self.shell, ["gramfuse", "stats", "collect", *files])

    def push(self) -> None:
        """Send what the policy allows of the weights and statistics."""
        self._gramfuse("contribution", "push", PROJECT, "--model", TUNED, "--statistics", STATISTICS, "--yes")

    def pull(self, model: str) -> Path:
        """Fetch a merged model and check its files against its signed receipt."""
        self._gramfuse("model", "pull", PROJECT, model, model)
        self._gramfuse("model", "verify", model)
        return self.folder / model

    # --- training and testing: nothing of gramfuse -----------------------------------------------------------------

    def training_key(self, size: Size) -> str:
        """Lay out this organization's text, and name what training on it will yield."""
        sentences = self.folder / TRAIN
        write_sentences(sentences, read_sentences(self.domain.sentences("train"), at_most=size.train_sentences))
        return training_key(self.folder / BASE, sentences, [HERE / "finetune.py", HERE / "corpus.py"], _options(size))

    def training(self, target: Path, size: Size) -> Command:
        """Fine-tune the base on this organization's text."""
        return self._python("finetune.py", BASE, TRAIN, os.path.relpath(target, self.folder), *_options(size))

    def testing(self, models: Mapping[str, Path], tests: Mapping[str, Path]) -> Command:
        """Measure models on test sets; prints {model: {test set: entity F1 in percent}}."""
        named = [f"--model={name}={os.path.relpath(folder, self.folder)}" for name, folder in models.items()]
        named += [f"--test={name}={os.path.relpath(file, self.folder)}" for name, file in tests.items()]
        return self._python("evaluate.py", *named)

    # --- how a command is run --------------------------------------------------------------------------------------

    def _gramfuse(self, *arguments: str, typed: str | None = None) -> None:
        self.processes.run(Command(self.shell, ["gramfuse", *arguments]), typed=typed)

    def _python(self, program: str, *arguments: str) -> Command:
        return Command(self.shell, ["python", os.path.relpath(HERE / program, self.folder), *arguments], self.log)


def finetune(participants: Sequence[Participant], cache: Cache, size: Size) -> None:
    """Fine-tune at the same time, except for those that an earlier run trained with just this input."""
    keys = {participant.name: participant.training_key(size) for participant in participants}
    missing = [participant for participant in participants if not cache.kept(keys[participant.name]).exists()]
    participants[0].processes.run_together(
        [participant.training(cache.begin(keys[participant.name]), size) for participant in missing]
    )
    for participant in missing:
        cache.finish(keys[participant.name])
    for participant in participants:
        kept = cache.kept(keys[participant.name])
        (participant.folder / TUNED).symlink_to(kept, target_is_directory=True)
        if participant not in missing:
            console.print(f"[dim]{participant.name} was trained by an earlier run: {os.path.relpath(kept)}[/]")


def _options(size: Size) -> list[str]:
    return ["--epochs", str(size.epochs)]
