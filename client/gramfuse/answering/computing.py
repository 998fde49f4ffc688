"""Compute answers from local data: runs models over texts. Nothing here opens a connection."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import nn

from gramfuse.adapters.adapter import require_base_folder
from gramfuse.adapters.adding import add_adapter
from gramfuse.answering.configuration import LocalTexts, Participation
from gramfuse.answering.kept import HISTOGRAMS_FILE_NAME
from gramfuse.answering.prepared import (
    KeptStatistics,
    PreparedAnswer,
    keep_head_statistics,
    keep_leaving_statistics,
    keep_refit_statistics,
)
from gramfuse.contributing.loading import is_adapter
from gramfuse.contributing.plan import STATISTICS_FILE_NAME
from gramfuse.evaluating.calibration import collect_calibration
from gramfuse.evaluating.evaluation import Evaluation, evaluate
from gramfuse.evaluating.labelled_texts import LabelFields, read_labelled_texts, read_texts_of_task
from gramfuse.evaluating.tasks import task_of
from gramfuse.measuring.forwarding import collect
from gramfuse.measuring.head import collect_head
from gramfuse.measuring.inference import OpenModel, Progress, open_model
from gramfuse.measuring.own_blocks import put_own_blocks
from gramfuse.measuring.refit import collect_refit
from gramfuse.measuring.texts import Fields, Text, read_texts
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.answer_rules import require_enough_examples
from gramfuse_shared.contract.manifest import BaseManifest, PolicyReference
from gramfuse_shared.contract.metrics import in_few_digits
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.refits import WHY_NOT_REFIT, layers_that_may_be_refit, require_histograms_may_leave
from gramfuse_shared.contract.requests import (
    Answer,
    AskedKind,
    ModelScore,
    RequestInfo,
    is_announced,
    require_request_allowed,
)
from gramfuse_shared.errors import ConfigurationError, PolicyViolationError

_MEASURED: Final = "measured.safetensors"


@dataclass(frozen=True, slots=True)
class Assignment:
    """A request, and what it takes to answer it for one organization.

    Attributes:
        request: what is asked.
        organization: for whom.
        policy: the rules that hold now, which the organization accepted.
        policy_version: their number.
        base: the project's base model.
        models: folders of the merged models that the request is about.
        folder: where files of the answer are written.
        base_folder: where the base model lies, if that is known; an adapter is added to it.
    """

    request: RequestInfo
    organization: str
    policy: Policy
    policy_version: int
    base: BaseManifest
    models: Mapping[str, Path]
    folder: Path
    base_folder: Path | None = None


def compute(
    assignment: Assignment,
    participation: Participation,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> PreparedAnswer:
    """Compute the answer to a request.

    Raises:
        ConfigurationError: there is no local data for its kind.
        PolicyViolationError: of a head nothing may leave, of no layer it may, whoever is asked, or the kind is not
            allowed.
        GramfuseError: see `evaluate`, `collect`, `collect_head`, `collect_refit` and `collect_calibration`.
    """
    require_request_allowed(assignment.request.kind, assignment.policy)
    run: dict[str, Any] = {
        "batch_size": participation.batch_size,
        "max_length": participation.max_length,
        "device": participation.device,
        "on_progress": on_progress,
        "is_cancelled": is_cancelled,
    }
    answer = _ANSWERS.get(assignment.request.kind)
    if answer is None:
        msg = f"this version of gramfuse does not know requests of the kind {assignment.request.kind}; upgrade it"
        raise ConfigurationError(msg)
    return answer(assignment, participation, run)


def _evaluate(assignment: Assignment, participation: Participation, run: Mapping[str, Any]) -> PreparedAnswer:
    held_out = _required(participation.held_out, "held_out")
    models: list[tuple[str | None, Path | OpenModel]] = list(assignment.models.items())
    if participation.model is not None:
        models.append((None, _own_model(participation.model, assignment, participation.device)))
    elif assignment.policy.release is not None:
        assignment.policy.release.require_readable({})  # an own model that is asked for is missed before the work
    scores = []
    for name, model in models:
        found = _evaluated(model, held_out, assignment.policy, run)
        scores.append(ModelScore(model=name, examples=found.distinct_examples, metrics=in_few_digits(found.metrics)))
    return PreparedAnswer(_document(assignment, scores=tuple(scores)))


def _evaluated(model: Path | OpenModel, held_out: LocalTexts, policy: Policy, run: Mapping[str, Any]) -> Evaluation:
    loaded, tokenizer = (model, None) if isinstance(model, Path) else (model.model, model.tokenizer)
    texts, labels = read_texts_of_task(
        task_of(loaded),
        held_out.texts,
        _fields(held_out),
        _labels(held_out),
        split=held_out.split,
        limit=held_out.examples,
    )
    # before the work; behind it once more, since of texts that a tokenizer reads as the same one counts
    require_enough_examples(len({tuple(text) if isinstance(text, list) else text for text in texts}), policy)
    found = evaluate(loaded, texts, labels, tokenizer=tokenizer, **run)
    require_enough_examples(found.distinct_examples, policy)
    return found


def _measure(assignment: Assignment, participation: Participation, run: Mapping[str, Any]) -> PreparedAnswer:
    texts = _read(_required(participation.measured, "measured"))
    (folder,) = assignment.models.values()
    everything, leaving = assignment.folder / _MEASURED, assignment.folder / STATISTICS_FILE_NAME
    settings = {
        **run,
        "base": assignment.base.content_digest(),
        "weighting": assignment.request.weighting,
        "layers": assignment.request.layers or None,
        "seed": participation.seed,
    }
    if assignment.request.block == "own":
        opened = _with_own_blocks(folder, assignment, participation)
        collect(opened.model, texts, tokenizer=opened.tokenizer, **settings).save(everything)
    else:
        collect(folder, texts, **settings).save(everything)
    kept = keep_leaving_statistics(everything, leaving, assignment.request.layers, assignment.policy, assignment.base)
    everything.unlink()
    return _answer_of_layers(assignment, kept, leaving)


def _with_own_blocks(folder: Path, assignment: Assignment, participation: Participation) -> OpenModel:
    if participation.model is None:
        msg = "the configuration names no model, whose blocks this request would be answered with"
        raise ConfigurationError(msg)
    opened = open_model(folder, device=participation.device)
    put_own_blocks(opened.model, participation.model, assignment.request.layers, base_folder=assignment.base_folder)
    return opened


def _measure_head(assignment: Assignment, participation: Participation, run: Mapping[str, Any]) -> PreparedAnswer:
    texts = _read(_required(participation.measured, "measured"))
    own = _model_to_refit_to(assignment, participation, "logits the head")
    (folder,) = assignment.models.values()
    found = collect_head(folder, own, texts, base=assignment.base.content_digest(), **run)
    leaving = assignment.folder / STATISTICS_FILE_NAME
    section = keep_head_statistics(found, leaving, assignment.policy, assignment.base)
    announced = is_announced(assignment.request.kind, assignment.policy)
    return PreparedAnswer(_document(assignment, statistics=section, announced=announced), leaving)


def _measure_layers(assignment: Assignment, participation: Participation, run: Mapping[str, Any]) -> PreparedAnswer:
    texts = _read(_required(participation.measured, "measured"))
    own = _model_to_refit_to(assignment, participation, "layers those of the merged model")
    (folder,) = assignment.models.values()
    # what may not leave is not measured: products are as large as the model
    sendable = layers_that_may_be_refit(assignment.base, assignment.policy)
    layers = sendable.intersection(assignment.request.layers) if assignment.request.layers else sendable
    if not layers:
        msg = f"nothing that is asked for may leave: of no layer it may be told what it is refit from: {WHY_NOT_REFIT}"
        raise PolicyViolationError(msg)
    found = collect_refit(folder, own, texts, layers=layers, base=assignment.base.content_digest(), **run)
    leaving = assignment.folder / STATISTICS_FILE_NAME
    kept = keep_refit_statistics(found, leaving, assignment.policy, assignment.base)
    refused = tuple((layer, WHY_NOT_REFIT) for layer in assignment.request.layers if layer not in sendable)
    return _answer_of_layers(assignment, replace(kept, stays=kept.stays + refused), leaving)


def _answer_of_layers(assignment: Assignment, kept: KeptStatistics, file: Path) -> PreparedAnswer:
    document = _document(assignment, statistics=kept.section, withheld=kept.withheld)
    return PreparedAnswer(document, None if kept.section is None else file, kept.stays)


def _model_to_refit_to(assignment: Assignment, participation: Participation, whose: str) -> Path | nn.Module:
    if participation.model is None:
        msg = f"the configuration names no model of your own (model), to whose {whose} would be refit"
        raise ConfigurationError(msg)
    own = _own_model(participation.model, assignment, participation.device)
    return own if isinstance(own, Path) else own.model


def _own_model(model: Path, assignment: Assignment, device: str) -> Path | OpenModel:
    """Return the organization's own model: its folder, or where that is an adapter's, the base with the adapter."""
    if not is_adapter(model):
        return model
    base_folder = require_base_folder(model, assignment.base_folder)
    opened = open_model(base_folder, device=device)
    add_adapter(opened.model, model, base_folder)
    return opened


def _calibrate(assignment: Assignment, participation: Participation, run: Mapping[str, Any]) -> PreparedAnswer:
    found = _required(participation.calibrated or participation.held_out, "calibrated or held_out")
    labelled = read_labelled_texts(found.texts, _fields(found), _labels(found), split=found.split, limit=found.examples)
    (folder,) = assignment.models.values()
    minimum = assignment.policy.minimum_evaluation_examples
    counted = collect_calibration(folder, labelled.texts, labelled.labels, minimum_examples=minimum, **run)
    require_histograms_may_leave(counted, assignment.policy)
    if not is_announced(assignment.request.kind, assignment.policy):
        return PreparedAnswer(_document(assignment, histograms=counted))
    kept = assignment.folder / HISTOGRAMS_FILE_NAME
    with written_whole(kept) as stream:
        stream.write(counted.canonical())
    uncounted = counted.model_copy(update={"classes": ()})
    return PreparedAnswer(_document(assignment, histograms=uncounted, announced=True), kept)


_ANSWERS: Final[Mapping[AskedKind, Callable[[Assignment, Participation, Mapping[str, Any]], PreparedAnswer]]] = {
    "evaluate": _evaluate,
    "gram": _measure,
    "head": _measure_head,
    "refit": _measure_layers,
    "calibration": _calibrate,
}


def _document(assignment: Assignment, **parts: Any) -> Answer:  # noqa: ANN401 - the answer's own fields
    policy = PolicyReference(version=assignment.policy_version, digest=assignment.policy.content_digest())
    return Answer(
        project=assignment.request.project,
        request=assignment.request.id,
        organization=assignment.organization,
        policy=policy,
        **parts,
    )


def _read(found: LocalTexts) -> list[Text]:
    return read_texts(found.texts, _fields(found), split=found.split, limit=found.examples)


def _labels(found: LocalTexts) -> LabelFields:
    return LabelFields(label=found.label_field, tags=found.tags)


def _fields(texts: LocalTexts) -> Fields:
    return Fields(text=texts.text_field, pair=texts.pair_field, tokens=texts.tokens)


def _required(texts: LocalTexts | None, key: str) -> LocalTexts:
    if texts is None:
        msg = f"the configuration names no {key} texts, from which this request would be answered"
        raise ConfigurationError(msg)
    return texts
