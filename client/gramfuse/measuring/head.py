"""What a head is refit from: the Gram matrix of a merged trunk's features, and their product with one's own logits.

No label is needed: what a text's logits should be, the organization's own model says. The product together with the
Gram matrix tells that model's predictions, so it reveals its head (docs/threat-model.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from gramfuse.contributing.loading import read_header
from gramfuse.measuring.batching import tokenize
from gramfuse.measuring.head_layer import watched_head
from gramfuse.measuring.inference import OpenModel, Progress, open_model, ready_to_run, run
from gramfuse.measuring.statistics_io import write_values
from gramfuse.measuring.texts import Text
from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import CollectorSettings, LayerInfo, TapInfo
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.contract.statistics_file import (
    METADATA_KEY,
    StatisticsMetadata,
    gram_tensor_name,
    parse_statistics_metadata,
    product_tensor_name,
    tensors_of_statistics,
)
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConfigurationError,
    StatisticsInvalidError,
    StatisticsMalformedError,
)
from gramfuse_shared.fusion import packing
from gramfuse_shared.merging.streaming import LocalFile, TensorFile
from gramfuse_shared.version import __version__


@dataclass(frozen=True, slots=True, eq=False)
class HeadStatistics:
    """G = Σ z̃z̃ᵀ and B = Σ z̃tᵀ over rows: z̃ = (z, 1) is what the merged model's head reads, t one's own logits.

    A commutative monoid under `+` for one layer and one number of labels. Rows of an example that both sides know count
    once in `distinct_rows`, unless one was loaded from a file, which holds no trace of single examples.

    Attributes:
        weight: name of the head's weight.
        gram: G packed, F64 on the CPU.
        product: B [d+1, labels], F64 on the CPU.
        rows: texts, or tokens of a model that predicts for tokens; padding does not count.
        examples: rows by the hash of an example.
        anonymous: distinct rows of examples whose hashes are not known.
        base: fingerprint of the project's base model.
    """

    weight: str
    gram: torch.Tensor
    product: torch.Tensor
    rows: int
    examples: Mapping[bytes, int] = field(default_factory=dict)
    anonymous: int = 0
    base: str | None = None

    @classmethod
    def zero(cls, weight: str, width: int, labels: int, *, base: str | None = None) -> Self:
        """Return the statistics of no rows, of a head that reads `width` features."""
        product = torch.zeros(width + 1, labels, dtype=torch.float64)
        return cls(weight, packing.packed_zeros(width + 1, dtype=torch.float64), product, 0, base=base)

    @classmethod
    def of(
        cls,
        weight: str,
        features: torch.Tensor,
        logits: torch.Tensor,
        examples: Mapping[bytes, int],
        *,
        base: str | None = None,
    ) -> Self:
        """Return the statistics of features z [rows, d] and logits t [rows, labels]; summed in F64 on their device."""
        z = torch.cat([features.double(), features.new_ones(len(features), 1, dtype=torch.float64)], dim=1)
        gram = packing.packed_zeros(z.shape[1], dtype=torch.float64, device=z.device)
        packing.accumulate_rows(gram, z)
        product = z.T @ logits.double()  # [d+1, labels]
        return cls(weight, gram.cpu(), product.cpu(), len(features), dict(examples), base=base)

    def __add__(self, other: Self) -> Self:
        """Return the statistics of all rows of both.

        Raises:
            StatisticsMalformedError: of another layer, shape or base model.
        """
        mine, others = (self.weight, self.product.shape, self.base), (other.weight, other.product.shape, other.base)
        if mine != others:
            msg = f"head statistics of {mine[0]} {list(mine[1])} and {others[0]} {list(others[1])} do not add"
            raise StatisticsMalformedError(msg)
        return type(self)(
            self.weight,
            self.gram + other.gram,
            self.product + other.product,
            self.rows + other.rows,
            {**self.examples, **other.examples},
            self.anonymous + other.anonymous,
            self.base,
        )

    @property
    def distinct_rows(self) -> int:
        """Rows, those of the same example once."""
        return sum(self.examples.values()) + self.anonymous

    @property
    def metadata(self) -> StatisticsMetadata:
        """What a file of these statistics says beside the values.

        Raises:
            StatisticsMalformedError: there are no rows.
        """
        if self.rows == 0:
            msg = "no text had a token, so there are no head statistics"
            raise StatisticsMalformedError(msg)
        width, labels = self.product.shape
        tap = TapInfo(
            name=self.weight.removesuffix(".weight"),
            width=width,
            rows=min(self.rows, limits.MAX_ROWS),
            distinct_rows=min(self.distinct_rows, limits.MAX_ROWS),
            source="mixed",
            layers=(LayerInfo(weight=self.weight),),
        )
        settings = CollectorSettings(collector_version=__version__)
        return StatisticsMetadata(base=self.base, collector=settings, kind="head", labels=labels, taps=(tap,))

    def save(self, path: str | Path) -> None:
        """Write a statistics file of the kind `head`, in F32: beside, then renamed.

        Raises:
            StatisticsInvalidError: a sum is not finite, or not within F32.
            StatisticsMalformedError: there are no rows.
            FileUnwritableError: the folder cannot be written.
        """
        metadata = self.metadata
        values = [self.gram.float(), self.product.float()]
        if not all(bool(torch.isfinite(value).all()) for value in values):
            msg = f"the features or logits of {self.weight} hold NaN or infinity, or their sums leave the range of F32"
            raise StatisticsInvalidError(msg, tap=metadata.taps[0].name)
        header = format_header(tensors_of_statistics(metadata), {METADATA_KEY: metadata.model_dump_json()})
        write_values(Path(path), header, values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a statistics file of the kind `head`.

        Raises:
            FileUnreadableError: there is no such file.
            HeaderMalformedError, StatisticsMalformedError: it is not such a file.
        """
        header = read_header(Path(path))
        metadata = parse_statistics_metadata(header, kind="head")
        (tap,) = metadata.taps
        with LocalFile(Path(path)) as source:
            file = TensorFile(source, header)
            gram, product = file.read(gram_tensor_name(tap.name)), file.read(product_tensor_name(tap.name))
        weight = tap.layers[0].weight
        return cls(weight, gram.double(), product.double(), tap.rows, anonymous=tap.distinct_rows, base=metadata.base)


