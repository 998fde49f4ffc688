"""Runs the attacks of this package on an organization's own statistics, model and texts, before anybody else can."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from gramfuse.auditing.report import Effort, MembershipTold, NotRun, TokensFound, VocabularyTold
from gramfuse.contributing.draft import Draft
from gramfuse.measuring.batching import TokenizedText, tokenize
from gramfuse.measuring.forwarding import open_to_measure
from gramfuse.measuring.inference import OpenModel
from gramfuse.measuring.statistics_io import read_statistics
from gramfuse.measuring.texts import Text
from gramfuse.privacy.attacking_taps import MOST_TEXTS, find_tokens_at, tell_members
from gramfuse.privacy.attacking_weights import find_vocabulary
from gramfuse.privacy.token_counts import POSITIONS
from gramfuse_shared.contract.manifest import BaseManifest, TapInfo
from gramfuse_shared.errors import ConfigurationError, GramfuseError
from gramfuse_shared.fusion import packing

MOST_TAPS: Final = 6

MOST_FIT: Final = 10**11
"""Vocabulary × width² up to which a bounded audit fits token counts; MiniLM has 4.5e9, BERT-base 1.8e10."""

MOST_PARAMETERS: Final = 5 * 10**8
"""Up to which a bounded audit runs the model over texts on a CPU; on a GPU fifty times as many."""

_GPU_FACTOR: Final = 50
_TEXTS: Final = "add --texts FILE, the texts that were measured, all of them"
_ALL: Final = "add --attacks all"

OnStep = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Known:
    """What is at hand for attacks beside the draft: texts that were measured (None: not given), public ones, where the
    base lies and what it is, and where the model is run.
    """

    base: BaseManifest
    base_folder: Path | None = None
    texts: Sequence[Text] | None = None
    public: Sequence[Text] = ()
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Found:
    """What was found, and what was not attacked and why."""

    tokens: tuple[TokensFound, ...] = ()
    membership: tuple[MembershipTold, ...] = ()
    vocabulary: tuple[VocabularyTold, ...] = ()
    not_run: tuple[NotRun, ...] = ()


def attack(model: Path, draft: Draft, known: Known, *, effort: Effort = "all", on_step: OnStep) -> Found:
    """Attack what was measured. Without texts: the fit of token counts and the trained rows of embeddings alone.

    Args:
        model: the folder of the model that was measured.
        draft: the contribution that would be made of it.
        known: what is at hand.
        effort: what may be left out because it takes long; it is told.
        on_step: told the share that is done, and what comes.

    Raises:
        ConfigurationError: the statistics were not measured on these texts.
        GramfuseError: see `read_statistics`.
    """
    not_run: list[NotRun] = []
    opened, taps = None, _attackable(draft, known, effort, not_run)
    if taps or (known.texts is not None and effort != "quick" and _fits(draft, known)):
        on_step(0.1, "loading the model")
        opened = _open(model, known, not_run)
    mine, others = _tokenized(opened, known)
    held = None if mine is None else Counter(token for text in mine for token in set(text.ids))
    tokens: list[TokensFound] = []
    membership: list[MembershipTold] = []
    if opened is not None and taps and draft.statistics is not None:
        leaving = {tap.info.name for tap in draft.plan.leaving_taps}
        grams = _grams(draft.statistics.path, taps)
        fed = [(tap, gram) for tap, gram in grams if tap.source != "mixed"]
        on_step(0.2, "fitting token counts")
        tokens = list(find_tokens_at(opened, fed, leaving, held, _usual_length(mine), not_run))
        if mine is not None:
            on_step(0.5, "telling texts apart")
            membership = list(tell_members(opened, grams, leaving, mine, others, not_run))
    on_step(0.9, "comparing embeddings")
    rows = tuple(_vocabulary(draft, known, held, not_run))
    on_step(1.0, "done")
    return Found(tuple(tokens), tuple(membership), rows, (*not_run, *_never_attacked(draft)))


def _attackable(draft: Draft, known: Known, effort: Effort, not_run: list[NotRun]) -> frozenset[str]:
    """Name the taps to attack, by what is known and how much may be spent; say of the others why not."""
    if draft.statistics is None:
        return frozenset()
    metadata = draft.statistics.metadata
    if metadata.collector.weighting != "none" or metadata.collector.noised is not None:
        why = "their rows are weighted, or noise was added to them; no attack here is made for that"
        not_run.append(NotRun(what="statistics", because=why))
        return frozenset()
    if known.texts is None:
        not_run.append(NotRun(what="membership", because="it needs the texts that were measured", remedy=_TEXTS))
    leaving = {tap.info.name for tap in draft.plan.leaving_taps}
    in_scope = [tap for tap in metadata.taps if effort == "all" or tap.name in leaving]
    fed = [tap for tap in in_scope if tap.source != "mixed"][:1]
    if not fed and any(tap.source != "mixed" for tap in metadata.taps):
        why = "the taps that embeddings feed stay at home"
        not_run.append(NotRun(what="token counts", because=why, remedy=_ALL))
    mixed = [tap for tap in in_scope if tap.source == "mixed"] if known.texts is not None else []
    if effort == "quick":
        if fed or mixed:
            not_run.append(NotRun(what="token counts, membership", because="only quick checks were asked", remedy=_ALL))
        return frozenset()
    if effort == "bounded":
        vocabulary = known.base.vocabulary_size or 0
        if fed and (vocabulary * fed[0].width ** 2 > MOST_FIT or not _fits(draft, known)):
            why = "the fit takes long for so large a vocabulary, or model, and was left out"
            not_run.append(NotRun(what="token counts", because=why, remedy=_ALL))
            fed = []
        if mixed and not _fits(draft, known):
            why = "running so large a model over texts takes long, and was left out"
            not_run.append(NotRun(what="membership", because=why, remedy=_ALL))
            mixed = []
    step = max(1, -(-len(mixed) // MOST_TAPS))
    return frozenset(tap.name for tap in (*fed, *mixed[::step], *mixed[-1:]))


def _fits(draft: Draft, known: Known) -> bool:
    """Tell whether the model is small enough to be run within a push."""
    infos = {info.name: info for info in known.base.tensors}
    infos |= {tensor.info.name: tensor.info for tensor in draft.model.tensors.values()}
    on_gpu = known.device.startswith("cuda") or (known.device == "auto" and torch.cuda.is_available())
    parameters = sum(math.prod(info.shape) for info in infos.values())
    return parameters <= MOST_PARAMETERS * (_GPU_FACTOR if on_gpu else 1)


def _open(model: Path, known: Known, not_run: list[NotRun]) -> OpenModel | None:
    try:
        return open_to_measure(model, known.base_folder, device=known.device)[0]
    except (GramfuseError, OSError, ValueError, RuntimeError) as error:  # what transformers raises of strange folders
        why = f"the model cannot be loaded here ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        not_run.append(NotRun(what="token counts, membership", because=why))
        return None


def _tokenized(opened: OpenModel | None, known: Known) -> tuple[list[TokenizedText] | None, list[TokenizedText]]:
    if opened is None or known.texts is None:
        return None, []
    limit = opened.max_tokens(None)
    mine = tokenize(opened.tokenizer, known.texts, limit, generates=opened.generates)
    others = tokenize(opened.tokenizer, list(known.public)[: 2 * MOST_TEXTS], limit, generates=opened.generates)
    held = [text for text in mine if text.ids]
    if not held:
        msg = "the texts that were given hold no token"
        raise ConfigurationError(msg)
    return held, [text for text in others if text.ids]


def _usual_length(mine: Sequence[TokenizedText] | None) -> int:
    """About how long most texts are, which an attacker guesses."""
    return POSITIONS if mine is None else min(POSITIONS, sorted(len(text.ids) for text in mine)[len(mine) * 9 // 10])


def _grams(path: Path, chosen: frozenset[str]) -> list[tuple[TapInfo, torch.Tensor]]:
    metadata, grams = read_statistics(path)
    pairs = zip(metadata.taps, grams, strict=True)
    return [(tap, packing.unpack(gram, tap.width)) for tap, gram in pairs if tap.name in chosen]


def _vocabulary(
    draft: Draft, known: Known, held: Counter[int] | None, not_run: list[NotRun]
) -> Iterator[VocabularyTold]:
    if known.base_folder is None:
        why = "where the base's folder lies is not known"
        not_run.append(NotRun(what="embeddings", because=why, remedy="add --base DIR"))
    elif draft.model.encoding != "stored":
        why = "the model is stored as rounded differences, which this attack is not made for"
        not_run.append(NotRun(what="embeddings", because=why))
    elif draft.model.left_out == "unknown":
        yield from find_vocabulary(draft, known.base_folder, held, known.base.vocabulary_size)


def _never_attacked(draft: Draft) -> tuple[NotRun, ...]:
    """Name what leaves and no audit attacks."""
    found = [NotRun(what="fine-tuned weights", because="what they memorize of texts is not attacked here")]
    if draft.plan.leaving_fisher:
        why = "what it tells of texts and labels is not attacked here; the threat model has figures of small samples"
        found.append(NotRun(what="Fisher information", because=why))
    if draft.plan.left_out == "base":
        why = "that only these layers were tuned, and A and B up to a change of basis, is known to who has the base"
        found.append(NotRun(what="an adapter's layers", because=why))
    return tuple(found)
