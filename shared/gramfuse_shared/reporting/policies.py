"""A policy in words, so that accepting one means something, and what differs between two of them."""

from typing import Final

from gramfuse_shared.contract.http_api import PolicyVersion
from gramfuse_shared.contract.policy import Policy, RequestKind
from gramfuse_shared.contract.privacy import COVERS, PrivacyBudget
from gramfuse_shared.contract.release_gate import ReleaseGate

_AGGREGATION: Final = {
    "plain": "The server sees each organization's weights and statistics (aggregation: plain); it never sees texts.",
    "secure": "The server sees sums over all members alone (aggregation: secure), and of each names, sizes, row "
    "counts, when it answers, and its scores where evaluations are asked. The sum is not hidden, nor is a member from "
    "all the others together, or from who knows theirs.",
}
_EMBEDDINGS: Final = {
    "base": "Embeddings, and output weights tied to them, never leave; the merged model has the base's.",
    "average": "UNSAFE: embeddings leave and are averaged. They reveal which tokens your text holds.",
}
_TAPS: Final = {
    "withhold": "Statistics of layers fed directly by embeddings never leave; those layers are averaged.",
    "send": "UNSAFE: statistics of layers fed by embeddings leave. They reveal your text's token counts.",
}
_HEADS: Final = {
    "private": "Task heads never leave; the merged model has the base's.",
    "shared": "Task heads leave and are merged. They say what your labels look like to your model.",
}
_MISSING_STATISTICS: Final = {
    "average": "A linear layer of which one organization lacks statistics is averaged.",
    "estimate": (
        "A linear layer of which you send no statistics may be merged by what changed in your weights. Where they "
        "moved in few directions, as adapters do, the merged model is close to your own in these."
    ),
}
_GIVEN_LABELS: Final = {
    "withhold": "Fisher information leaves only where its labels were drawn from your model, not with your texts' own.",
    "send": "Fisher information of your texts' own labels may leave. It tells how your model does on these texts.",
}
_AUDIT: Final = {
    "private": "How your audit came out, report and verdict, stays at home.",
    "shared": (
        "Your contribution says in words, to members and operators, how your audit came out: which attacks were run, "
        "with or without your texts, and what warned; no number. It is each organization's own word."
    ),
}
_COHORTS: Final = {
    "frozen": (
        "After a release you are merged only with the same organizations, weights, alpha and normalisation: two merges "
        "that differ by one member would reveal it."
    ),
    "open": "UNSAFE: any cohort may be merged at any time. Two merges that differ by one member reveal that member.",
}
_DOWNLOADS: Final = {
    "participants": "Every participant may download merged models.",
    "coordinator": "Only the coordinator may download merged models.",
}
_REQUESTS: Final = {
    "evaluate": "evaluate merged models on held-out texts; the metrics are shown to the project's members",
    "gram": (
        "measure Gram matrices as a merged model computes them, layer by layer (RegMean++); together with the first "
        "ones they tell more about your texts than these alone"
    ),
    "head": (
        "measure what a merged model's head reads, and its product with your own model's logits, from which the head "
        "is refit; the two tell the server your own head"
    ),
    "refit": (
        "measure what linear layers of a merged model read, and its product with what their outputs lack to your own "
        "model's, from which the layers are refit; the two tell the server your own layers"
    ),
    "calibration": (
        "count a merged model's scores by label, by which its biases are shifted; the server sees how often each label "
        "occurs in your labelled texts"
    ),
}
_SUMMED_REQUESTS: Final = {
    "head": (
        "measure what a merged model's head reads, and its product with your own model's logits, and to join a sum of "
        "everybody's, from which the merged model's head is refit, also where heads are private"
    ),
    "calibration": (
        "count a merged model's scores by label, and to join a sum of everybody's, by which its biases are shifted; "
        "counts of a label that one member alone counted are that member's in the sum"
    ),
}


def _request(kind: RequestKind, policy: Policy) -> str:
    summed = _SUMMED_REQUESTS.get(kind) if policy.aggregation == "secure" else None
    return summed or _REQUESTS[kind]


