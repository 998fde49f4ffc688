"""Decide what of a model and its statistics may leave, and say why the rest stays. Pure: headers in, a plan out."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from gramfuse.contributing.plan import ContributionPlan, FisherDecision, TapDecision, TensorDecision
from gramfuse.naming import few
from gramfuse_shared.contract.fisher_file import FisherMetadata
from gramfuse_shared.contract.labels import require_labels
from gramfuse_shared.contract.manifest import (
    BaseManifest,
    FisherParameter,
    LayerInfo,
    LeftOut,
    TapInfo,
    TensorInfo,
    TrainedLabels,
)
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.privacy import Noised
from gramfuse_shared.contract.rules import CONTRIBUTED_DTYPES, why_fisher_stays, why_tap_stays, why_tensor_stays
from gramfuse_shared.contract.statistics_file import INT16_MOST_ALPHA, StatisticsMetadata
from gramfuse_shared.errors import ArchitectureMismatchError, PolicyViolationError


def plan_contribution(
    tensors: Iterable[TensorInfo],
    statistics: StatisticsMetadata | None,
    base: BaseManifest,
    policy: Policy,
    *,
    differs_from: str | None = None,
    changed: Collection[str] | None = None,
    left_out: LeftOut = "unknown",
    outdated: bool = False,
    labels: TrainedLabels | None = None,
    untouched_labels: Collection[int] = (),
    fisher: FisherMetadata | None = None,
) -> ContributionPlan:
    """Decide what leaves: what the policy allows, the base model knows and the merge can use; nothing else.

    Args:
        tensors: the tuned checkpoint's tensors.
        statistics: metadata of the statistics file, or None to contribute weights alone.
        base: the project's base model.
        policy: the project's policy.
        differs_from: where the tensors are differences from a base model, its fingerprint.
        changed: names of the tensors whose values differ from the base's, where these could be compared.
        left_out: "base" where the model's other tensors are the base's own, as an adapter's are.
        outdated: the model was written after its statistics or its Fisher information.
        labels: the label ids that were trained; None: all, and nothing is said of them.
        untouched_labels: label ids whose rows of the head have the base's values still.
        fisher: metadata of the file of Fisher information, where there is one.

    Raises:
        ArchitectureMismatchError: names, shapes, dtypes or statistics belong to another model.
        PolicyViolationError: nothing may leave, or not which labels were trained.
    """
    _require_same_base("the differences are those from", differs_from, base)
    expected = {tensor.name: tensor for tensor in base.tensors}
    weights = tuple(
        _decide_weight(tensor, expected.get(tensor.name), base, policy)
        for tensor in sorted(tensors, key=lambda tensor: tensor.name)
    )
    leaving = {weight.info.name: weight.info for weight in weights if weight.stays_because is None}
    if not leaving:
        msg = "the policy lets no tensor of this model leave, so there is nothing to contribute"
        raise PolicyViolationError(msg)
    if labels is not None:
        require_labels(labels, leaving.keys(), base, policy)
    taps: tuple[TapDecision, ...] = ()
    noised = None if statistics is None else statistics.collector.noised
    if statistics is not None:
        _require_same_base("the statistics were measured for", statistics.base, base)
        _require_layers_of_model(statistics, expected.keys() | {weight.info.name for weight in weights})
        ordered = sorted(statistics.taps, key=lambda tap: tap.name)
        decisions = (_decide_tap(tap, leaving, expected, policy, noised) for tap in ordered)
        taps = tuple(replace(decision, encoding=statistics.encoding) for decision in decisions)
    missing = sorted(expected.keys() - {weight.info.name for weight in weights})
    unknown = missing if left_out == "unknown" else []
    told = {"measured": statistics is not None, "noised": noised is not None}
    warnings = list(_warnings(weights, taps, unknown, policy, changed=changed, **told))
    decided = () if fisher is None else _decide_fisher(fisher, leaving, expected, base, policy)
    warnings += _fisher_warnings(decided, policy, given=fisher is not None and fisher.collector.labels == "given")
    if statistics is not None and statistics.encoding == "int16" and any(tap.stays_because is None for tap in taps):
        warnings.append(
            f"the statistics are rounded to int16: no merge with alpha above {INT16_MOST_ALPHA:g} takes them"
        )
    if differs_from is not None:
        warnings.append("the weights leave as differences from the base, rounded to bfloat16")
    if outdated:
        warnings.append("the model was written after its statistics: if it was trained on since, measure it again")
    untouched = sorted(set(untouched_labels) if labels is None else set(untouched_labels).intersection(labels.trained))
    if untouched:
        warnings.append(_untouched_told(untouched))
    others = len(missing) if left_out == "base" else 0
    return ContributionPlan(
        weights,
        taps,
        tuple(warnings),
        labels,
        left_out=left_out,
        untouched=others,
        fisher=decided,
        noised=noised,
        summed=policy.aggregation == "secure",
        shares_audit=policy.audit == "shared",
    )


def embedding_names(tensors: Iterable[TensorInfo], base: BaseManifest, policy: Policy) -> tuple[str, ...]:
    """Name the tensors that would be replaced by the base's, and are worth comparing with it."""
    if policy.embeddings != "base":
        return ()
    known = {tensor.name: tensor for tensor in base.tensors}
    return tuple(
        tensor.name
        for tensor in tensors
        if policy.role_of(tensor.name, tensor.shape, base.vocabulary_size) == "embedding"
        and known.get(tensor.name) == tensor
    )


