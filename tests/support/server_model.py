"""What must be on a server after everything that was asked of it: a pure model, without database, store or clock.

What callers do, it decides by itself: each `why_not_…` returns the code by which the server has to refuse, None where
it has to agree. What workers do comes at times of their own, so the model says which arrows are open, and is told
which were taken.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

UNFINISHED = ("queued", "running")
ARROWS = {
    ("sealed", "accepted"),
    ("sealed", "rejected"),
    ("queued", "running"),
    ("queued", "failed"),
    ("running", "failed"),
    ("running", "succeeded"),
}
"""Those that workers take."""


@dataclass
class Contribution:
    """A contribution, as far as it was asked for; `fault` says how its bytes are wrong, if they are."""

    id: str
    organization: str
    version: int
    fault: str | None
    files: Mapping[str, bytes]
    digests: Mapping[str, str]
    counts: Mapping[str, int]
    expires_at: datetime
    state: str = "open"
    parts: set[tuple[str, int]] = field(default_factory=set)
    sealed: int = 0
    was_accepted: bool = False
    delete_after: datetime | None = None
    given_up: bool = False

    @property
    def bytes(self) -> int:
        return sum(map(len, self.files.values()))

    @property
    def is_complete(self) -> bool:
        return len(self.parts) == sum(self.counts.values())


@dataclass
class Job:
    """A job and its present attempt; `published` says whether it has a model, `deleted` whether that was deleted."""

    id: str
    recipe: object
    version: int
    cohort: tuple[str, ...]
    state: str = "queued"
    attempt: int = 1
    published: bool = False
    deleted: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0


@dataclass
class ServerModel:
    """One project's truth."""

    members: tuple[str, ...]
    quota: int
    base: Mapping[str, int]
    """The base model's files: their bytes by digest."""
    lifetime: timedelta
    deletion_delay: timedelta
    version: int = 1
    accepted_version: dict[str, int] = field(default_factory=dict)
    contributions: dict[str, Contribution] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    audit: Counter[str] = field(default_factory=Counter)
    seals: int = 0
    ended: bool = False
    """Whether the project was deleted."""
    base_delete_after: datetime | None = None
    base_given_up: bool = False

    # --- what follows from it -------------------------------------------------------------------------------------

    @property
    def coordinator(self) -> str:
        return self.members[0]

    @property
    def model_bytes(self) -> int:
        """What a model counts for while it is being merged."""
        return sum(self.base.values())

    def shown(self, contribution: Contribution, now: datetime) -> str:
        overdue = contribution.state == "open" and contribution.expires_at <= now
        return "expired" if overdue else contribution.state

    def standing(self) -> dict[str, str]:
        """Of each organization the contribution that counts: its newest that was ever accepted, if it still stands."""
        newest = sorted((each for each in self.contributions.values() if each.was_accepted), key=lambda c: c.sealed)
        found = {each.organization: each for each in newest}
        return {
            name: each.id for name, each in found.items() if each.state == "accepted" and each.version == self.version
        }

    def used(self) -> int:
        """What counts against the quota."""
        uploads = sum(each.bytes for each in self.contributions.values() if not each.given_up)
        models = sum(job.bytes for job in self.jobs.values() if job.published and not job.deleted)
        merging = sum(job.state in UNFINISHED for job in self.jobs.values())
        base = 0 if self.base_given_up else sum(self.base.values())
        return base + uploads + models + merging * self.model_bytes

    def named(self) -> set[str]:
        """Digests of complete files that have to be in the store: of accepted uploads, and of models."""
        held = [each for each in self.contributions.values() if each.was_accepted and not each.given_up]
        models = [job for job in self.jobs.values() if job.published and not job.deleted]
        return {
            *(() if self.base_given_up else self.base),
            *(digest for each in held for digest in each.digests.values()),
            *(digest for job in models for digest in job.files.values()),
        }

    # --- what callers ask -----------------------------------------------------------------------------------------

    def why_not_created(self, contribution: Contribution) -> str | None:
        if self.ended:
            return "wrong-state"
        if self.accepted_version[contribution.organization] != self.version or contribution.version != self.version:
            return "policy-not-accepted"
        return "quota-exceeded" if self.used() + contribution.bytes > self.quota else None

    def create(self, contribution: Contribution) -> None:
        self.contributions[contribution.id] = contribution
        self.audit["contribution.create"] += 1

    def why_no_part(self, contribution: Contribution, now: datetime) -> str | None:
        return None if self.shown(contribution, now) == "open" and not self.ended else "wrong-state"

    def why_not_sealed(self, contribution: Contribution, now: datetime) -> str | None:
        state = self.shown(contribution, now)
        if self.ended:
            return "wrong-state"
        if state in {"sealed", "accepted", "rejected"}:
            return None
        if state != "open":
            return "wrong-state"
        if not contribution.is_complete:
            return "parts-missing"
        return "policy-violation" if contribution.fault == "text" else None

    def seal(self, contribution: Contribution) -> None:
        """Take an open, complete contribution; one whose header shows its fault is rejected, and its bytes given up."""
        if contribution.fault == "text":
            contribution.state, contribution.given_up = "rejected", True
            self.audit["contribution.reject"] += 1
        elif contribution.state == "open":
            self.seals += 1
            contribution.state, contribution.sealed = "sealed", self.seals
            self.audit["contribution.seal"] += 1

    def why_not_withdrawn(self, contribution: Contribution, now: datetime) -> str | None:
        return "wrong-state" if self.ended or self.shown(contribution, now) in {"rejected", "expired"} else None

    def withdraw(self, contribution: Contribution, now: datetime) -> None:
        if contribution.state == "withdrawn":
            return
        contribution.state, contribution.delete_after = "withdrawn", now + self.deletion_delay
        self.audit["contribution.withdraw"] += 1
        for job in self.jobs.values():
            if contribution.id in job.cohort and job.state in UNFINISHED:
                job.state = "cancelled"

    def why_not_submitted(self, job: str, recipe: object, names: tuple[str, ...]) -> str | None:
        if self.ended:
            return "wrong-state"
        if self.accepted_version[self.coordinator] != self.version:
            return "policy-not-accepted"
        known = self.jobs.get(job)
        if known is not None:
            return None if known.recipe == recipe else "conflict"
        standing = self.standing()
        if any(name not in standing for name in names):
            return "recipe-invalid"
        if len(names or standing) < 2:
            return "policy-violation"
        return "quota-exceeded" if self.used() + self.model_bytes > self.quota else None

    def submit(self, job: str, recipe: object, names: tuple[str, ...]) -> None:
        if job not in self.jobs:
            standing = self.standing()
            cohort = tuple(sorted(standing[name] for name in names or standing))
            self.jobs[job] = Job(job, recipe, self.version, cohort)
            self.audit["job.submit"] += 1

    def why_not_retried(self, job: Job) -> str | None:
        if self.ended:
            return "wrong-state"
        if self.accepted_version[self.coordinator] != self.version:
            return "policy-not-accepted"
        if job.state in UNFINISHED:
            return None
        gone = set(job.cohort) - set(self.standing().values())
        if job.state == "succeeded" or job.version != self.version or gone:
            return "wrong-state"
        return "quota-exceeded" if self.used() + self.model_bytes > self.quota else None

    def retry(self, job: Job) -> None:
        if job.state not in UNFINISHED:
            job.state, job.attempt = "queued", job.attempt + 1
            self.audit["job.retry"] += 1

    def why_not_cancelled(self, job: Job) -> str | None:
        return None if job.state in {*UNFINISHED, "cancelled"} and not self.ended else "wrong-state"

    def cancel(self, job: Job) -> None:
        if job.state in UNFINISHED:
            job.state = "cancelled"
            self.audit["job.cancel"] += 1

    def publish_policy(self) -> None:
        self.version += 1
        self.audit["policy.publish"] += 1

    def accept_policy(self, organization: str) -> None:
        if self.accepted_version[organization] != self.version:
            self.accepted_version[organization] = self.version
            self.audit["policy.accept"] += 1

    def delete(self, job: Job) -> None:
        if not job.deleted:
            job.deleted = True
            self.audit["model.delete"] += 1

    def leave(self, organization: str, now: datetime, *, by_coordinator: bool) -> None:
        """An organization's part ends: what it gave is withdrawn, what it accepted holds no more."""
        self._withdraw_all([each for each in self.contributions.values() if each.organization == organization], now)
        self.accepted_version[organization] = 0
        self.audit["project.remove" if by_coordinator else "project.leave"] += 1

    def end(self, now: datetime) -> None:
        """The project is deleted."""
        if self.ended:
            return
        for job in self.jobs.values():
            job.state = "cancelled" if job.state in UNFINISHED else job.state
            if job.published:
                self.delete(job)
        self._withdraw_all(list(self.contributions.values()), now)
        self.ended, self.base_delete_after = True, now + self.deletion_delay
        self.audit["project.delete"] += 1

    def _withdraw_all(self, contributions: Sequence[Contribution], now: datetime) -> None:
        for each in contributions:
            if self.shown(each, now) in {"open", "sealed", "accepted"}:
                self.withdraw(each, now)

    # --- what workers did -----------------------------------------------------------------------------------------

    def decided(self, contribution: Contribution, state: str, now: datetime, *, abandoned: bool) -> None:
        """A worker accepted or rejected a sealed contribution: by its fault alone, unless it was given up."""
        assert (contribution.state, state) in ARROWS, (contribution.state, state)
        assert (state == "accepted") == (contribution.fault is None) or (abandoned and state == "rejected")
        contribution.state = state
        if state == "accepted":
            contribution.was_accepted = True
        else:
            contribution.delete_after = now
        self.audit[f"contribution.{'accept' if state == 'accepted' else 'reject'}"] += 1

    def moved(self, job: Job, state: str) -> None:
        """A worker began, finished or failed a job."""
        assert (job.state, state) in ARROWS, (job.state, state)
        job.state = state
        if state in {"succeeded", "failed"}:
            self.audit["model.publish" if state == "succeeded" else "job.fail"] += 1

    def swept(
        self,
        now: datetime,
        *,
        finished: Sequence[datetime],
        given_up: set[str],
        expired: set[str],
        base_given_up: bool,
    ) -> None:
        """Sweeps may have run; those that finished, each begun at its time, left nothing that was due then."""
        due = self.base_delete_after
        assert not base_given_up or (due is not None and due <= now)
        assert base_given_up or due is None or not any(begun >= due for begun in finished)
        assert base_given_up or not self.base_given_up
        self.base_given_up = base_given_up
        for each in self.contributions.values():
            if each.state == "open" and each.expires_at <= now:
                assert each.id in expired or not any(begun >= each.expires_at for begun in finished), each.id
                if each.id in expired:
                    each.state, each.delete_after = "expired", now
                    self.audit["upload.expire"] += 1
            after = each.delete_after
            if not each.given_up:
                assert each.id not in given_up or (after is not None and after <= now), each.id
                assert each.id in given_up or after is None or not any(begun >= after for begun in finished), each.id
            assert each.id in given_up or not each.given_up, each.id
            each.given_up = each.id in given_up
