"""Attacks on taps: which tokens a tap that embeddings feed names, and which texts any tap tells apart."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch

from gramfuse.auditing.report import MembershipTold, NotRun, TokensFound
from gramfuse.measuring.batching import TokenizedText
from gramfuse.measuring.inference import OpenModel
from gramfuse.privacy.counting_rows import RowsRead, compare_rows
from gramfuse.privacy.membership import LeverageMeter, TextLeverage, auc, membership_auc
from gramfuse.privacy.reading_rows import rows_of_texts
from gramfuse.privacy.token_counts import find_tokens, token_dictionary
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError

MOST_TEXTS: Final = 300
"""Texts that are told apart; so many give an AUC to about .02."""

COHORTS: Final = (3, 5, 10, 20)
ALONE: Final = 0.5
"""A row's leverage from which on it carries most of some direction by itself."""

ONCE: Final = 1.5
"""A token that was found less often counts as found about once."""

_INSIDE: Final = 1.05

Grams = Sequence[tuple[TapInfo, torch.Tensor]]


def find_tokens_at(
    opened: OpenModel,
    grams: Grams,
    leaving: set[str],
    held: Counter[int] | None,
    length: int,
    not_run: list[NotRun],
) -> Iterator[TokensFound]:
    """Fit token counts to Gram matrices [d, d] of taps that embeddings feed. What positions and norms make of a token
    is in the fit: rows are read off the model itself.

    `held` has for each token of the private texts how many of them hold it; None where they are not known.
    """
    vocabulary = _vocabulary_size(opened)
    for tap, gram in grams:
        if vocabulary is None:
            not_run.append(NotRun(what=f"token counts at {tap.name}", because="the model has no embeddings of tokens"))
            continue
        try:
            found = find_tokens(gram, token_dictionary(opened, tap.layers[0].weight, vocabulary, length=length))
        except ArchitectureMismatchError:
            why = "what it reads is not one row per token, as of an architecture that this attack does not know"
            not_run.append(NotRun(what=f"token counts at {tap.name}", because=why))
            continue
        named = set(found.named.tolist())
        told = TokensFound(
            tap=tap.name,
            leaves=tap.name in leaving,
            explained=round(found.explained, 4),
            named=len(named),
            named_once=int((found.counts[found.named] < ONCE).sum()),
        )
        yield told if held is None else told.model_copy(update=_compared(held, named, found.scores))


def tell_members(
    opened: OpenModel,
    grams: Grams,
    leaving: set[str],
    mine: Sequence[TokenizedText],
    public: Sequence[TokenizedText],
    not_run: list[NotRun],
) -> Iterator[MembershipTold]:
    """Tell measured texts from the same texts left out, and from public ones.

    Every second of the public texts calibrates the attack, the others are compared with.

    Raises:
        ConfigurationError: the matrices were not measured on these texts.
    """
    layers = {tap.layers[0].weight: tap for tap, _ in grams}
    calibration: dict[str, torch.Tensor] = {}
    for _, rows in rows_of_texts(opened, public[::2], tuple(layers)):
        for layer, own in rows.items():
            calibration[layer] = calibration[layer].addmm_(own.T, own) if layer in calibration else own.T @ own
    meters = {tap.layers[0].weight: LeverageMeter(gram, calibration.get(tap.layers[0].weight)) for tap, gram in grams}
    read = {layer: RowsRead() for layer in layers}
    measured = _measure(opened, meters, mine[:: max(1, len(mine) // MOST_TEXTS)][:MOST_TEXTS], read)
    others_perhaps = compare_rows(layers, {layer: read[layer] for layer in measured}, mine)
    if others_perhaps is not None:
        not_run.append(others_perhaps)
    foreign = _measure(opened, meters, public[1::2], {})
    for layer, tap in layers.items():
        texts = measured[layer]
        if not texts:
            why = "it reads neither a row per position nor one per text"
            not_run.append(NotRun(what=f"membership at {tap.name}", because=why))
            continue
        if max(text.largest for text in texts) > _INSIDE:
            msg = f"the statistics were not measured on these texts: some have rows of which {tap.name} knows nothing"
            raise ConfigurationError(msg, tap=tap.name)
        blind, others = [_uncalibrated(text) for text in texts], foreign[layer]
        # Public texts of another kind than these make the attack weaker, and nobody has to use them.
        is_calibrated = layer in calibration and membership_auc(texts) > membership_auc(blind)
        stronger = texts if is_calibrated else blind
        yield MembershipTold(
            tap=tap.name,
            leaves=tap.name in leaving,
            texts=len(texts),
            auc=round(membership_auc(stronger), 4),
            calibrated=is_calibrated,
            against_public=round(membership_auc(blind, [_uncalibrated(text) for text in others]), 4)
            if others
            else None,
            alone=round(sum(text.largest > ALONE for text in texts) / len(texts), 4),
            sums={members: round(membership_auc(stronger, times=members), 4) for members in COHORTS},
        )


def _measure(
    opened: OpenModel, meters: dict[str, LeverageMeter], texts: Sequence[TokenizedText], read: dict[str, RowsRead]
) -> defaultdict[str, list[TextLeverage]]:
    measured: defaultdict[str, list[TextLeverage]] = defaultdict(list)
    for place, rows in rows_of_texts(opened, texts, tuple(meters)):
        for layer, own in rows.items():
            if layer in read:
                read[layer].add(len(own), texts[place])
            measured[layer].append(meters[layer].measure(own))
    return measured


def _uncalibrated(text: TextLeverage) -> TextLeverage:
    return replace(text, usual=0.0)


def _compared(held: Counter[int], named: set[int], scores: torch.Tensor) -> dict[str, float | int]:
    present = torch.zeros(len(scores), dtype=torch.bool)
    present[sorted(held)] = True
    singletons = {token for token, texts in held.items() if texts == 1}
    return {
        "right": len(named & held.keys()),
        "present": len(held),
        "singletons": len(singletons),
        "singletons_named": len(named & singletons),
        "auc": round(auc(scores[present], scores[~present]), 4),
    }


def _vocabulary_size(opened: OpenModel) -> int | None:
    """Return how many rows the model's embedding matrix has; None if it has none, as a model of images."""
    try:
        return int(opened.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator] # transformers' own
    except (AttributeError, NotImplementedError):
        return None
