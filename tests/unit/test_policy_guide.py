"""docs/policy.md lists every field of a policy, in the contract's words. Run as a program, this writes its table."""

from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from gramfuse_shared.contract.policy import Policy

GUIDE = Path(__file__).parents[2] / "docs" / "policy.md"
FIELDS = {name: field for name, field in Policy.model_fields.items() if name != "format"}


def row(name: str, field: FieldInfo) -> str:
    default = field.default
    told = "none" if default in (None, ()) else f"`{_yaml(default)}`"
    described = (field.description or "").replace("|", r"\|")
    return f"| `{name}` | {told} | {described} |"


def _yaml(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_the_policy_is_in_the_guide_with_its_default_and_what_it_means(name):
    assert FIELDS[name].description
    assert row(name, FIELDS[name]) in GUIDE.read_text().splitlines()


def test_the_guide_tells_of_no_field_that_there_is_not():
    rows = [line for line in GUIDE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(FIELDS)


if __name__ == "__main__":
    print("\n".join(row(name, field) for name, field in FIELDS.items()))
