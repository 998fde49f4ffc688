"""docs/reliability.md: the table of the run on record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

BEGIN, END = "<!-- measured: written by `make soak` -->", "<!-- end of measured -->"
DATABASES: Final = {"postgresql": "PostgreSQL on the same machine", "sqlite": "SQLite"}


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a table."""
    head = (
        f"{results['date']}, {results['cpu']}, {results['cores']} cores, which the load shares with the "
        f"service: one API, {results['workers']} workers, {DATABASES[results['database']]}; "
        f"{results['seconds'] / 60:.1f} minutes. Load average before it began, so of other work: "
        f"{results['load_before']:.1f}."
    )
    rows = [f"| {name} | {value} | {wanted} |" for name, value, wanted in _rows(results)]
    return "\n".join([head, "", "| | measured | wanted |", "|---|---:|---:|", *rows, ""])


def write_page(results: Mapping[str, Any], page: Path) -> None:
    """Put the table between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{markdown(results)}{END}{after}", encoding="utf-8")


def _rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    growth = results["rss_growth_mb"]
    planted = results["planted"]
    return [
        ("contributions, parts or jobs lost that were acknowledged", f"**{results['lost']}**", "0"),
        ("contributions, jobs, models or log entries twice", f"**{results['duplicated']}**", "0"),
        ("models or other files whose bytes are not the signed ones", f"**{results['corrupt']}**", "0"),
        ("answers of `/healthz`, p99", f"{results['healthz_p99_ms']:.0f} ms", "< 50 ms"),
        ("of a server that does nothing else, asked at the same time, p99", f"{results['idle_p99_ms']:.0f} ms", ""),
        ("`/healthz`, median; slowest", f"{results['healthz_p50_ms']:.1f} ms; {results['healthz_most_ms']:.0f} ms", ""),
        (
            "probes of a live API; not answered well",
            f"{results['healthz_probes']:,}; {results['healthz_failed']}",
            "; 0",
        ),
        ("memory's growth over the calm time", "–" if growth is None else f"{growth:.1f} MB", "flat"),
        ("most memory of one process", f"{results['rss_most_mb']:.0f} MB", ""),
        ("kills: of the API; of workers", f"{results['api_kills']}; {results['worker_kills']}", "every few seconds"),
        (
            "API down, in all; longest",
            f"{results['downtime_s']:.0f} s; {results['longest_downtime_s']:.1f} s",
            "",
        ),
        ("organizations; projects", f"{results['organizations']}; {results['projects']}", "50"),
        (
            "contributions that travelled at once; their bytes",
            f"{results['uploads']}; {results['uploaded_mb']:.0f} MB",
            "200; 64 MB",
        ),
        ("connections cut by clients; broken in all", _pair(results, "dropped_connections", "broken_connections"), ""),
        ("jobs queued; finished in the run's time", _pair(results, "jobs", "jobs_finished"), "1,000; all"),
        ("of these still there and waiting at the end", f"{results['unfinished']:,}", ""),
        ("jobs retried, as every worker that tried them was killed", f"{results['jobs_retried']}", ""),
        ("merges a second, kills included", f"{results['jobs_per_second']:.1f}", ""),
        ("answers of the API that were its own fault (5xx)", f"{sum(results['server_errors'].values())}", "0"),
        (
            "damage done on purpose that was found: lost; twice; corrupt",
            f"{planted['lost']}; {planted['duplicated']}; {planted['corrupt']}",
            "≥ 1 each",
        ),
    ]


def _pair(results: Mapping[str, Any], one: str, other: str) -> str:
    return f"{results[one]:,}; {results[other]:,}"
