"""What a member requires before it says anything, and of every set of messages that it is shown. Pure."""

from collections.abc import Collection, Mapping, Sequence

from gramfuse.securing.kept import Completed
from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import ContributionManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import values_of
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.secure import MaskedMessage, Message, SharesMessage, SurvivorsMessage, roster_digest
from gramfuse_shared.contract.secure_session import (
    SessionManifest,
    SessionMember,
    precision_name,
    product_name,
    weighted_name,
)
from gramfuse_shared.contract.statistics_file import packed_length
from gramfuse_shared.digest import document_digest
from gramfuse_shared.errors import SecureSessionRefusedError
from gramfuse_shared.secure.answer_planning import summed_of_answers


def claim_of(session: SessionManifest, organization: str) -> str:
    """Return what a member lets be summed once: a contribution, or its answers to one request."""
    member = session.member(organization)
    return document_digest([member.contribution if member else None, session.recipe.request])


def require_session(
    session: SessionManifest,
    organization: str,
    contribution: ContributionManifest,
    policy: Policy,
    pinned: Mapping[str, str],
    completed: Sequence[Completed],
    answer: Answer | None = None,
) -> None:
    """Require that a session is one that this member may take part in.

      1. it is a member, with this contribution, of the project and base that the contribution names,
      2. the policy is the one that was accepted, and allows the method, the number of members and the scales,
      3. every member has the identity key that is pinned here,
      4. no weight singles a member out,
      5. it sums nothing but what the contribution holds, or what was announced, in its shapes,
      6. where cohorts are frozen, it is of those, and so weighted, as sessions before.

    Args:
        session: the manifest.
        organization: this member.
        contribution: what it contributed, and so showed before.
        policy: the one that this member accepted.
        pinned: identity keys in base64 by organization, compared by people.
        completed: this project's sessions before.
        answer: what was announced, where the session sums answers to a request.

    Raises:
        SecureSessionRefusedError: one of these does not hold.
    """
    # 1.
    member = session.member(organization)
    if member is None or member.contribution != contribution.content_digest():
        msg = f"the session does not sum {organization}'s contribution {contribution.content_digest()[:12]}"
        raise SecureSessionRefusedError(msg)
    if (session.project, session.base) != (contribution.project, contribution.base):
        msg = f"{organization}'s contribution is of another project or base model than the session"
        raise SecureSessionRefusedError(msg)
    # 2.
    _require_accepted(session, contribution, policy)
    # 3.
    for each in session.members:
        if pinned.get(each.organization) != each.identity:
            known = "another identity key than the one that is" if each.organization in pinned else "no identity key"
            msg = (
                f"{each.organization} has {known} pinned here: compare fingerprints with its people, then "
                f"`gramfuse roster verify {session.project}`"
            )
            raise SecureSessionRefusedError(msg, organization=each.organization)
    # 4.
    values = [value for each in session.members for value in values_of(each.weight)]
    if min(values) <= 0 or max(values) > limits.MAX_WEIGHT_RATIO * min(values):
        msg = f"the weights run from {min(values):g} to {max(values):g}: the sum would show one organization's own"
        raise SecureSessionRefusedError(msg)
    # 5.
    if answer is None:
        _require_contributed(session, contribution)
    else:
        _require_announced(session, member, answer)
    # 6.
    if policy.cohorts == "frozen":
        for before in completed:
            _require_same(session, before)


def require_survivors(organizations: Collection[str], policy: Policy, completed: Sequence[Completed]) -> None:
    """Require that those who are summed are a cohort and, where cohorts are frozen, the one of the sums before.

    Raises:
        SecureSessionRefusedError: they are too few, or the two sums would differ by a member, which reveals it.
    """
    if len(organizations) < policy.minimum_cohort:
        msg = f"{len(organizations)} members sent words, the policy wants {policy.minimum_cohort} (minimum_cohort)"
        raise SecureSessionRefusedError(msg)
    for before in completed if policy.cohorts == "frozen" else ():
        missing = sorted(before.weights.keys() ^ set(organizations))
        if missing:
            msg = f"a sum before this one differs by {', '.join(missing)}: the two would reveal what only one holds"
            raise SecureSessionRefusedError(msg)


def require_shares(messages: Sequence[SharesMessage], keys: Sequence[Message], mine: Message) -> None:
    """Require that everybody shared among those whose keys this member was shown. Raises SecureSessionRefusedError."""
    _require_answers(messages, {message.body.keys for message in messages}, keys, mine)
    names = {message.sender for message in keys}
    for message in messages:
        recipients = [sealed.recipient for sealed in message.body.sealed]
        if sorted(recipients) != sorted(names - {message.sender}):
            msg = f"{message.sender} did not share with each other member once; begin another session"
            raise SecureSessionRefusedError(msg, sender=message.sender)


def require_masked(messages: Sequence[MaskedMessage], shares: Sequence[Message], mine: Message) -> None:
    """Require that everybody's masks are among those whose shares this member was shown. Raises the same."""
    _require_answers(messages, {message.body.shares for message in messages}, shares, mine)


