"""What linear layers are refit from: the Gram matrix of what they read in the merged model, and what they lack there.

No label is needed: what a layer should give, the organization's own model says. The product together with the Gram
matrix tells that model's layers (docs/threat-model.md).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from gramfuse.measuring.batching import tokenize
from gramfuse.measuring.collection import Collector
from gramfuse.measuring.differences import OutputDifferences
from gramfuse.measuring.inference import Progress, open_model, ready_to_run, run
from gramfuse.measuring.layers import choose_layers, find_layers, require_saved_layers
from gramfuse.measuring.sparing import Sparing
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.statistics_io import write_values
from gramfuse.measuring.texts import Text
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, tensors_of_statistics
from gramfuse_shared.errors import StatisticsInvalidError, StatisticsMalformedError


@dataclass(frozen=True, slots=True, eq=False)
class RefitStatistics:
    """G = Σ x̃x̃ᵀ by tap and R = Σ x̃eᵀ by layer: x̃ = (x, 1) what layers of the merged model read, e what they lack.

    e = y − (Wx + b), y the output of the same layer of the organization's own model, which runs by itself. A
    commutative monoid under `+`, whose zero is that of no layers.

    Attributes:
        statistics: G with row counts and sources, the constant being every tap's last feature.
        products: R [d+1, outputs] by the layer's weight, F32 on the CPU.
    """

    statistics: Statistics = field(default_factory=Statistics)
    products: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __add__(self, other: Self) -> Self:
        """Return the statistics of all rows of both.

        Raises:
            StatisticsMalformedError: of other shapes, or of another base model.
        """
        statistics = self.statistics + other.statistics
        products = dict(self.products)
        for weight, product in other.products.items():
            known = products.get(weight)
            if known is not None and known.shape != product.shape:
                msg = f"{weight} has {known.shape[1]} outputs here and {product.shape[1]} there: these are other models"
                raise StatisticsMalformedError(msg)
            products[weight] = product if known is None else known + product
        return type(self)(statistics, products)

    def metadata(self, taps: Collection[str] | None = None) -> StatisticsMetadata:
        """Return what a file of these statistics, or of some taps of theirs by name, says beside the values.

        Raises:
            StateError: nothing was measured.
        """
        measured = self.statistics.metadata
        chosen = tuple(self._with_outputs(tap) for tap in measured.taps if taps is None or tap.name in taps)
        return StatisticsMetadata(base=measured.base, collector=measured.collector, kind="refit", taps=chosen)

    def save(self, path: str | Path, taps: Collection[str] | None = None) -> None:
        """Write a statistics file of the kind `refit`, in F32: beside, then renamed.

        Raises:
            StatisticsInvalidError: a sum is not finite; the message names the tap or the layer.
            StateError: nothing was measured.
            FileUnwritableError: the folder cannot be written.
        """
        metadata = self.metadata(taps)
        header = format_header(tensors_of_statistics(metadata), {METADATA_KEY: metadata.model_dump_json()})
        write_values(Path(path), header, self._values(metadata))

    def _values(self, metadata: StatisticsMetadata) -> Iterator[torch.Tensor]:
        grams = {tap.info.name: tap.gram for tap in self.statistics.taps}
        for tap in metadata.taps:
            gram = grams[tap.name].clone()
            gram[-1] = tap.rows  # the constant's square: beyond 2²⁴ rows a float32 sum of ones is no longer the count
            yield _finite(gram, tap.name)
        for layer in (layer for tap in metadata.taps for layer in tap.layers):
            yield _finite(self.products[layer.weight], layer.weight)

    def _with_outputs(self, tap: TapInfo) -> TapInfo:
        layers = (layer.model_copy(update={"outputs": self.products[layer.weight].shape[1]}) for layer in tap.layers)
        return tap.model_copy(update={"layers": tuple(layers)})


def collect_refit(
    merged: nn.Module | str | Path,
    own: nn.Module | str | Path,
    texts: Sequence[Text],
    *,
    layers: Collection[str] | None = None,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    base: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> RefitStatistics:
    """Run both models over the texts: the merged one for what its layers read, one's own for what they should give.

    Args:
        merged: the merged model, a `from_pretrained` folder or in memory; its tokenizer cuts the texts.
        own: one's own fine-tuned model.
        texts: no labels are needed; of a model that generates, pairs of source and target.
        layers: weights of the layers, as they are saved; None: all. Those that are no linear layer's are left out.
        tokenizer: for a merged model in memory; a folder brings its own.
        batch_size: texts per forward pass.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most.
        device: "auto", "cpu", "cuda", "cuda:1", …
        base: fingerprint of the project's base model, written into the file.
        on_progress: called after each batch.
        is_cancelled: asked after each batch.

    Raises:
        ArchitectureMismatchError: none of `layers` is a linear layer's, or the models differ in more than weights.
        CancelledError: `is_cancelled` said so.
    """
    opened = open_model(merged, tokenizer=tokenizer, device=device)
    owned = open_model(own, tokenizer=opened.tokenizer, device=device)
    tokenized = tokenize(opened.tokenizer, texts, opened.max_tokens(max_length), generates=opened.generates)
    chosen = choose_layers(find_layers(opened.model), layers)
    if opened.folder is not None:
        require_saved_layers(chosen, opened.folder)
    weights = [layer.weight for layer in chosen]
    differences = OutputDifferences(owned.model, weights)
    collector = Collector(opened.model, base=base, layers=weights, differences=differences)
    spared = Sparing(opened.model, chosen), Sparing(owned.model, differences.layers)
    with (
        collector as statistics,
        spared[0].sparing(),
        ready_to_run(opened),
        differences.watching(),
        spared[1].sparing(),
    ):
        batches = run(owned, tokenized, batch_size=batch_size, on_progress=on_progress, is_cancelled=is_cancelled)
        for batch in batches:
            with torch.no_grad():
                opened.model(**batch.inputs)
            differences.require_met()
    return RefitStatistics(statistics, {weight: product.cpu() for weight, product in differences.products.items()})


def _finite(values: torch.Tensor, name: str) -> torch.Tensor:
    if not bool(torch.isfinite(values).all()):
        msg = f"the sums of {name} hold NaN or infinity, or leave the range of float32; check the models and the texts"
        raise StatisticsInvalidError(msg, tap=name)
    return values
