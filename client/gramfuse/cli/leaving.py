"""Tell a contribution plan in text: every group that leaves, everything that stays with the reason, every warning."""

import re
from collections.abc import Sequence
from typing import Final

from gramfuse.cli.output import format_bytes
from gramfuse.contributing.contribution import ContributionPlan, Group, GroupSummary
from gramfuse.contributing.packaging import STATISTICS_FILE_NAME, WEIGHTS_FILE_NAME

_TITLES: Final[dict[Group, str]] = {
    "body": "weights",
    "embedding": "embeddings",
    "head": "task head",
    "tap": "statistics",
}
_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.|$)")


def plan_text(plan: ContributionPlan) -> str:
    """Write a plan for people."""
    lines = [f"Leaves this machine ({format_bytes(plan.leaving_bytes)}):"]
    for name, groups in _files(plan.leaving()):
        lines.append(f"  {name}, {format_bytes(sum(group.bytes for group in groups))}")
        for group in groups:
            lines += [f"    {line}" for line in _group_lines(group)]
    staying = plan.staying()
    lines.append("Stays here:" if staying else "Stays here: your texts, and nothing else of these files")
    for group in staying:
        lines.append(f"  {_title(group)}: {group.stays_because}")
        lines += [f"    {line}" for line in name_patterns(group.names)]
    lines += [f"Warning: {warning}" for warning in plan.warnings]
    return "\n".join(lines)


def name_patterns(names: Sequence[str]) -> list[str]:
    """Fold names that differ only in layer numbers: `encoder.layer.*.output.weight × 6`."""
    counts: dict[str, list[str]] = {}
    for name in names:
        counts.setdefault(_NUMBER.sub("*", name), []).append(name)
    return [members[0] if len(members) == 1 else f"{pattern} × {len(members)}" for pattern, members in counts.items()]


def _files(groups: Sequence[GroupSummary]) -> list[tuple[str, list[GroupSummary]]]:
    weights = [group for group in groups if group.group != "tap"]
    taps = [group for group in groups if group.group == "tap"]
    return [
        (name, members) for name, members in ((WEIGHTS_FILE_NAME, weights), (STATISTICS_FILE_NAME, taps)) if members
    ]


def _group_lines(group: GroupSummary) -> list[str]:
    return [_title(group), *(f"  {pattern}" for pattern in name_patterns(group.names))]


def _title(group: GroupSummary) -> str:
    return f"{_TITLES[group.group]} ({len(group.names)}, {format_bytes(group.bytes)})"
