"""What one organization does: each step is the command that a user would type. Nothing is run here."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache import training_key
from processes import Command, Shell
from sentences import read_sentences, write_sentences
from settings import HERE, PROJECT, Domain, Size

BASE: Final = "base"
POLICY: Final = "policy.yaml"
TRAIN: Final = "train.jsonl"
TUNED: Final = "tuned"
STATISTICS: Final = "statistics.safetensors"
TRAINING_PROGRAMS: Final = tuple(HERE / program for program in ("finetune.py", "batches.py", "sentences.py"))


@dataclass(frozen=True, slots=True)
class Participant:
    """An organization: its domain, and a shell in its own folder with its own home, where its token is kept."""

    domain: Domain
    shell: Shell
    log: Path

    @property
    def name(self) -> str:
        """The organization's name, which is its domain's."""
        return self.domain.name

    @property
    def folder(self) -> Path:
        """Where this organization keeps its text, its models, and everything else."""
        return self.shell.folder

    # --- the coordinator's steps -----------------------------------------------------------------------------------

    def building_base(self) -> Command:
        """Build a task-ready base model."""
        return self._python("base.py", BASE)

    def creating_project(self) -> Command:
        """Create the project with the base model and the policy."""
        _, _, name = PROJECT.partition(".")
        return self._gramfuse("project", "create", name, "--base", BASE, "--policy", POLICY)

    def inviting(self, *organizations: str) -> Command:
        """Let other organizations see the project."""
        return self._gramfuse("project", "invite", PROJECT, *organizations)

    def showing_project(self) -> Command:
        """Print what the server knows of the project, the policy's digest among it."""
        return self._gramfuse("project", "show", PROJECT, "--format", "json")

    def merging(self, method: str, *, job: str) -> Command:
        """Submit a job."""
        return self._gramfuse("job", "submit", PROJECT, "--method", method, "--id", job)

    def waiting(self, job: str) -> Command:
        """Follow a job to its end."""
        return self._gramfuse("job", "wait", PROJECT, job)

    # --- everybody's steps -----------------------------------------------------------------------------------------

    def signing_in(self, url: str, token: str) -> Command:
        """Keep the token in this organization's own home folder."""
        return self._gramfuse("login", url, "--token", "-", typed=token + "\n")

    def joining(self, policy_digest: str) -> Command:
        """Read the policy and accept it; the digest binds this organization to just that text."""
        return self._gramfuse("project", "join", PROJECT, "--accept-policy", policy_digest)

    def pulling_base(self) -> Command:
        """Fetch the base model that everybody fine-tunes."""
        return self._gramfuse("project", "base", "pull", PROJECT, BASE)

    def collecting(self) -> Command:
        """Measure the tuned model's layer inputs on the text that it was tuned on."""
        files = ["--model", TUNED, "--texts", TRAIN, "--tokens", "tokens", "--out", STATISTICS]
        return self._gramfuse("stats", "collect", *files)

    def pushing(self) -> Command:
        """Send what the policy allows of the weights and statistics."""
        return self._gramfuse("contribution", "push", PROJECT, "--model", TUNED, "--statistics", STATISTICS, "--yes")

    def pulling(self, model: str) -> Command:
        """Fetch a merged model; it appears when it is complete and its receipt's signature is right."""
        return self._gramfuse("model", "pull", PROJECT, model, model)

    def verifying(self, model: str) -> Command:
        """Check a pulled model's files against its signed receipt, once more and without the server."""
        return self._gramfuse("model", "verify", model)

    # --- training and testing: nothing of gramfuse -----------------------------------------------------------------

    def lay_out_text(self, size: Size) -> str:
        """Write this organization's private sentences to its folder; return the key of what training will yield."""
        sentences = self.folder / TRAIN
        write_sentences(sentences, read_sentences(self.domain.sentences("train"), at_most=size.train_sentences))
        return training_key(
            self.folder / BASE,
            sentences,
            TRAINING_PROGRAMS,
            _options(size),
        )

    def training(self, target: Path, size: Size) -> Command:
        """Fine-tune the base on this organization's text."""
        return self._python("finetune.py", BASE, TRAIN, os.path.relpath(target, self.folder), *_options(size))

    def testing(self, models: Mapping[str, Path], tests: Mapping[str, Path]) -> Command:
        """Measure models on test sets; prints {model: {test set: entity F1 in percent}}."""
        named = [f"--model={name}={os.path.relpath(folder, self.folder)}" for name, folder in models.items()]
        named += [f"--test={name}={os.path.relpath(file, self.folder)}" for name, file in tests.items()]
        return self._python("evaluate.py", *named)

    # --- the form of a command -------------------------------------------------------------------------------------

    def _gramfuse(self, *arguments: str, typed: str = "") -> Command:
        return Command(self.shell, ["gramfuse", *arguments], self.log, typed)

    def _python(self, program: str, *arguments: str) -> Command:
        path = os.path.relpath(HERE / program, self.folder)
        return Command(self.shell, ["python", path, *arguments], self.log, heard=False)


def policy_digest(shown: str) -> str:
    """Read the digest of the current policy from what `gramfuse project show --format json` printed."""
    return str(json.loads(shown)["policy"]["digest"])


def _options(size: Size) -> list[str]:
    return ["--epochs", str(size.epochs)]
