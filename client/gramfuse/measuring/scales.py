"""Measures a base model on public text for the scales file that a project's participants all divide by."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch

from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.measuring.batching import tokenize
from gramfuse.measuring.example_moments import joint_norm, scaled
from gramfuse.measuring.forwarding import collect
from gramfuse.measuring.inference import Progress, open_model
from gramfuse.measuring.single_examples import Rows, visit_examples
from gramfuse.measuring.statistics import Tap
from gramfuse.measuring.statistics_io import write_values
from gramfuse.measuring.texts import Text
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.contract.scales_file import FLOOR, METADATA_KEY, ScalesMetadata, tensors_of_scales
from gramfuse_shared.errors import ConfigurationError, StatisticsInvalidError
from gramfuse_shared.fusion import packing
from gramfuse_shared.merging.scales import Scales
from gramfuse_shared.version import __version__

DEFAULT_CLIP_PERCENTILE: Final = 50.0
"""Half of the examples are clipped, which shrinks them and turns none: the noise is for the bound, not for the few
examples that lie far above it."""


def collect_scales(
    base: str | Path,
    texts: Sequence[Text],
    *,
    clip_percentile: float = DEFAULT_CLIP_PERCENTILE,
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Scales:
    """Measure a base model on public text: each feature's mean square, and the joint clip of an example.

    Two passes: one in batches for the mean squares, one text at a time for the norms that these make of each. The
    texts must be public: what is measured here is given to everybody.

    Args:
        base: the base model's `from_pretrained` folder.
        texts: public texts.
        clip_percentile: which percentile of the examples' joint norms the clip is; 100: the largest.
        batch_size: examples per forward pass of the first pass.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most.
        device: "auto", "cpu", "cuda", "cuda:1", …
        on_progress: called after each batch of the first pass, and each text of the second.
        is_cancelled: asked as often.

    Raises:
        ConfigurationError: the percentile is none, or no text has a token.
        StatisticsInvalidError: the model reads nothing but zeros somewhere, or NaN.
        CancelledError: `is_cancelled` said so.
        FileUnreadableError, ArchitectureMismatchError: the base model.
    """
    if not 0 < clip_percentile <= 100:  # noqa: PLR2004 - percent
        msg = f"a percentile lies above 0 and at most at 100, not at {clip_percentile:g}"
        raise ConfigurationError(msg)
    folder = Path(base)
    statistics = collect(
        folder,
        texts,
        batch_size=batch_size,
        max_length=max_length,
        device=device,
        on_progress=on_progress,
        is_cancelled=is_cancelled,
    )
    mean_squares = {tap.info.name: _mean_square(tap) for tap in statistics.taps}
    roots = {tap: values.double().sqrt() for tap, values in mean_squares.items()}
    taps = tuple(tap.info for tap in statistics.taps)
    opened = open_model(folder, device=device)
    tokenized = tokenize(opened.tokenizer, texts, opened.max_tokens(max_length), generates=opened.generates)
    norms: list[float] = []

    def note(rows: Rows) -> None:
        norms.append(joint_norm(scaled(rows, roots)))

    read = [text for text in tokenized if text.ids]
    visit_examples(opened, read, taps, note, on_progress=on_progress, is_cancelled=is_cancelled)
    if not norms:
        msg = "no text has a token: nothing was measured"
        raise ConfigurationError(msg)
    clip = float(torch.tensor(norms, dtype=torch.float64).quantile(clip_percentile / 100))
    metadata = ScalesMetadata(
        base=build_base_manifest(folder).content_digest(),
        collector_version=__version__,
        examples=len(norms),
        clip=clip,
        clip_percentile=clip_percentile,
        taps=taps,
    )
    return Scales(metadata, MappingProxyType(mean_squares))


def save_scales(scales: Scales, path: str | Path) -> None:
    """Write a scales file: beside, then renamed, so that nobody sees half of one.

    Raises:
        FileUnwritableError: the folder cannot be written.
    """
    metadata = scales.metadata
    header = format_header(tensors_of_scales(metadata.taps), {METADATA_KEY: metadata.canonical().decode()})
    write_values(Path(path), header, (scales.mean_squares[tap.name] for tap in metadata.taps), private=False)


def _mean_square(tap: Tap) -> torch.Tensor:
    """Return diag(XᵀX)/rows, fp32 [width], no value below `FLOOR` times the tap's mean."""
    values = packing.diagonal(tap.gram, tap.info.width).double() / tap.info.rows
    mean = float(values.mean())
    if not 0 < mean < float("inf"):
        msg = f"the inputs of tap {tap.info.name} are all zero, or not finite: is this the base model to fine-tune?"
        raise StatisticsInvalidError(msg, tap=tap.info.name)
    return values.clamp(min=FLOOR * mean).float()
