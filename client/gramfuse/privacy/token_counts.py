"""The attack on taps that embeddings feed: which tokens the private texts hold, and how often.

Such a tap's rows are one per token, up to the position: G ≈ Σₜ cₜ zₜzₜᵀ with z known from the model. So the counts c
are a non-negative least-squares problem. What positions add varies alike for all tokens and is fitted beside them.
"""

from dataclasses import dataclass
from typing import Final

import torch

from gramfuse.measuring.inference import OpenModel
from gramfuse.privacy.nonnegative import fit_counts
from gramfuse.privacy.reading_rows import rows_of_tokens

POSITIONS: Final = 32
"""Positions whose part in the rows is looked at; most texts are about as long or shorter."""

PLACES_PER_TOKEN: Final = 16
_SAMPLED_TOKENS: Final = 64
NAMED: Final = 0.5
"""A token that was found at least so often counts as named by the attack."""


@dataclass(frozen=True, slots=True)
class Dictionary:
    """What every token of the vocabulary looks like at a tap, [V, d], and what positions change of it, [P, d]."""

    tokens: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True, slots=True)
class FoundTokens:
    """The counts [V] that the attack finds, a score [V] that ranks tokens by how likely they occur, and `explained`,
    the share of the whitened Gram matrix that these rows explain.
    """

    counts: torch.Tensor
    scores: torch.Tensor
    explained: float

    @property
    def named(self) -> torch.Tensor:
        """Ids of the tokens that the attack names, ascending."""
        return (self.counts >= NAMED).nonzero().squeeze(1)


def token_dictionary(opened: OpenModel, layer: str, vocabulary: int, *, length: int = POSITIONS) -> Dictionary:
    """Compute what each token looks like where `layer` reads it, as a mean over positions; and positions' own part.

    `length` is about how long most texts are, which an attacker guesses.

    Raises:
        ArchitectureMismatchError: see `rows_of_tokens`.
    """
    length = min(length, opened.max_tokens(None))
    behind_first = max(1, length - 1)
    padded = torch.arange(-(-vocabulary // behind_first) * behind_first) % vocabulary
    mean = torch.zeros(vocabulary, 0)
    shifts = range(0, behind_first, max(1, behind_first // PLACES_PER_TOKEN))
    for shift in shifts:
        # Rolled, so that every token comes to stand at another position; rows return to their places behind. The first
        # position is no token's, but for the one that begins every text.
        sequences = padded.roll(shift).reshape(-1, behind_first)
        first = sequences[:, :1] if behind_first < length else sequences[:, :0]
        read = rows_of_tokens(opened, layer, torch.cat([first, sequences], 1))[:, first.shape[1] :]
        rows = read.flatten(0, 1).roll(-shift, 0)[:vocabulary] / len(shifts)
        mean = mean.add_(rows) if mean.numel() else rows
    few = torch.linspace(0, vocabulary - 1, _SAMPLED_TOKENS).long()
    sampled = rows_of_tokens(opened, layer, few[:, None].expand(-1, length)).mean(0)  # [P, d]
    shifts_of = sampled - sampled[1:].mean(0)
    moving = shifts_of.norm(dim=1) > 1e-4 * sampled.norm(dim=1)  # rotary positions change nothing here
    return Dictionary(mean, shifts_of[moving])


def find_tokens(gram: torch.Tensor, dictionary: Dictionary) -> FoundTokens:
    """Find token counts from the Gram matrix [d, d] of a tap that embeddings feed."""
    fit = fit_counts(torch.cat([dictionary.tokens, dictionary.positions]), gram)
    vocabulary = len(dictionary.tokens)
    counts, slopes = fit.counts[:vocabulary], fit.slopes[:vocabulary]
    # Tokens that the fit leaves out are ranked by how little is missing for them to be taken in.
    behind = slopes - slopes.max().clamp_min(0)
    return FoundTokens(counts, torch.where(counts > 0, counts, behind), fit.explained)
