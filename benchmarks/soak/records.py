"""What clients were told, what the server has in the end, and what the two say together."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

JobKey = tuple[str, str]
"""A job by its project and its id."""

_ONCE: Final = frozenset(
    {
        "project.create",
        "contribution.create",
        "contribution.seal",
        "contribution.accept",
        "job.submit",
        "model.publish",
    }
)
"""What happens once to whatever it happens to."""


@dataclass(frozen=True, slots=True)
class Contributed:
    """A contribution: where it is, whose, in which state, and its files' SHA-256 by name."""

    project: str
    organization: str
    state: str
    files: Mapping[str, str]


@dataclass(slots=True)
class Told:
    """What was acknowledged to clients. What stands here, the server has to have in the end.

    `unlisted_parts` are those that were acknowledged and that a later list of the upload's parts lacks.
    """

    contributions: dict[str, Contributed] = field(default_factory=dict)
    jobs: dict[JobKey, Mapping[str, Any]] = field(default_factory=dict)
    unlisted_parts: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """What the server has.

    Lists, not mappings by id: what is there twice must be seen twice. `jobs` are states, `models` those whose job
    succeeded or not, `weights` the digests of their tensors' files; `events` are the audit log's actions and what they
    are about. `damaged` says of each file that is not as it was signed, or of the log, what is wrong.
    """

    contributions: Sequence[tuple[str, Contributed]]
    jobs: Sequence[tuple[JobKey, str]]
    models: Sequence[JobKey]
    weights: Mapping[JobKey, tuple[str, ...]]
    events: Sequence[tuple[str, str]]
    damaged: Sequence[str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """In words, each once. `unfinished` are jobs that are there and still wait: late, not lost."""

    lost: tuple[str, ...]
    duplicated: tuple[str, ...]
    corrupt: tuple[str, ...]
    unfinished: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {name: len(getattr(self, name)) for name in ("lost", "duplicated", "corrupt", "unfinished")}


def judge(told: Told, found: Found) -> Verdict:
    """Compare what clients were told with what the server has."""
    return Verdict(
        lost=tuple(_lost(told, found)),
        duplicated=tuple(_duplicated(told, found)),
        corrupt=tuple(_corrupt(told, found)),
        unfinished=tuple(_name(key) for key, state in found.jobs if state in {"queued", "running"}),
    )


def _lost(told: Told, found: Found) -> Iterator[str]:
    yield from (f"part {part} was acknowledged and is not listed" for part in told.unlisted_parts)
    yield from _lost_contributions(told, found)
    yield from _lost_jobs(told, found)


def _lost_contributions(told: Told, found: Found) -> Iterator[str]:
    contributions, events = dict(found.contributions), set(found.events)
    for digest, promised in told.contributions.items():
        there = contributions.get(digest)
        if there != promised:
            yield f"contribution {digest} of {promised.organization}: {there}"
        for action in ("create", "seal", "accept"):
            if (f"contribution.{action}", digest) not in events:
                yield f"contribution {digest} of {promised.organization}: no contribution.{action} in the audit log"


def _lost_jobs(told: Told, found: Found) -> Iterator[str]:
    jobs, models, events = dict(found.jobs), set(found.models), set(found.events)
    for key in told.jobs:
        state = jobs.get(key)
        if state is None:
            yield f"job {_name(key)} is not there"
        elif state not in {"queued", "running", "succeeded"}:
            yield f"job {_name(key)} has {state}"
        if (state == "succeeded") != (key in models):
            yield f"job {_name(key)} has {state}, its model is {'there' if key in models else 'not there'}"
        if ("job.submit", _name(key)) not in events:
            yield f"job {_name(key)}: no job.submit in the audit log"
        if state == "succeeded" and ("model.publish", _name(key)) not in events:
            yield f"job {_name(key)}: no model.publish in the audit log"


def _duplicated(told: Told, found: Found) -> Iterator[str]:
    for kind, names, known in (
        ("contribution", [digest for digest, _ in found.contributions], set(told.contributions)),
        ("job", [_name(key) for key, _ in found.jobs], {_name(key) for key in told.jobs}),
        ("model", [_name(key) for key in found.models], {_name(key) for key in told.jobs}),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{kind} {name} is there {count} times"
            if name not in known:
                yield f"{kind} {name} is there, and nobody was told of it"
    for (action, subject), count in Counter(found.events).items():
        if action in _ONCE and count > 1:
            yield f"{action} of {subject} is {count} times in the audit log"


def _corrupt(told: Told, found: Found) -> Iterator[str]:
    yield from found.damaged
    by_recipe: dict[str, tuple[JobKey, tuple[str, ...]]] = {}
    for key in sorted(found.weights):
        recipe = f"{key[0]} {json.dumps(told.jobs.get(key), sort_keys=True)}"
        first, weights = by_recipe.setdefault(recipe, (key, found.weights[key]))
        if weights != found.weights[key]:
            yield f"{_name(first)} and {_name(key)} merge the same by the same recipe and differ"


def _name(key: JobKey) -> str:
    return "/".join(key)
