"""Runs a search: merges what a strategy proposes, has everybody evaluate it, tells the strategy. A rerun resumes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gramfuse.connection import named
from gramfuse.resuming import LONGEST_RETRY, find_or_ask, start_job, wait_for_answers
from gramfuse.searching.judging import Averaging, Judgement, goodness, is_answered_by, judge
from gramfuse.searching.results import SearchProgress, SearchResult, Trial
from gramfuse.searching.strategies import Member, Proposal, Proposals, Strategy, whole_cohort
from gramfuse_shared.contract.http_api import Job
from gramfuse_shared.contract.metrics import MetricName
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import RequestCreate, RequestInfo, require_request_allowed
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import (
    ConflictError,
    NotFoundError,
    PolicyViolationError,
    RecipeInvalidError,
    RequestFailedError,
)
from gramfuse_shared.identifiers import JOB_PATTERN

if TYPE_CHECKING:
    from gramfuse.loops import Loops

DEFAULT_MODELS_PER_REQUEST: Final = 8

_DIGITS: Final = 10  # of a digest in a name: two of a thousand merges meet once in a million searches


@dataclass(slots=True)
class Search:
    """What is searched, and what was found so far; see `Client.search`."""

    client: "Loops"
    project: str
    strategy: Strategy
    name: str
    metric: MetricName
    averaging: Averaging
    models_per_request: int
    seconds: int
    keep: bool
    on_request: Callable[[RequestInfo], None]
    on_progress: Callable[[SearchProgress], None]
    on_known: Callable[[str], None]
    _members: tuple[Member, ...] = field(init=False, default=())
    _judged: dict[str, Judgement] = field(init=False, default_factory=dict)
    _trials: dict[str, Trial] = field(init=False, default_factory=dict)
    _deleted: set[str] = field(init=False, default_factory=set)
    _known: set[str] = field(init=False, default_factory=set)
    _started: set[str] = field(init=False, default_factory=set)

    def run(self) -> SearchResult:
        """Try all that the strategy proposes, as far as it is not done yet.

        Raises:
            GramfuseError: see `Client.search`.
        """
        named("search", f"{self.name}-{'0' * _DIGITS}{LONGEST_RETRY}", JOB_PATTERN)
        policy = self.client.policy(self.project).policy
        require_search_allowed(self.strategy.recipe, policy)
        self._members = self._find_members()
        self._remember()
        self._known = set(self._judged)
        proposing = self.strategy.propose(self._members, smallest=policy.minimum_cohort)
        curve: list[Trial] = []
        batch = _sent(proposing, None)
        while batch is not None:
            self._try(batch, number=len(curve) + 1)
            scores = [self._goodness(self._job(proposal)) for proposal in batch]
            curve.append(self._trials[self._job(batch[scores.index(max(scores))])])
            batch = _sent(proposing, scores)
        for job in self._trials:
            if job in self._known:
                self.on_known(job)
        best = self._best()
        self._delete_all_but({best.job})
        return SearchResult(self.metric, self.averaging, best, tuple(self._trials.values()), tuple(curve))

    # --- one batch ---------------------------------------------------------------------------------------------------

    def _try(self, batch: Sequence[Proposal], *, number: int) -> None:
        """Merge and judge what is not judged yet, in portions, and delete what is beaten."""
        everybody = whole_cohort(self.strategy.recipe, self._members)
        for portion in self._portions(batch, everybody):
            self._judge_portion(portion, batch, number)
            self._note(portion, number=0)
            self._delete_all_but({self._best().job, self._job(everybody)})
        self._note(batch, number=number)

    def _portions(self, batch: Sequence[Proposal], everybody: Proposal) -> Iterator[list[Proposal]]:
        """Cut what is not judged yet so that one request takes each portion, and everybody is asked.

        A request asks the members of its models' cohorts. Where these are not all, everybody's merge is among them.
        """
        while waiting := {self._job(one): one for one in batch if self._job(one) not in self._judged}:
            portion = list(waiting.values())[: self.models_per_request]
            if not _covers(portion, self._members):
                room = max(self.models_per_request, 2) - 1  # there is no progress without one of the batch
                others = [one for one in portion if self._job(one) != self._job(everybody)]
                portion = [everybody, *others[:room]]
            yield portion

    def _judge_portion(self, portion: Sequence[Proposal], batch: Sequence[Proposal], number: int) -> None:
        jobs = {self._job(one): one.recipe for one in portion}
        judges = self._judges()

        def tell(*, request: RequestInfo | None = None, job: Job | None = None) -> None:
            judged = sum(self._job(one) in self._judged for one in batch)
            self.on_progress(SearchProgress(number, judged, len(batch), request, job))

        for job, recipe in jobs.items():  # all of them first, so that they can be merged side by side
            start_job(self.client, self.project, job, recipe, on_known=self._note_known)
            self._started.add(job)
        for job in jobs:
            self.client.wait(self.project, job, on_progress=lambda seen: tell(job=seen))
        request = wait_for_answers(
            self.client,
            self.project,
            self._find_or_ask(tuple(jobs), judges),
            on_request=self.on_request,
            on_progress=lambda seen: tell(request=seen),
        )
        if not is_answered_by(request, judges):
            late = ", ".join(sorted(judges - {place.organization for place in request.asked if place.scores}))
            msg = f"{late} missed the deadline of {request.id}, so means cannot be compared; the same call asks anew"
            raise RequestFailedError(msg, request=request.id)
        self._judged |= judge(request, judges, self.metric, self.averaging)

    def _find_or_ask(self, jobs: tuple[str, ...], judges: frozenset[str]) -> RequestInfo:
        try:
            return find_or_ask(
                self.client,
                self.project,
                f"{self.name}-{sha256_hex(' '.join(jobs).encode())[:_DIGITS]}",
                RequestCreate(kind="evaluate", models=jobs, seconds=self.seconds),
                is_usable=lambda seen: is_answered_by(seen, judges),
            )
        except NotFoundError as error:
            msg = f"{error.message}: an earlier search deleted it when it was beaten; give this one a name of its own"
            raise ConflictError(msg) from error

    # --- what is known -----------------------------------------------------------------------------------------------

    def _find_members(self) -> tuple[Member, ...]:
        """List the organizations whose contributions count, or those of them that the recipe names, by name."""
        standing = [Member(one.organization, one.id) for one in self.client.contributions(self.project) if one.counts]
        wanted = [entry.model for entry in self.strategy.recipe.models]
        known = {name for member in standing for name in (member.organization, member.contribution)}
        strangers = [name for name in wanted if name not in known]
        if strangers:
            msg = f"{strangers[0]} has no contribution that counts"
            raise RecipeInvalidError(msg, model=strangers[0])
        chosen = [
            member for member in standing if not wanted or {member.organization, member.contribution} & set(wanted)
        ]
        return tuple(sorted(chosen, key=lambda member: member.organization))

    def _judges(self) -> frozenset[str]:
        return frozenset(member.organization for member in self._members)

    def _remember(self) -> None:
        """Take the judgements of this search's earlier requests: a run that was interrupted, or had other settings."""
        judges = self._judges()
        for request in self.client.requests(self.project):
            is_ours = request.kind == "evaluate" and request.id.startswith(f"{self.name}-")
            if is_ours and request.state == "complete" and is_answered_by(request, judges):
                self._judged |= judge(request, judges, self.metric, self.averaging)

    def _note_known(self, job: str) -> None:
        if job not in self._started:  # everybody's merge may be in several portions
            self._known.add(job)

    def _note(self, proposals: Iterable[Proposal], *, number: int) -> None:
        for one in proposals:
            job = self._job(one)
            known = self._trials.get(job)
            if known is None or (number and not known.round):
                found = self._judged[job]
                self._trials[job] = Trial(job, one.words, number, one.recipe, found.value, found.by_organization)

    def _job(self, proposal: Proposal) -> str:
        return f"{self.name}-{proposal.recipe.content_digest()[:_DIGITS]}"

    def _goodness(self, job: str) -> float:
        return goodness(self._judged[job], self.metric)

    def _best(self) -> Trial:
        return max(self._trials.values(), key=lambda trial: self._goodness(trial.job))  # of equals the first

    def _delete_all_but(self, kept: set[str]) -> None:
        beaten = [] if self.keep else [job for job in self._trials if job not in kept | self._deleted]
        for job in beaten:
            self.client.delete_model(self.project, job)
        self._deleted.update(beaten)


def require_search_allowed(recipe: Recipe, policy: Policy) -> None:
    """Require an open project, in which everybody accepted that merges vary and are judged.

    Raises:
        PolicyViolationError: it is none.
    """
    if policy.cohorts != "open":
        msg = (
            "a search merges cohorts and parameters that differ by little, which tells single members apart; it needs "
            "a policy with `cohorts: open`, accepted by everybody"
        )
        raise PolicyViolationError(msg, cohorts=policy.cohorts)
    require_request_allowed("evaluate", policy)
    if recipe.merge_method not in policy.methods:
        msg = f"the policy allows {', '.join(policy.methods)}, not {recipe.merge_method}"
        raise PolicyViolationError(msg, method=recipe.merge_method)


def _sent(proposing: Proposals, scores: Sequence[float] | None) -> tuple[Proposal, ...] | None:
    """Return the next batch; None once there is none."""
    try:
        return next(proposing) if scores is None else proposing.send(scores)
    except StopIteration:
        return None


def _covers(portion: Iterable[Proposal], members: Sequence[Member]) -> bool:
    merged = {entry.model for one in portion for entry in one.recipe.models}
    return merged >= {member.contribution for member in members}
