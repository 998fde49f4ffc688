"""The command `gramfuse-server doctor`: print what the checks found, for people or for programs."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import typer

from gramfuse_server.settings import load_settings
from gramfuse_shared.shell import printing
from gramfuse_shared.version import __version__

if TYPE_CHECKING:
    from gramfuse_server.doctor.findings import Finding, Verdict


FORMAT: Final = "gramfuse/doctor/1"
_COLORS: Final[Mapping[str, str]] = MappingProxyType({"ok": "green", "warning": "yellow", "failed": "red"})


def doctor() -> None:
    """Check settings, database, migrations, blob store, receipt key, clocks, device, disks and workers.

    Says what to do about what it finds. Run it as the server's user, in its environment. Nothing is changed: one small
    blob is written and removed. Exit code 1 if something failed; a warning is none.

    Examples: gramfuse-server doctor · gramfuse-server doctor --format json
    """
    from gramfuse_server.doctor.examination import examine  # noqa: PLC0415 - the job engine, for this command alone

    tell(examine(load_settings, os.environ), FORMAT)


def tell(findings: "Sequence[Finding]", name: str, more: Mapping[str, Any] | None = None) -> None:
    """Print findings as a table with a count of each verdict, or as JSON.

    Args:
        findings: masked.
        name: the JSON document's format.
        more: what else the document says.

    Raises:
        typer.Exit: code 1, where something failed.
    """
    from gramfuse_server.doctor.findings import worst  # noqa: PLC0415 - as above

    verdict = worst(findings)
    if printing.is_json():
        said = {"format": name, "version": __version__, "verdict": verdict, **(more or {})}
        typer.echo(json.dumps(said | {"checks": [asdict(finding) for finding in findings]}, indent=2))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        typer.echo("\n".join(table(findings, width=width)))
        typer.echo(_summary(findings))
    if verdict == "failed":
        raise typer.Exit(1)


def table(findings: "Sequence[Finding]", *, width: int | None) -> list[str]:
    """Lay findings out in columns: verdict, name, what was found; below that, what to do."""
    names = max(len(finding.name) for finding in findings)
    indent = " " * (len("warning  ") + names + 2)
    lines = []
    for finding in findings:
        verdict = typer.style(f"{finding.verdict:<9}", fg=_COLORS[finding.verdict])
        first, *rest = _wrapped(finding.found, width, indent)
        lines += [f"{verdict}{finding.name:<{names}}  {first}", *(f"{indent}{line}" for line in rest)]
        if finding.advice:
            lines += [f"{indent}{line}" for line in _wrapped(f"→ {finding.advice}", width, indent)]
    return lines


def _wrapped(text: str, width: int | None, indent: str) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, max(20, width - len(indent)), break_long_words=False, break_on_hyphens=False) or [""]


def _summary(findings: "Sequence[Finding]") -> str:
    def count(verdict: "Verdict") -> int:
        return sum(finding.verdict == verdict for finding in findings)

    warnings = count("warning")
    return f"{count('failed')} failed, {warnings} warning{'' if warnings == 1 else 's'}, {count('ok')} ok"
