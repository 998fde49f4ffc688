"""Contributions in the SDK: say what would leave, send it once that is confirmed, list and withdraw it."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from gramfuse.auditing.report import AuditReport
from gramfuse.auditing.running import USUAL, Auditing, current_report, require_not_refused
from gramfuse.auditing.summarizing import shared_summary
from gramfuse.contributing.packaging import Package
from gramfuse.contributing.plan import ContributionPlan
from gramfuse.contributing.sent_before import SentBefore
from gramfuse.extras import EXTRAS
from gramfuse.progress import OnProgress, begin_check
from gramfuse.projects import Projects, StrPath
from gramfuse.transfer import pushing
from gramfuse.transfer.watching import Deadline, poll
from gramfuse_shared.contract.http_api import Contribution, ContributionDetail, Page
from gramfuse_shared.errors import NotConfirmedError, NotFoundError, PolicyViolationError
from gramfuse_shared.extras import requiring_extras


class Contributions(Projects):
    """What a connection can do with contributions to its projects."""

    def plan(
        self,
        project: str,
        *,
        model: StrPath,
        statistics: StrPath | None = None,
        fisher: StrPath | None = None,
        base: StrPath | None = None,
        labels: Sequence[int] | None = None,
    ) -> ContributionPlan:
        """Say what a push would send and what would stay, without sending anything."""
        return self._prepare(project, model, statistics, fisher, base, labels).plan

    def audit(
        self,
        project: str,
        *,
        model: StrPath,
        statistics: StrPath | None = None,
        fisher: StrPath | None = None,
        base: StrPath | None = None,
        labels: Sequence[int] | None = None,
        auditing: Auditing = USUAL,
    ) -> AuditReport:
        """Report what a push would reveal: a kept report that is current, or a new one, which is kept in the home.

        Nothing is sent, and nothing is refused: the report's `verdict` says what a push with the same thresholds does.
        Without the `collect` extra it rests on headers alone, and says so. Raises as `push` before it asks.
        """
        return self._audited(self._prepare(project, model, statistics, fisher, base, labels), auditing)

    def push(
        self,
        project: str,
        *,
        model: StrPath,
        statistics: StrPath | None = None,
        fisher: StrPath | None = None,
        confirm: Callable[[ContributionPlan], bool],
        base: StrPath | None = None,
        labels: Sequence[int] | None = None,
        auditing: Auditing | None = USUAL,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> ContributionDetail:
        """Send a fine-tuned model and its statistics; return the contribution once the server accepted it.

        Only what the project's policy allows is sent. A rerun sends only the parts that are missing. The home remembers
        which project the weights went to, and the plan warns of the next one. What the server checks already, or has
        accepted and merges take, is returned as it is: nothing leaves, so it is not audited and `confirm` is not asked.

        Args:
            project: the project.
            model: the fine-tuned `from_pretrained` folder.
            statistics: the statistics file, or None to contribute weights alone.
            fisher: the file of Fisher information, for projects that merge by it.
            confirm: shown what leaves and what stays; anything but True sends nothing.
            base: the base model's folder, to tell whether embeddings were tuned; default where it was pulled to.
            labels: the label ids that were trained, where these are not all: other rows of a shared head are left out.
            auditing: how it is audited before `confirm` is asked; None: not at all, and nothing is refused by it, which
                a policy that shares how audits came out does not take. What leaves of it is the plan's `audit`.
            on_progress: told the bytes that were read, then sent.
            timeout: seconds to wait for the server's checks; None: as long as they take.

        Raises:
            NotConfirmedError: `confirm` did not return True.
            AuditRefusedError: the audit's thresholds refuse what would leave.
            PolicyNotAcceptedError, PolicyViolationError: the policy.
            ArchitectureMismatchError, StatisticsMalformedError, FileUnreadableError: the model or the statistics.
            PrivacyBudgetExceededError: with these statistics the project's releases would exceed the policy's budget.
            ContributionRejectedError: the server's checks refused it.
        """
        from gramfuse.identity import load_identity  # noqa: PLC0415 - cryptography takes its time to load

        prepared = self._prepare(project, model, statistics, fisher, base, labels)
        standing = [one for one in self._standing(prepared.project.id) if pushing.may_be(prepared, one)]
        package = prepared.package(on_progress) if standing else None
        for one in standing:
            if package is not None and pushing.is_same(package, one):
                return self._checked(prepared.project.id, one, on_progress, timeout)
        if auditing is not None:
            report = self._audited(prepared, auditing)
            auditing.on_report(report)
            require_not_refused(report)
            prepared = prepared.with_audit(shared_summary(report, prepared.policy))
        elif prepared.plan.shares_audit:
            msg = (
                f"the policy of {prepared.project.id} has every contribution say how its audit came out (audit: "
                "shared), and auditing=None makes none: leave `auditing` out, or say how to audit"
            )
            raise PolicyViolationError(msg)
        if confirm(prepared.plan) is not True:
            msg = "nothing was sent: the contribution was not confirmed"
            raise NotConfirmedError(msg)
        package = package or prepared.package(on_progress)
        self._count_release(prepared)
        SentBefore(self.home).remember(prepared.sent)
        sent = pushing.send(
            self._transport,
            package,
            audit=prepared.plan.audit,
            identity=load_identity(self.home),
            parallel=self._parallel,
            on_progress=on_progress,
        )
        return self._checked(prepared.project.id, sent, on_progress, timeout)

    def package(
        self,
        project: str,
        *,
        model: StrPath,
        statistics: StrPath | None = None,
        fisher: StrPath | None = None,
        base: StrPath | None = None,
        labels: Sequence[int] | None = None,
    ) -> Package:
        """Read what a push would send, and write its manifest; nothing is sent. Raises as `push` before it asks."""
        return self._prepare(project, model, statistics, fisher, base, labels).package()

    def contribution(self, project: str, contribution: str) -> ContributionDetail:
        """Return a contribution by its id; the manifest is shown of one's own alone."""
        identifier = self._resolve_contribution(project, contribution)
        return ContributionDetail.parse(
            self._transport.call("GET", f"{self._path(project)}/contributions/{identifier}")
        )

    def own_contribution(self, project: str, contribution: str) -> Contribution:
        """Return a contribution of the caller's organization, by its id or a unique beginning of it.

        Raises:
            NotFoundError: it has none that begins so, or several.
        """
        mine = self.contributions(project, organization=self.organization)
        found = [one for one in mine if one.id.startswith(contribution)]
        if len(found) != 1:
            many = "no contribution" if not found else f"{len(found)} contributions"
            listing = f"gramfuse contribution list {project} --organization {self.organization}"
            msg = f"{many} of yours begins with {contribution!r}; `{listing}` shows the ids"
            raise NotFoundError(msg)
        return found[0]

    def contributions(
        self, project: str, *, organization: str | None = None, state: str | None = None
    ) -> list[Contribution]:
        """List a project's contributions."""
        query = {"organization": organization, "state": state}
        return list(self._pages(f"{self._path(project)}/contributions", Page[Contribution], query))

    def withdraw(self, project: str, contribution: str) -> Contribution:
        """Withdraw a contribution, named by its id or by a unique beginning of it."""
        path = self._path(project)
        identifier = self._resolve_contribution(project, contribution)
        return Contribution.parse(self._transport.call("POST", f"{path}/contributions/{identifier}/withdraw"))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _prepare(
        self,
        project: str,
        model: StrPath,
        statistics: StrPath | None,
        fisher: StrPath | None,
        base: StrPath | None,
        labels: Sequence[int] | None,
    ) -> pushing.Prepared:
        found = self.project(project)
        pushing.require_ready(found)
        pushing.require_accepted(found, self.organization)
        self._trust(found).require_accepted(found, self.organization)
        return pushing.prepare(
            found,
            self.organization,
            self.base_manifest(found.id),
            self.policy(found.id).policy,
            model=Path(model),
            statistics=None if statistics is None else Path(statistics),
            base_folder=Path(base) if base is not None else self.home.base_folder(found.base),
            fisher=None if fisher is None else Path(fisher),
            labels=labels,
            before=SentBefore(self.home),
            url=self.url,
        )

    def _audited(self, prepared: pushing.Prepared, auditing: Auditing) -> AuditReport:
        return current_report(self.home, prepared.draft, prepared.base, prepared.policy, prepared.base_folder, auditing)

    def _standing(self, project: str) -> list[ContributionDetail]:
        """Return the organization's own contributions that the server checks, or that merges take."""
        mine = self.contributions(project, organization=self.organization)
        return [self.contribution(project, one.id) for one in mine if one.counts or one.state == "sealed"]

    def _checked(
        self, project: str, sent: ContributionDetail, on_progress: OnProgress | None, timeout: float | None
    ) -> ContributionDetail:
        """Wait for the server's check of what was sent, and require that it accepted it."""
        if sent.state == "sealed":
            begin_check(on_progress)
        checked = poll(
            lambda: self.contribution(project, sent.id),
            lambda seen: seen.state not in {"open", "sealed"},
            what="the server's check of the contribution",
            deadline=Deadline(timeout),
            sleep=self._sleep,
            workers=self._workers(),
        )
        return pushing.require_accepted_by_server(checked)

    def _count_release(self, prepared: pushing.Prepared) -> None:
        """Have noised statistics in the ledger before a byte of them is sent; the same file twice counts once."""
        noised = prepared.plan.noised
        if noised is None or not prepared.plan.leaving_taps:
            return
        with requiring_extras("sending statistics with noise", EXTRAS):
            from gramfuse.privacy.ledger import Ledger  # noqa: PLC0415 - scipy is an extra
        limit = prepared.policy.differential_privacy
        ledger = Ledger.of_home(self.home)
        ledger.count(noised, now=datetime.now(UTC), project=prepared.project.id, limit=limit)

    def _resolve_contribution(self, project: str, beginning: str) -> str:
        if len(beginning) == 64:  # noqa: PLR2004 - a whole digest
            return beginning
        return self.own_contribution(project, beginning).id
