"""`make paper-smoke`: models are trained, merged through a real service, judged and tabled."""

import json
import math
import subprocess

import pytest

from support.checkout import REPOSITORY, make_environment

ROWS = {"Avg.", "Best", "Ensemble", "Simple", "Fisher", "RegMean", "+ calibration", "Domain-specific", "Multi-task"}


@pytest.fixture
def smoke(tmp_path):
    subprocess.run(
        ["make", "-o", ".venv/.installed", "paper-smoke", f"PAPER_OUT={tmp_path}"],
        cwd=REPOSITORY, env=make_environment(), check=True, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    return tmp_path


def test_every_row_has_a_score_and_nothing_of_the_service_is_left(smoke):
    results = json.loads((smoke / "results.json").read_text(encoding="utf-8"))
    assert set(results["btc"]) == ROWS
    assert set(results["tasks"]) == {"Domain-specific", "Simple"}
    for name, row in results["btc"].items():
        assert set(row) == ({"in_domain"} if name == "Domain-specific" else {"in_domain", "out_of_domain"})
        for found in row.values():
            for measure in (found, found["average_precision"]):
                assert math.isfinite(measure["mean"])
                assert 0 <= measure["mean"] <= 100
    assert (smoke / "results.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert not (smoke / "kept" / "service").exists()