def describe_policy(policy: Policy) -> list[str]:
    """Tell a policy in sentences, one a rule."""
    return [
        _AGGREGATION[policy.aggregation],
        f"Models are merged by {' or '.join(policy.methods)}.",
        _EMBEDDINGS[policy.embeddings],
        _TAPS[policy.embedding_taps],
        _HEADS[policy.heads],
        *([] if policy.differential_privacy else [_enough_rows(policy)]),
        *([_GIVEN_LABELS[policy.given_labels]] if "fisher" in policy.methods else []),
        _MISSING_STATISTICS[policy.missing_statistics],
        _AUDIT[policy.audit],
        *([_private_by_noise(policy.differential_privacy)] if policy.differential_privacy else []),
        *([f"Statistics are scaled by the project's scales file, {policy.scales}."] if policy.scales else []),
        _least_cohort(policy),
        _COHORTS[policy.cohorts],
        _DOWNLOADS[policy.downloads],
        *_describe_requests(policy),
        *([_held_back(policy.release)] if policy.release else []),
    ]


def _least_cohort(policy: Policy) -> str:
    least = f"A merge takes at least {policy.minimum_cohort} organizations"
    if policy.minimum_cohort == 2:  # noqa: PLR2004 - each other
        return f"{least}: of two, each can subtract its own model from the merge, and has the other's."
    return f"{least}; all but one of a merge's members together can subtract theirs, and have the last one's."


def _enough_rows(policy: Policy) -> str:
    return (
        f"Statistics of a layer leave only from {policy.minimum_rows_per_dimension:g} distinct rows per dimension on; "
        f"below {policy.advised_rows_per_dimension:g} you are warned."
    )


def _private_by_noise(budget: PrivacyBudget) -> str:
    return (
        f"Statistics leave only with noise: {budget} for all that you send to this project, by your own ledger. "
        f"{COVERS}. Nobody can check anybody else's noise."
    )


def _held_back(gate: ReleaseGate) -> str:
    return (
        f"A merged model is released once {gate}; until then it is handed out for answering requests about it alone. "
        "Scores are each organization's own word."
    )


def _describe_requests(policy: Policy) -> list[str]:
    summed = (
        ["A merge is a sum that you are asked to join; who joins answers four stages more."]
        if policy.aggregation == "secure"
        else []
    )
    if not policy.requests and not summed:
        return ["Nothing is asked of you after your contribution."]
    sentences = summed + [
        f"Later you may be asked to {_request(kind, policy)}. Nothing is answered unseen." for kind in policy.requests
    ]
    if "evaluate" in policy.requests:
        sentences.append(f"An evaluation counts at least {policy.minimum_evaluation_examples} distinct examples.")
    if "calibration" in policy.requests:
        sentences.append(
            f"A calibration leaves out labels that fewer than {policy.minimum_evaluation_examples} distinct examples "
            "bear, or lack."
        )
    missed = "the request fails" if policy.missed_deadline == "fail" else "the others go on without you"
    return [*sentences, f"If you miss a request's deadline, {missed}."]


def policy_text(version: PolicyVersion) -> str:
    """Tell a version of a policy in words, with its digest."""
    rules = "\n".join(f"  - {sentence}" for sentence in describe_policy(version.policy))
    return f"Policy version {version.version}, digest {version.digest}\n{rules}"


def differences_text(before: PolicyVersion, now: Policy) -> str:
    """Write what differs between two versions of a policy, for a person who is asked about the later one."""
    told = policy_differences(before.policy, now) or ["nothing: the rules are the same"]
    return "\n".join([f"What differs from version {before.version}:", *(f"  {line}" for line in told)])


def policy_differences(before: Policy, now: Policy) -> list[str]:
    """Tell what changed: sentences that no longer hold, begun with -, and new ones, with +; none where nothing did.

    A field that no sentence tells, as patterns of parameters' names, is told by its values.
    """
    old, new = describe_policy(before), describe_policy(now)
    gone = [f"- {sentence}" for sentence in old if sentence not in new]
    come = [f"+ {sentence}" for sentence in new if sentence not in old]
    untold = []
    for name in Policy.model_fields:
        was, is_now = getattr(before, name), getattr(now, name)
        if was != is_now and describe_policy(before.model_copy(update={name: is_now})) == old:
            untold.append(f"* {name}: {written(was)} → {written(is_now)}")
    return gone + come + untold


def written(value: object) -> str:
    """Write a field's value as people do."""
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