def _decide_weight(
    tensor: TensorInfo, expected: TensorInfo | None, base: BaseManifest, policy: Policy
) -> TensorDecision:
    role = policy.role_of(tensor.name, tensor.shape, base.vocabulary_size)
    reason = why_tensor_stays(tensor, base, policy)
    if reason is not None:
        return TensorDecision(tensor, role, reason)
    if tensor.dtype not in CONTRIBUTED_DTYPES:
        return TensorDecision(tensor, role, f"{tensor.dtype} values are not merged, the base's are used")
    if expected is None:
        msg = (
            f"{tensor.name} is not in the base model: fine-tune the project's own base "
            "(`gramfuse project base pull`) with the same task class"
        )
        raise ArchitectureMismatchError(msg, tensor=tensor.name)
    if tensor.shape != expected.shape:
        msg = (
            f"{tensor.name} is {list(tensor.shape)}, the project's base has {list(expected.shape)}: fine-tune the "
            "project's own base (`gramfuse project base pull`), with as many labels and tokens as it has"
        )
        raise ArchitectureMismatchError(msg, tensor=tensor.name)
    return TensorDecision(tensor, role, None)


def _decide_tap(
    tap: TapInfo,
    leaving: Mapping[str, TensorInfo],
    expected: Mapping[str, TensorInfo],
    policy: Policy,
    noised: Noised | None,
) -> TapDecision:
    for layer in tap.layers:
        _require_layer_reads_tap(layer, tap, expected)
    layers = tuple(layer for layer in tap.layers if layer.weight in leaving)
    sent = tap.model_copy(update={"layers": layers}) if layers else tap
    if "regmean" not in policy.methods:
        return TapDecision(sent, "no method of the policy uses statistics")
    return TapDecision(sent, why_tap_stays(sent, leaving.keys(), policy, noised=noised))


def _decide_fisher(
    fisher: FisherMetadata,
    leaving: Mapping[str, TensorInfo],
    expected: Mapping[str, TensorInfo],
    base: BaseManifest,
    policy: Policy,
) -> tuple[FisherDecision, ...]:
    _require_same_base("the Fisher information was measured for", fisher.base, base)
    reasons = why_fisher_stays(fisher, leaving.keys(), base, policy)
    for parameter in fisher.parameters:
        if reasons[parameter.name] is None:  # a private head may be of another task
            _require_shape(parameter, expected.get(parameter.name))
    ordered = sorted(fisher.parameters, key=lambda parameter: parameter.name)
    return tuple(FisherDecision(parameter, reasons[parameter.name]) for parameter in ordered)


def _require_shape(parameter: FisherParameter, expected: TensorInfo | None) -> None:
    if expected is not None and parameter.shape != expected.shape:
        msg = (
            f"the Fisher information of {parameter.name} is {list(parameter.shape)}, the project's base has "
            f"{list(expected.shape)}"
        )
        raise ArchitectureMismatchError(msg, tensor=parameter.name)


def _require_same_base(what: str, noted: str | None, base: BaseManifest) -> None:
    fingerprint = base.content_digest()
    if noted is not None and noted != fingerprint:
        msg = (
            f"{what} the base model {noted[:12]}…, the project's is {fingerprint[:12]}…: take the model that was tuned "
            "from this project's base"
        )
        raise ArchitectureMismatchError(msg)


