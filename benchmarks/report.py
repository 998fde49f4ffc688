"""The tables: what was measured beside what the design asks for."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Target:
    """A measure that has a bound: its key, in words, the bound, and on which side of it a value is good."""

    key: str
    words: str
    bound: float
    is_upper: bool = False

    def is_met(self, value: float) -> bool:
        """Tell whether a value is on the right side."""
        return value <= self.bound if self.is_upper else value >= self.bound


SMALL = 1e-3  # below, numbers are written with their power of ten

TARGETS = (
    *(
        Target(f"collect.hooks_only_over_forward.{kind}", f"hooks ÷ forward, {kind}", 1.4, is_upper=True)
        for kind in ("bert", "distil", "llama")
    ),
    Target("collect.sdk_over_forward.bert", "SDK's run ÷ forward, bert", 0.75, is_upper=True),
    Target("collect.sdk_over_forward.distil", "SDK's run ÷ forward, distil", 0.75, is_upper=True),
    Target("collect.sdk_over_forward.llama", "SDK's run ÷ forward, causal LM", 0.45, is_upper=True),
    *(
        Target(f"collect.published_over_ours.{kind}", f"statistics, published ÷ ours, {kind}", 3.5)
        for kind in ("bert", "distil", "llama")
    ),
    Target("merge.published_over_ours.n4", "merge of 4, published ÷ ours", 4.0),
    Target("merge.published_over_ours_without_onednn.n4", "the same without oneDNN", 2.0),
    Target("merge.share_of_flop_bound.n16", "merge of 16, share of the FLOP bound", 0.75),
    *(
        Target(f"merge.working_set_mb.n{count}", f"working set, merge of {count}, MB", 350.0, is_upper=True)
        for count in (2, 4, 8, 16)
    ),
    *(
        Target(f"merge.working_set_mb_s3.n{count}", f"the same from S3, merge of {count}, MB", 350.0, is_upper=True)
        for count in (2, 8)
    ),
    *(
        Target(f"error.ours.{case}", f"error against float64, {case}", 2e-6, is_upper=True)
        for case in ("good", "outlier", "tiny", "dead")
    ),
    Target("statistics.published_over_ours_bytes.lossless", "bytes of statistics, published ÷ ours", 2.0),
    Target("statistics.published_over_ours_bytes.int16", "the same as int16", 4.0),
    Target("transfer.upload_over_local_write_and_hash", "upload over loopback ÷ local", 0.6),
    Target("transfer.download_over_local_write_and_hash", "download over loopback ÷ local", 0.6),
    Target("secure.masking_gb_per_second", "masking with 20 keystreams, GB/s a core", 0.25),
    Target("secure.share_of_aes_bound", "the same, share of what AES allows", 0.75),
    Target("workers.speedup", "one merge by two workers of one core, speed-up", 1.7),
    Target("api.start_seconds", "start of the API, s", 2.0, is_upper=True),
)


def look_up(results: dict[str, Any], key: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of a dotted key."""
    value: Any = results
    for step in key.split("."):
        value = value[step]
    return value


def markdown(results: dict[str, Any]) -> str:
    """Return the table of targets for docs/performance.md."""
    machine = results["machine"]
    lines = [
        (
            f"{results['date']}, {machine['cpu']}, {machine['threads']} threads of {machine['cores']} cores, torch "
            f"{machine['torch']}, products at {machine['gemm_gflops']:.0f} GFLOP/s, disk "
            f"{_rate(machine, 'disk_write')}, SHA-256 {_rate(machine, 'sha256')}; medians of {results['rounds']}."
        ),
        "",
        "| measure | measured | one thread | asked for | |",
        "|---|---:|---:|---:|---|",
    ]
    for target, value in _measured(results):
        met = "" if target.is_met(value) else "not reached"
        lines.append(f"| {target.words} | {_number(value)} | {_alone(results, target)} | {_bound(target)} | {met} |")
    published = look_up(results, "error.published")
    lines += ["", f"Errors of the published algorithm: {', '.join(map(': '.join, _told(published).items()))}."]
    return "\n".join(lines) + "\n"


def show(results: dict[str, Any], console: Console) -> None:
    """Print the table of targets, and every other number."""
    table = Table(title="Measured and asked for", title_justify="left")
    for column, justify in (
        ("measure", "left"),
        ("measured", "right"),
        ("one thread", "right"),
        ("asked for", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type] # one of Rich's words
    for target, value in _measured(results):
        colour = "green" if target.is_met(value) else "red"
        table.add_row(target.words, f"[{colour}]{_number(value)}[/]", _alone(results, target), _bound(target))
    console.print(table)
    console.print("errors of the published algorithm:", _told(look_up(results, "error.published")))
    console.print("machine:", results["machine"])


def _measured(results: dict[str, Any]) -> Iterator[tuple[Target, float]]:
    """Yield the targets with what was measured: a record lacks what came later, or could not be had there."""
    for target in TARGETS:
        with suppress(KeyError):
            yield target, look_up(results, target.key)


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < SMALL else f"{value:.3g}"


def _bound(target: Target) -> str:
    return f"{'≤' if target.is_upper else '≥'} {_number(target.bound)}"


def _alone(results: dict[str, Any], target: Target) -> str:
    try:
        return _number(look_up(results["one_thread"], target.key))
    except (KeyError, TypeError):
        return ""


def _told(published: dict[str, float | None]) -> dict[str, str]:
    return {case: "no merge at all" if error is None else _number(error) for case, error in published.items()}


def _rate(machine: dict[str, Any], name: str) -> str:
    return f"{machine[f'{name}_mb_per_second']:,.0f} MB/s"
