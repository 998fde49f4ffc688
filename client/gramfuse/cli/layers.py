"""A job's layers as tables on a terminal."""

from typing import TYPE_CHECKING

from gramfuse.cli import output
from gramfuse_shared.contract.diagnostics import JobDiagnostics, Layer
from gramfuse_shared.reporting.layers import note_of, numbers_of, quantile_rows, share, title_of

if TYPE_CHECKING:
    from rich.console import Console


def show_layers(found: JobDiagnostics, console: "Console") -> None:
    """Print quantiles over all entries, then every entry; what is true of none has no column."""
    state = "" if found.complete else ", which is not finished"
    console.print(f"{found.job}, attempt {found.attempt}{state}: {len(found.layers)} entries", markup=False)
    summary = quantile_rows(found.layers)
    if summary:
        columns = ("", "smallest", "quartile", "median", "quartile", "largest")
        console.print()
        output.table(columns, summary, right=range(1, len(columns)))(console)
    if found.layers:
        console.print()
        heads = ("parameters", "merged by", "condition ≥", "gained", "distances", "yours", "note")
        rows = [_row(layer) for layer in found.layers]
        kept = [number for number in range(len(heads)) if any(row[number] for row in rows)]
        output.table(
            [heads[number] for number in kept],
            [[row[number] for number in kept] for row in rows],
            right=[place for place, number in enumerate(kept) if heads[number] in {"condition ≥", "gained", "yours"}],
        )(console)


def _row(layer: Layer) -> tuple[str, ...]:
    method = layer.method if layer.fallback == "none" else f"{layer.method} → {layer.fallback}"
    rows = "" if layer.label_rows is None else f" ({layer.label_rows} rows)"
    own = "" if layer.own is None else share(layer.own)
    return (title_of(layer).replace("`", "") + rows, method, *numbers_of(layer), own, note_of(layer))
