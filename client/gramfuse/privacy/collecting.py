"""Measures a model with differential privacy: texts in, a noised statistics file out, the ledger in between."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from gramfuse.measuring.batching import tokenize
from gramfuse.measuring.forwarding import open_to_measure
from gramfuse.measuring.inference import Progress
from gramfuse.measuring.single_examples import visit_examples
from gramfuse.measuring.texts import Text
from gramfuse.privacy.clipping import ClippedSum
from gramfuse.privacy.ledger import Ledger
from gramfuse.privacy.releasing import release_statistics
from gramfuse_shared.contract.privacy import Noised, PrivacyBudget
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.merging.scales import Scales, load_scales


def sum_clipped(
    model: nn.Module | str | Path,
    texts: Sequence[Text],
    scales: Scales,
    *,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    max_length: int | None = None,
    device: str = "auto",
    base_folder: str | Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> ClippedSum:
    """Run a model over texts, one at a time, and add up their clipped second moments at the scales' taps.

    No noise is in the result: it says what the texts say, and is not to be kept.

    Args:
        model: a `from_pretrained` folder, a PEFT adapter's, or a transformers model in memory with its tokenizer.
        texts: each counts as one example; how many there are is public.
        scales: the project's.
        tokenizer: for a model in memory.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most.
        device: "auto", "cpu", "cuda", "cuda:1", …
        base_folder: the base model's folder, which an adapter is added to.
        on_progress: called after each text.
        is_cancelled: asked after each text; if so, the call ends and nothing is kept.

    Raises:
        ConfigurationError: there is no text.
        ArchitectureMismatchError: the scales are of another model.
        StatisticsInvalidError: a text's rows are not finite.
        CancelledError: `is_cancelled` said so.
    """
    if not texts:
        msg = "there is no text to measure"
        raise ConfigurationError(msg)
    opened, _ = open_to_measure(model, base_folder, tokenizer=tokenizer, device=device)
    examples = tokenize(opened.tokenizer, texts, opened.max_tokens(max_length), generates=opened.generates)
    sums = ClippedSum(scales)
    visit_examples(opened, examples, scales.metadata.taps, sums.add, on_progress=on_progress, is_cancelled=is_cancelled)
    return sums


def collect_privately(
    model: nn.Module | str | Path,
    texts: Sequence[Text],
    out: str | Path,
    *,
    scales: str | Path,
    budget: PrivacyBudget,
    ledger: Ledger,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    project: str | None = None,
    limit: PrivacyBudget | None = None,
    **run: Any,  # noqa: ANN401 - see `sum_clipped`
) -> Noised:
    """Measure a model on texts and write statistics with noise; return what the file says of it.

    In this order, so that nothing was released that the ledger does not hold:
      1. does the budget allow it? before anything is measured,
      2. measure: what one text brings is clipped and added up in memory,
      3. the ledger has the release on the disk,
      4. noise is drawn, and the file written beside, then renamed.

    Args:
        model: see `sum_clipped`, which also takes whatever `run` holds.
        texts: the same.
        out: the statistics file to write.
        scales: the project's scales file.
        budget: ε and δ of this release.
        ledger: the client's.
        clock: the time for the ledger, with its zone.
        project: for which the release is, where that is known.
        limit: what its policy gives for all releases together.
        **run: see `sum_clipped`.

    Raises:
        PrivacyBudgetExceededError: the limit would be exceeded; nothing was released.
        ScalesMalformedError, FileUnreadableError: the scales.
        GramfuseError: see `sum_clipped` and `Ledger.reserve`.
    """
    path = Path(scales)
    read = load_scales(path)
    # 1.
    ledger.require_room(budget, project=project, limit=limit)
    # 2.
    sums = sum_clipped(model, texts, read, **run)
    # 3.
    release = ledger.reserve(budget, examples=sums.examples, now=clock(), project=project, limit=limit)
    # 4.
    noised = Noised(
        epsilon=budget.epsilon,
        delta=budget.delta,
        examples=sums.examples,
        scales=sha256_hex(path.read_bytes()),
        release=release,
    )
    release_statistics(sums, noised).save(out)
    return noised
