"""`python -m benchmarks.soak --smoke`: a server under kills loses nothing, and damage done on purpose is found."""

import json
import math
import subprocess
import sys

from support.checkout import REPOSITORY, make_environment

ASKED_FOR = ("lost", "duplicated", "corrupt", "healthz_p99_ms", "rss_growth_mb", "kills")


def test_a_small_soak_is_clean_and_finds_what_was_planted(tmp_path):
    out = tmp_path / "soak.json"
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--smoke", "--out", out],
        cwd=REPOSITORY, env=make_environment(), check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert finished.returncode == 0, f"{finished.stdout[-3000:]}{finished.stderr[-3000:]}"
    results = json.loads(out.read_text(encoding="utf-8"))
    assert all(math.isfinite(results[name] or 0) for name in ASKED_FOR)
    assert (results["lost"], results["duplicated"], results["corrupt"], results["unfinished"]) == (0, 0, 0, 0)
    assert results["kills"] >= 1
    assert results["dropped_connections"] > 0
    assert all(results["planted"][name] for name in ("lost", "duplicated", "corrupt"))
    on_record = json.loads((REPOSITORY / "benchmarks" / "results" / "soak.json").read_text(encoding="utf-8"))
    assert results.keys() == on_record.keys()