def collect_head(
    merged: nn.Module | str | Path,
    own: nn.Module | str | Path,
    texts: Sequence[Text],
    *,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    base: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> HeadStatistics:
    """Run both models over the texts: the merged one for what its head reads, one's own for its logits.

    Rows are texts, or all tokens but padding where the models predict for tokens.

    Args:
        merged: the merged model, a `from_pretrained` folder or in memory; its tokenizer cuts the texts.
        own: one's own fine-tuned model, with its own trunk and head.
        texts: no labels are needed.
        tokenizer: for a merged model in memory; a folder brings its own.
        batch_size: texts per forward pass; sums are the same with any.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most.
        device: "auto", "cpu", "cuda", "cuda:1", …
        base: fingerprint of the project's base model, written into the file.
        on_progress: called after each batch.
        is_cancelled: asked after each batch.

    Raises:
        ConfigurationError: the logits are no linear layer's output, or no text has a token.
        ArchitectureMismatchError: the models have other labels.
        CancelledError: `is_cancelled` said so.
    """
    opened = open_model(merged, tokenizer=tokenizer, device=device)
    owned = open_model(own, tokenizer=opened.tokenizer, device=device)
    _require_same_labels(opened, owned)
    tokenized = tokenize(opened.tokenizer, texts, opened.max_tokens(max_length), generates=False)
    total: HeadStatistics | None = None
    with watched_head(opened.model) as watch, ready_to_run(owned):
        batches = run(opened, tokenized, batch_size=batch_size, on_progress=on_progress, is_cancelled=is_cancelled)
        for batch in batches:
            found = watch.rows(batch.output.logits, batch.inputs["attention_mask"])
            with torch.no_grad():
                logits = found.pick(owned.model(**batch.inputs).logits)
            hashes = [tokenized[at].content_hash() for at in batch.positions]
            known = dict(zip(hashes, found.counts.tolist(), strict=True))
            part = HeadStatistics.of(found.weight, found.features, logits, known, base=base)
            total = part if total is None else total + part
    if total is None:
        msg = "no text has a token, so a head cannot be fit to them"
        raise ConfigurationError(msg)
    return total


def _require_same_labels(merged: OpenModel, own: OpenModel) -> None:
    labels = [getattr(model.model.config, "id2label", None) for model in (merged, own)]
    if labels[0] != labels[1]:
        msg = (
            f"the merged model's labels are {labels[0]}, your model's {labels[1]}: a head is refit of models that give "
            "the same labels the same ids"
        )
        raise ArchitectureMismatchError(msg)
