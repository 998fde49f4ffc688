"""How similar the units of two models are: by what they do on the same texts, as correlations. Texts stay here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gramfuse.matching.groups import Group, Intermediate, Place
from gramfuse.measuring.batching import TokenizedText, batch_inputs, tokenize
from gramfuse.measuring.inference import Progress, open_model, ready_to_run
from gramfuse.measuring.layers import checkpoint_names
from gramfuse.measuring.texts import Text
from gramfuse_shared.errors import ArchitectureMismatchError, DocumentMalformedError


class Correlation:
    """Sums from which the correlation of each unit of one model with each of another follows, in fp64."""

    def __init__(self, units: int) -> None:
        self.rows = 0
        self._sums = torch.zeros(2, units, dtype=torch.float64)
        self._squares = torch.zeros(2, units, dtype=torch.float64)
        self._products = torch.zeros(units, units, dtype=torch.float64)

    def add(self, model: torch.Tensor, other: torch.Tensor) -> None:
        """Add what the units of both models did on the same rows, [rows, units] each."""
        seen = [features.cpu().double() for features in (model, other)]
        self.rows += len(seen[0])
        for at, features in enumerate(seen):
            self._sums[at] += features.sum(0)
            self._squares[at] += features.square().sum(0)
        self._products += seen[1].T @ seen[0]

    def matrix(self) -> torch.Tensor:
        """Return Pearson's correlation [other's units, model's units]; 0 of a unit that is constant."""
        means = self._sums / self.rows
        variances = self._squares / self.rows - means.square()
        # what cancellation leaves of a constant unit is noise, and no variance
        alive = variances > 1e-12 * self._squares / self.rows
        deviations = variances.clamp_min(0).sqrt().where(alive, torch.ones_like(variances))
        covariances = self._products / self.rows - torch.outer(means[1], means[0])
        correlations = covariances / torch.outer(deviations[1], deviations[0])
        return correlations.where(torch.outer(alive[1], alive[0]), torch.zeros_like(correlations)).clamp(-1, 1)


@dataclass(frozen=True, slots=True)
class ByActivations:
    """S: correlations of what modules return (queries, keys) and of what they read (output projections, `down`).

    What has no row for each token, such as values, whose mean is what the output projection reads, counts nothing.
    """

    correlations: Mapping[Place, Correlation]

    def __call__(self, places: tuple[Place, ...]) -> torch.Tensor:
        """Return the similarity [n, n] of the units at some places."""
        total = torch.zeros(places[0].length, places[0].length, dtype=torch.float64)
        for place in places:
            if place in self.correlations:
                total += self.correlations[place].matrix()
        return total

    def scale(self, group: Group) -> float:
        """Return the number of correlations of a unit with itself, by which a score becomes a mean."""
        return float(sum(place.length for place in group.places if place in self.correlations))


def correlate(
    model: Path,
    other: Path,
    groups: Sequence[Group],
    texts: Sequence[Text],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ByActivations:
    """Run two models over the same texts, tokenized by the first one's tokenizer, and correlate their units.

    Raises:
        ArchitectureMismatchError: the models have different vocabularies, or a weight is no module's.
        FileUnreadableError, ConfigurationError: see `open_model`.
        DocumentMalformedError: no text has a token.
    """
    opened = [open_model(model, device=device)]
    # one tokenizer for both: they are to read the same tokens
    opened.append(open_model(other, tokenizer=opened[0].tokenizer, device=device))
    sizes = [getattr(each.model.config, "vocab_size", None) for each in opened]
    if sizes[0] != sizes[1]:
        msg = f"the vocabularies differ ({sizes[0]} and {sizes[1]}), so the models cannot read the same tokens"
        raise ArchitectureMismatchError(msg)
    cut = min(each.max_tokens(max_length) for each in opened)
    tokenized = [text for text in tokenize(opened[0].tokenizer, texts, cut, generates=opened[0].generates) if text.ids]
    if not tokenized:
        msg = "none of the texts has a token"
        raise DocumentMalformedError(msg)
    correlations = {place: Correlation(place.length) for place in _features_of(groups)}
    total, tokens = sum(text.tokens for text in tokenized), 0
    with _listening(opened[0].model, correlations) as first, _listening(opened[1].model, correlations) as second:
        for batch in _alike(tokenized, batch_size):
            for each in opened:
                with ready_to_run(each), torch.no_grad():
                    each.model(**batch_inputs(each.model, batch, each.pad, each.device))
            for place, correlation in correlations.items():
                correlation.add(first[place], second[place])
            tokens += sum(text.tokens for text in batch)
            on_progress(Progress(tokens=tokens, total=total, resumed=0))
    return ByActivations(correlations)


def _features_of(groups: Sequence[Group]) -> list[Place]:
    found: list[Place] = []
    for group in groups:
        if isinstance(group, Intermediate):
            found.append(group.places[-1])
        else:
            found.extend(place for layer in group.layers for place in (layer.query[0], layer.key[0], layer.out[0]))
    return found


def _alike(texts: Sequence[TokenizedText], batch_size: int) -> Iterator[list[TokenizedText]]:
    """Batch texts of one length, longest first: nothing is padded, so no row has to be left out."""
    ordered = sorted(texts, key=lambda text: text.length, reverse=True)
    for _, same in groupby(ordered, key=lambda text: text.length):
        batch = list(same)
        yield from (batch[start : start + batch_size] for start in range(0, len(batch), batch_size))


@contextmanager
def _listening(model: nn.Module, places: Mapping[Place, Any]) -> Iterator[dict[Place, torch.Tensor]]:
    """Keep what the modules at some places last returned or read, as [rows, units]."""
    own = {saved: name for name, saved in checkpoint_names(model).items()}
    modules = dict(model.named_modules())
    last: dict[Place, torch.Tensor] = {}

    def keep(place: Place, tensor: torch.Tensor) -> None:
        # a copy: models may write into what they returned
        last[place] = tensor.detach().flatten(0, -2).narrow(1, place.start, place.length).clone()

    hooks = []
    try:
        for place in places:
            path = own.get(place.tensor, "").removesuffix(".weight")
            if path not in modules or not path:
                msg = f"{place.tensor} is the weight of no module of {type(model).__name__}"
                raise ArchitectureMismatchError(msg)
            hooks.append(modules[path].register_forward_hook(_Keeping(place, keep)))
        yield last
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, slots=True)
class _Keeping:
    """The hook of one place."""

    place: Place
    keep: Callable[[Place, torch.Tensor], None]

    def __call__(self, _module: nn.Module, read: tuple[torch.Tensor, ...], returned: torch.Tensor) -> None:
        self.keep(self.place, returned if self.place.side == "outputs" else read[0])