def require_signed_set(messages: Sequence[SurvivorsMessage], mine: SurvivorsMessage) -> None:
    """Require that members of the one set that this member signed for signed for it too. Raises the same."""
    for message in messages:
        if message.body != mine.body or message.sender not in mine.body.organizations:
            msg = f"{message.sender} signed for other survivors than {mine.sender} did; nothing is revealed"
            raise SecureSessionRefusedError(msg, sender=message.sender)


def require_own(messages: Sequence[Message], mine: Message) -> None:
    """Require that what this member said is among what is shown. Raises the same."""
    if mine not in messages:
        msg = (
            f"what {mine.sender} said in the stage {mine.stage} is not among what is shown; it is left out or replaced"
        )
        raise SecureSessionRefusedError(msg, stage=mine.stage)


def _require_answers(messages: Sequence[Message], named: set[str], before: Sequence[Message], mine: Message) -> None:
    require_own(messages, mine)
    senders = {message.sender for message in messages}
    if named != {roster_digest(before)} or not senders <= {message.sender for message in before}:
        msg = f"the messages of the stage {mine.stage} do not all answer the ones that {mine.sender} was shown before"
        raise SecureSessionRefusedError(msg, stage=mine.stage)


def _require_accepted(session: SessionManifest, contribution: ContributionManifest, policy: Policy) -> None:
    accepted = policy.content_digest()
    if {session.policy.digest, contribution.policy.digest} != {accepted}:
        msg = f"session and contribution are not both under the policy that was accepted, {accepted[:12]}"
        raise SecureSessionRefusedError(msg)
    if session.recipe.merge_method not in policy.methods or len(session.members) < policy.minimum_cohort:
        msg = (
            f"the policy allows {', '.join(policy.methods)} of at least {policy.minimum_cohort} organizations, the "
            f"session merges {len(session.members)} by {session.recipe.merge_method}"
        )
        raise SecureSessionRefusedError(msg)
    if session.scales not in {None, policy.scales}:
        msg = "the session scales by another file than the one that the policy names"
        raise SecureSessionRefusedError(msg)


def _require_contributed(session: SessionManifest, contribution: ContributionManifest) -> None:
    """Require that each sum is of what was contributed, in its shape."""
    shapes = {weighted_name(tensor.name): tensor.shape for tensor in contribution.weights.tensors}
    taps = {tap.name: tap for tap in (contribution.statistics.taps if contribution.statistics else ())}
    for tap in session.taps:
        own = taps.get(tap.name)
        if own is None or own.width != tap.width or not set(tap.layers) <= set(own.layers):
            msg = f"the session sums tap {tap.name} as {tap.width} wide; the contribution has no such statistics"
            raise SecureSessionRefusedError(msg, tap=tap.name)
        shapes[precision_name(tap.name)] = (packed_length(tap.width),)
        for layer in tap.layers:
            stored = shapes.get(weighted_name(layer.weight), ())
            shapes[product_name(layer.weight)] = stored if layer.layout == "out_in" else stored[::-1]
    for parameter in contribution.fisher.parameters if contribution.fisher and session.elements else ():
        shapes[precision_name(parameter.name)] = shapes[product_name(parameter.name)] = parameter.shape
    for tensor in session.sums:
        if shapes.get(tensor.name) != tensor.shape:
            msg = f"the session sums {tensor.name} as {list(tensor.shape)}; the contribution holds no such thing"
            raise SecureSessionRefusedError(msg, tensor=tensor.name)


def _require_announced(session: SessionManifest, member: SessionMember, answer: Answer) -> None:
    """Require that the session sums this answer, announced under the same policy, and in its shapes."""
    if (member.answer, session.recipe.request) != (answer.content_digest(), answer.request):
        msg = f"the session does not sum what {member.organization} announced to {answer.request}"
        raise SecureSessionRefusedError(msg, request=answer.request)
    by = "calibration" if answer.histograms is not None else "head"
    if session.recipe.merge_method != by or answer.policy.digest != session.policy.digest:
        msg = f"what was announced to {answer.request} is merged by {by}, under the policy it was announced under"
        raise SecureSessionRefusedError(msg, request=answer.request)
    expected = summed_of_answers([answer], session.recipe, largest_weight=1.0)
    if [(each.name, each.shape) for each in session.sums] != [(each.name, each.shape) for each in expected]:
        msg = f"the session sums other tensors than {', '.join(each.name for each in expected)}, which were announced"
        raise SecureSessionRefusedError(msg)


def _require_same(session: SessionManifest, before: Completed) -> None:
    """Two sums that differ by a member, its weight or, by one method, α or another parameter, reveal that member."""
    weights = {member.organization: member.weight for member in session.members}
    same = [weights.get(name) == weight for name, weight in before.weights.items()]
    recipe = session.recipe
    if not all(same) or (recipe.merge_method == before.method and recipe.parameters != before.parameters):
        msg = (
            f"the session {before.session[:12]} before this one summed other members, weights or parameters: the two "
            "sums would reveal what only one of them holds"
        )
        raise SecureSessionRefusedError(msg, before=before.session)