def _require_layers_of_model(statistics: StatisticsMetadata, known: Collection[str]) -> None:
    """Require that most of what was measured is a layer of this model; names of heads agree between architectures."""
    layers = [layer.weight for tap in statistics.taps for layer in tap.layers]
    unknown = [layer for layer in layers if layer not in known]
    if 2 * len(unknown) > len(layers):
        msg = (
            f"the statistics are of another model: {len(unknown)} of their {len(layers)} layers are not in this one, "
            f"nor in the project's base, as {unknown[0]}; give those that were measured on this model"
        )
        raise ArchitectureMismatchError(msg, tensor=unknown[0])


def _require_layer_reads_tap(layer: LayerInfo, tap: TapInfo, expected: Mapping[str, TensorInfo]) -> None:
    weight = expected.get(layer.weight)
    if weight is None:
        return  # a head or a tied weight that the base does not store: it stays at home in any case
    inputs = weight.shape[-1] if layer.layout == "out_in" else weight.shape[0]
    if len(weight.shape) != 2 or inputs != tap.width:  # noqa: PLR2004 - a matrix
        msg = f"tap {tap.name} has width {tap.width}, but {layer.weight} is {list(weight.shape)} in the base model"
        raise ArchitectureMismatchError(msg, tap=tap.name, tensor=layer.weight)


def _warnings(
    weights: Sequence[TensorDecision],
    taps: Sequence[TapDecision],
    missing: Sequence[str],
    policy: Policy,
    *,
    changed: Collection[str] | None,
    measured: bool,
    noised: bool,
) -> Iterator[str]:
    yield from _embedding_warnings(weights, policy, changed)
    if missing:
        yield f"not in your model, so the base's values stand: {few(missing, 'tensor')}"
    if "regmean" in policy.methods:
        yield from _statistics_warnings(taps, measured=measured)
    advised = [
        tap.info.name
        for tap in taps
        if tap.stays_because is None and tap.info.distinct_rows < policy.advised_rows_per_dimension * tap.info.width
    ]
    if advised and not noised:
        yield (
            f"fewer than {policy.advised_rows_per_dimension:g} distinct rows per dimension at "
            f"{few(advised, 'tap')}: few rows reveal more of each text; measure more examples"
        )
    if not noised and any(tap.stays_because is None and tap.info.source != "mixed" for tap in taps):
        yield "taps fed by embeddings leave: they reveal the token counts of your text (policy: embedding_taps = send)"


def _statistics_warnings(taps: Sequence[TapDecision], *, measured: bool) -> Iterator[str]:
    needed = "a layer is merged by RegMean only where every contribution brings the statistics of its inputs"
    if not measured:
        yield f"no statistics are given: {needed}, so with yours every layer is averaged, for everybody"
        return
    if all(tap.stays_because is not None for tap in taps):
        yield f"none of your statistics leaves: {needed}, so with yours every layer is averaged, for everybody"


def _fisher_warnings(fisher: Sequence[FisherDecision], policy: Policy, *, given: bool) -> Iterator[str]:
    leaving = [decision for decision in fisher if decision.stays_because is None]
    if "fisher" in policy.methods and not leaving:
        yield (
            "no Fisher information of yours leaves: fisher weighs a tensor only where every contribution brings it, so "
            "with yours it can merge none, for everybody"
        )
    if leaving and given:
        yield (
            "Fisher information of your texts' own labels leaves: it tells how your model does on these texts (policy: "
            "given_labels = send)"
        )
    if any(decision.info.source != "mixed" for decision in leaving):
        yield (
            "Fisher information of layers fed by embeddings leaves: it hangs on the tokens of your text (policy: "
            "embedding_taps = send)"
        )


def _untouched_told(labels: Sequence[int]) -> str:
    shown = ", ".join(map(str, labels[:10])) + (", …" if len(labels) > 10 else "")  # noqa: PLR2004 - enough to see
    return (
        f"the head's rows of label ids {shown} have the base's values still, and pull everybody's toward these: if you "
        "did not train them, name those that you did (--labels)"
    )


def _embedding_warnings(
    weights: Sequence[TensorDecision], policy: Policy, changed: Collection[str] | None
) -> Iterator[str]:
    embeddings = [weight.info.name for weight in weights if weight.role == "embedding"]
    if not embeddings:
        return
    if policy.embeddings == "average":
        yield "embeddings leave: they reveal which tokens your text holds (policy: embeddings = average)"
    elif changed is None:
        yield (
            "whether your embeddings were tuned is not known here: if they were, what they learned is lost, because "
            "the base's are used; give the base's folder to compare"
        )
    elif lost := [name for name in embeddings if name in changed]:
        yield (
            f"you tuned {few(lost, 'embedding tensor')}, and what they learned is lost: the merged model has the "
            "base's, to which your other layers were not fitted. Freeze the embeddings while fine-tuning"
        )
