"""How far a contribution's checks are, as the dashboard tells it from its state."""

from datetime import UTC, datetime

import pytest

from gramfuse_server.dashboard.checks import checks_of
from gramfuse_shared.contract.http_api import Contribution

AT = datetime(2026, 3, 1, tzinfo=UTC)
NOT_YET = {"sealed_at": None, "decided_at": None}
SEALED = {"sealed_at": AT, "decided_at": None}
DECIDED = {"sealed_at": AT, "decided_at": AT}


def contribution(state, *, size=1000, **changes):
    document = {"id": "0" * 64, "organization": "acme", "state": state, "created_at": AT, "bytes": size}
    return Contribution.model_validate(document | {"policy": {"version": 1, "digest": "1" * 64}} | changes)


@pytest.mark.parametrize(
    ("state", "times", "parts", "headers", "numbers"),
    [
        ("open", NOT_YET, "awaited", "awaited", "awaited"),
        ("expired", NOT_YET, "failed", "none", "none"),
        ("sealed", SEALED, "passed", "passed", "awaited"),
        ("accepted", DECIDED, "passed", "passed", "passed"),
        ("rejected", {"sealed_at": None, "decided_at": AT}, "passed", "failed", "none"),
        ("rejected", DECIDED, "passed", "passed", "failed"),
        ("withdrawn", NOT_YET, "none", "none", "none"),
        ("withdrawn", SEALED, "passed", "passed", "none"),
        ("withdrawn", DECIDED, "passed", "passed", "passed"),
    ],
)
def test_each_stage_has_its_state(state, times, parts, headers, numbers):
    checks = checks_of(contribution(state, **times))
    assert [check.name for check in checks] == ["Manifest", "Parts", "Headers", "Numbers"]
    assert [check.state for check in checks] == ["passed", parts, headers, numbers]


def test_of_a_manifest_alone_nothing_else_is_checked():
    assert [check.state for check in checks_of(contribution("accepted", size=0, **DECIDED))] == ["passed"] + [
        "none"
    ] * 3
