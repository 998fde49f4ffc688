"""A policy that shares how audits came out, on real processes: one pushes by commands, another member reads it."""

from pathlib import Path

from support.collaboration import POLICY, begin, measure, tune


def test_how_an_audit_came_out_is_shown_sent_and_read_by_another_member(deployment):
    policy = POLICY.model_copy(update={"audit": "shared"})
    played = begin(deployment, ("auditor", "reader"), policy=policy)
    auditor, reader = played.desks
    tune(auditor, seed=1)
    measure(auditor)
    push = ["contribution", "push", played.project, "--model", "tuned", "--statistics", "statistics.safetensors"]
    push += ["--texts", "texts.jsonl"]

    asked = auditor.run(*push)  # nobody is there to say yes
    assert (asked.returncode, "Also leaves, for the project's members" in asked.stderr) == (3, True)
    assert reader.json("contribution", "list", played.project) == []

    pushed = auditor.json(*push, "--yes")
    told = pushed["audit_summary"]
    assert (pushed["state"], told["texts_given"], told["thresholds"]) == ("accepted", True, "usual")
    assert told["outcomes"]["membership_auc"] in {"pass", "warn"}  # with texts it was run
    warned = {finding["threshold"] for finding in pushed["audit"]["findings"]}
    assert {kind for kind, outcome in told["outcomes"].items() if outcome == "warn"} == warned

    (read,) = reader.json("contribution", "list", played.project)
    assert (read["organization"], read["audit"]) == ("auditor", told)
    assert "of 6 judged" in reader.gramfuse("contribution", "list", played.project)
    (kept,) = Path(auditor.folder / "home" / "audits").iterdir()
    assert kept.stat().st_mode & 0o077 == 0  # the report itself stays where it was
