"""Runs the attacks of this package on an organization's own statistics, model and texts, before anybody else can."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from gramfuse.contributing.draft import Draft
from gramfuse.contributing.loading import ModelFolder, content_of, open_model_folder
from gramfuse.measuring.batching import TokenizedText, tokenize
from gramfuse.measuring.forwarding import open_to_measure
from gramfuse.measuring.inference import OpenModel
from gramfuse.measuring.statistics_io import read_statistics
from gramfuse.measuring.texts import Text
from gramfuse.privacy.membership import LeverageMeter, TextLeverage, auc, membership_auc
from gramfuse.privacy.reading_rows import rows_of_texts
from gramfuse.privacy.token_counts import POSITIONS, find_tokens, token_dictionary
from gramfuse.privacy.vocabulary import find_moved_rows
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError
from gramfuse_shared.fusion import packing

MOST_TEXTS: Final = 300
"""Texts that are told apart; so many give an AUC to about .02."""

MOST_TAPS: Final = 6
COHORTS: Final = (3, 5, 10, 20)
ALONE: Final = 0.5
"""A row's leverage from which on it carries most of some direction by itself."""

_INSIDE: Final = 1.05
_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TokensFound:
    """What a tap that embeddings feed tells: `explained` of the matrix, tokens named, how many of them rightly, the AUC
    of present tokens, and of the tokens that one text alone holds how many are named. Where texts are few and
    short, and positions weigh as much as tokens, the fit fails: a low AUC there says nothing of a better attack.
    """

    tap: str
    leaves: bool
    explained: float
    named: int
    right: int
    present: int
    singletons: int
    singletons_named: int
    auc: float


@dataclass(frozen=True, slots=True)
class MembershipTold:
    """How well texts of one tap are told from the same texts left out; `sums` estimates it for a cohort's sum, by the
    number of its members; `alone` is the share of texts with a row that carries most of some direction by itself.
    """

    tap: str
    leaves: bool
    texts: int
    auc: float
    alone: float
    sums: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VocabularyTold:
    """Rows of an embedding matrix that were trained, how many of them are tokens of the texts, and the AUC of these."""

    tensor: str
    leaves: bool
    moved: int
    right: int
    auc: float


@dataclass(frozen=True, slots=True)
class Attacks:
    """What was found, and in `left_out` what was not attacked and why."""

    tokens: tuple[TokensFound, ...]
    membership: tuple[MembershipTold, ...]
    vocabulary: tuple[VocabularyTold, ...]
    left_out: tuple[str, ...]

    def worst_leaving(self) -> tuple[str, float] | None:
        """Return what leaves and tells most, and its AUC; None if nothing that leaves was attacked."""
        found = [(f"token counts at {one.tap}", one.auc) for one in self.tokens if one.leaves]
        found += [(f"membership at {one.tap}", one.auc) for one in self.membership if one.leaves]
        found += [(f"vocabulary in {one.tensor}", one.auc) for one in self.vocabulary if one.leaves]
        return max(found, key=lambda pair: pair[1], default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the findings as JSON values; numbers of members as strings."""
        document = asdict(self)
        for told in document["membership"]:
            told["sums"] = {str(members): value for members, value in told["sums"].items()}
        return document


def attack(
    model: Path,
    draft: Draft,
    texts: Sequence[Text],
    *,
    base_folder: Path | None = None,
    public: Sequence[Text] = (),
    device: str = "auto",
) -> Attacks:
    """Attack everything that was measured, whether it leaves or not.

    Args:
        model: the folder of the model that was measured.
        draft: the contribution that would be made of it.
        texts: those that were measured, all of them; some are told apart.
        base_folder: the base model's folder, to compare embeddings with; an adapter needs it.
        public: others' texts of a like kind, which make the membership attack stronger, as an attacker has such, too.
        device: where the model is run.

    Raises:
        ConfigurationError: the statistics were not measured on these texts.
        GramfuseError: see `open_to_measure`, `read_statistics`.
    """
    opened, _ = open_to_measure(model, base_folder, device=device)
    limit = opened.max_tokens(None)
    mine = [text for text in tokenize(opened.tokenizer, texts, limit, generates=opened.generates) if text.ids]
    others = tokenize(opened.tokenizer, list(public)[:MOST_TEXTS], limit, generates=opened.generates)
    held = Counter(token for text in mine for token in set(text.ids))
    vocabulary = _vocabulary_size(opened)
    left_out: list[str] = []
    tokens: list[TokensFound] = []
    membership: list[MembershipTold] = []
    if draft.statistics is not None:
        settings = draft.statistics.metadata.collector
        if settings.weighting != "none" or settings.noised is not None:
            left_out.append("statistics whose rows are weighted, or that noise was added to")
        else:
            length = min(POSITIONS, sorted(len(text.ids) for text in mine)[len(mine) * 9 // 10])
            leaving = {tap.info.name for tap in draft.plan.leaving_taps}
            grams = _chosen_grams(draft.statistics.path)
            tokens = list(_find_tokens(opened, grams, leaving, held, vocabulary, length, left_out))
            membership = list(_tell_members(opened, grams, leaving, mine, others, left_out))
    rows = [] if base_folder is None else list(_find_vocabulary(draft, base_folder, held, vocabulary))
    if base_folder is None:
        left_out.append("embeddings, because the base's folder is not known")
    return Attacks(tuple(tokens), tuple(membership), tuple(rows), tuple(left_out))


def _vocabulary_size(opened: OpenModel) -> int | None:
    """Return how many rows the model's embedding matrix has; None if it has none, as a model of images."""
    try:
        return int(opened.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator] # transformers' own
    except (AttributeError, NotImplementedError):
        return None


def _chosen_grams(path: Path) -> list[tuple[TapInfo, torch.Tensor]]:
    """Read the first tap that embeddings feed, some others evenly over the depth of the model, and the last."""
    metadata, grams = read_statistics(path)
    mixed = [tap.name for tap in metadata.taps if tap.source == "mixed"]
    fed = [tap.name for tap in metadata.taps if tap.source != "mixed"]
    step = max(1, -(-len(mixed) // MOST_TAPS))
    chosen = {*fed[:1], *mixed[::step], *mixed[-1:]}
    return [
        (tap, packing.unpack(gram, tap.width))
        for tap, gram in zip(metadata.taps, grams, strict=True)
        if tap.name in chosen
    ]


def _find_tokens(
    opened: OpenModel,
    grams: Sequence[tuple[TapInfo, torch.Tensor]],
    leaving: set[str],
    held: Counter[int],
    vocabulary: int | None,
    length: int,
    left_out: list[str],
) -> Iterator[TokensFound]:
    for tap, gram in grams:
        if tap.source == "mixed":
            continue
        if vocabulary is None:
            left_out.append(f"{tap.name}: the model has no embeddings of tokens")
            continue
        try:
            found = find_tokens(gram, token_dictionary(opened, tap.layers[0].weight, vocabulary, length=length))
        except ArchitectureMismatchError:
            left_out.append(f"{tap.name}: it does not read a row per token")
            continue
        present = torch.zeros(len(found.counts), dtype=torch.bool)
        present[sorted(held)] = True
        named = set(found.named.tolist())
        singletons = {token for token, texts in held.items() if texts == 1}
        yield TokensFound(
            tap.name,
            tap.name in leaving,
            round(found.explained, 4),
            len(named),
            len(named & held.keys()),
            len(held),
            len(singletons),
            len(named & singletons),
            round(auc(found.scores[present], found.scores[~present]), 4),
        )


def _tell_members(
    opened: OpenModel,
    grams: Sequence[tuple[TapInfo, torch.Tensor]],
    leaving: set[str],
    mine: Sequence[TokenizedText],
    others: Sequence[TokenizedText],
    left_out: list[str],
) -> Iterator[MembershipTold]:
    layers = {tap.layers[0].weight: tap for tap, _ in grams}
    public: dict[str, torch.Tensor] = {}
    for _, rows in rows_of_texts(opened, others, tuple(layers)):
        for layer, own in rows.items():
            public[layer] = public[layer].addmm_(own.T, own) if layer in public else own.T @ own
    meters = {tap.layers[0].weight: LeverageMeter(gram, public.get(tap.layers[0].weight)) for tap, gram in grams}
    measured: defaultdict[str, list[TextLeverage]] = defaultdict(list)
    for _, rows in rows_of_texts(opened, mine[:: max(1, len(mine) // MOST_TEXTS)][:MOST_TEXTS], tuple(layers)):
        for layer, own in rows.items():
            measured[layer].append(meters[layer].measure(own))
    for layer, tap in layers.items():
        texts = measured[layer]
        if not texts:
            left_out.append(f"{tap.name}: it reads neither a row per position nor one per text")
            continue
        if max(text.largest for text in texts) > _INSIDE:
            msg = f"the statistics were not measured on these texts: some have rows of which {tap.name} knows nothing"
            raise ConfigurationError(msg, tap=tap.name)
        yield MembershipTold(
            tap.name,
            tap.name in leaving,
            len(texts),
            round(membership_auc(texts), 4),
            round(sum(text.largest > ALONE for text in texts) / len(texts), 4),
            {members: round(membership_auc(texts, times=members), 4) for members in COHORTS},
        )


def _find_vocabulary(
    draft: Draft, base_folder: Path, held: Counter[int], vocabulary: int | None
) -> Iterator[VocabularyTold]:
    base = open_model_folder(base_folder)
    for weight in draft.plan.weights:
        name = weight.info.name
        known = weight.info.dtype in _DTYPES and name in base.tensors and base.tensors[name].info == weight.info
        # Rows of other embeddings, as of positions, belong to no token; those of rounded differences tell less.
        known = known and vocabulary is not None and weight.info.shape[0] == vocabulary
        if weight.role != "embedding" or not known or len(weight.info.shape) != 2 or draft.model.encoding != "stored":  # noqa: PLR2004 - a matrix
            continue
        found = find_moved_rows(_matrix(draft.model, name), _matrix(base, name))
        moved = set(found.moved.tolist())
        present = torch.zeros(weight.info.shape[0], dtype=torch.bool)
        present[sorted(held)] = True
        told = auc(found.distances[present], found.distances[~present])
        yield VocabularyTold(name, weight.stays_because is None, len(moved), len(moved & held.keys()), round(told, 4))


def _matrix(folder: ModelFolder, name: str) -> torch.Tensor:
    tensor = folder.tensors[name]
    raw = bytearray(b"".join(content_of(tensor).chunks()))
    return torch.frombuffer(raw, dtype=_DTYPES[tensor.info.dtype]).reshape(tensor.info.shape)
