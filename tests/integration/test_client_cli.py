"""The commands against the real API: what they print, as text and as JSON, and how they exit."""

import json
import sys
from pathlib import Path

import pytest

from gramfuse.identity import identity_path
from gramfuse_shared.contract.diagnostics import JobDiagnostics
from gramfuse_shared.contract.http_api import Acceptance, Contribution, Job, Model, Project
from gramfuse_shared.contract.identity import fingerprint_of
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.units import format_bytes
from support.client_models import tap, write_model, write_statistics
from support.client_world import URL, Site
from support.secure_sessions import public_identity
from support.server_world import BASE_TENSORS, WIDTH
from support.shell import Shell
from support.worker_world import merge_everybody

PROJECT = "acme.tweets"
MEMBERS = ("acme", "globex", "initech")


@pytest.fixture
def acme(world, tmp_path, monkeypatch, capsys) -> Shell:
    return Shell(Site(world, "acme", "coordinator", tmp_path), monkeypatch, capsys)


@pytest.fixture
def globex(world, tmp_path, monkeypatch, capsys) -> Shell:
    return Shell(Site(world, "globex", "participant", tmp_path), monkeypatch, capsys)


@pytest.fixture
def base(tmp_path) -> Path:
    return write_model(tmp_path / "base")


@pytest.fixture
def policy_file(tmp_path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("heads: shared\nminimum_cohort: 2\n")
    return path


@pytest.fixture
def merged(world, settings, acme) -> str:
    """A project with a merged model `regmean-1`."""
    return merge_everybody(world, settings)


def test_whoami_tells_organization_role_and_token_id(acme):
    code, out, _ = acme("whoami")
    assert code == 0
    assert out.startswith("acme as coordinator at http://127.0.0.1:1")
    assert acme.json("whoami")["organization"] == "acme"


def test_a_project_is_created_invited_to_listed_and_shown(acme, globex, base, policy_file):
    create = ("project", "create", "tweets", "--base", str(base), "--policy", str(policy_file))
    told = acme.json(*create)
    created = Project.model_validate({name: value for name, value in told.items() if name != "new"})
    assert (created.id, created.state, told["new"]) == (PROJECT, "ready", True)
    assert acme.json(*create)["new"] is False
    assert f"{PROJECT} is there already, created " in acme(*create)[2]
    code, out, _ = acme("project", "invite", "tweets", "acme", "globex")
    invited = f"invited globex; next, each of them: gramfuse project join {PROJECT}\n"
    assert (code, out) == (0, f"there already: acme\n{invited}")
    assert acme("project", "invite", "tweets", "globex")[:2] == (0, "there already: globex\n")
    again = acme.json("project", "invite", "tweets", "globex")
    assert (again["new"], again["invited"]) == (False, [])
    assert globex("request", "list", "tweets")[1] == "nothing to list\n"
    code, out, _ = globex("project", "list")
    assert code == 0
    assert PROJECT in out
    acme.site.world.organization("globx")
    code, out, err = acme("project", "invite", "tweets", "nobody", "Initech!", "globx")
    assert (code, out) == (1, invited.replace("globex", "globx"))
    assert "error[not-found]: nobody was not invited: there is no organization nobody" in err
    assert "Initech! was not invited: 'Initech!' cannot be the name of an organization" in err
    code, out, _ = acme("project", "uninvite", "tweets", "globx")
    assert (code, out) == (0, f"globx: not invited to {PROJECT} any more\n")
    code, _, err = acme("project", "uninvite", "tweets", "acme")
    assert (code, "error[wrong-state]: acme coordinates" in err) == (1, True)
    code, out, _ = globex("project", "show", "tweets")
    assert "globex: has not accepted the policy" in out
    assert "globx" not in out
    assert f"{format_bytes(created.bytes)} of {format_bytes(created.quota)}" in out
    assert created.policy.digest in out


def test_joining_prints_the_policy_in_words_and_needs_its_digest_where_nobody_can_be_asked(
    acme, globex, base, policy_file
):
    acme("project", "create", "tweets", "--base", str(base), "--policy", str(policy_file))
    acme("project", "invite", PROJECT, "globex")
    code, _, err = globex("project", "join", PROJECT)
    assert code == 3
    assert "Task heads leave and are merged" in err
    assert "error[not-confirmed]" in err
    digest = globex.json("project", "policy", PROJECT)["digest"]
    assert f"--accept-policy {digest}" in err
    code, _, err = globex("project", "join", PROJECT, "--accept-policy", "ab" * 32)
    assert code == 3
    assert digest in err
    acceptance = Acceptance.model_validate(globex.json("project", "join", PROJECT, "--accept-policy", digest))
    assert (acceptance.organization, acceptance.policy.digest) == ("globex", digest)
    assert acceptance.identity == public_identity("globex")
    code, out, err = globex("project", "join", PROJECT)  # nobody is asked again
    assert (code, fingerprint_of(public_identity("globex")) in out) == (0, True)
    assert "your organization has accepted version 1 already" in err


def test_what_is_refused_or_misspelt_is_one_json_value_and_names_what_there_is(acme, globex, base, policy_file):
    acme("project", "create", "tweets", "--base", str(base), "--policy", str(policy_file))
    acme("project", "invite", PROJECT, "globex")
    code, _, err = globex("project", "join", PROJECT, "--format", "json")
    assert (code, json.loads(err)["code"]) == (3, "not-confirmed")
    code, _, err = globex("project", "show", "twets")
    assert (code, "did you mean tweets? (`gramfuse project list` names them all)" in err) == (1, True)


def test_joining_makes_the_identity_key_on_first_use(acme, globex, base):
    acme("project", "create", "tweets", "--base", str(base))
    acme("project", "invite", PROJECT, "globex")
    identity_path(globex.site.home).unlink()
    digest = globex.json("project", "policy", PROJECT)["digest"]
    joined = globex.json("project", "join", PROJECT, "--accept-policy", digest)
    assert joined["identity"] == globex.json("identity", "show")["public_key"] != public_identity("globex")


def test_a_new_policy_is_published_and_stops_a_push_with_exit_code_three(acme, globex, base, policy_file, tmp_path):
    acme("project", "create", "tweets", "--base", str(base))
    acme("project", "invite", PROJECT, "globex")
    globex("project", "join", PROJECT, "--accept-policy", globex.json("project", "policy", PROJECT)["digest"])
    published = acme.json("project", "publish", PROJECT, "--policy", str(policy_file), "--yes")
    assert published["version"] == 2
    assert Policy.model_validate(published["policy"]).minimum_cohort == 2
    code, _, err = globex("contribution", "push", PROJECT, "--model", str(base), "--yes")
    assert code == 3
    assert "error[policy-not-accepted]" in err
    assert f"accept the policy with `gramfuse project join {PROJECT}`" in err


@pytest.fixture
def joined(acme, globex, base, policy_file) -> str:
    acme("project", "create", "tweets", "--base", str(base), "--policy", str(policy_file))
    acme("project", "invite", PROJECT, "globex")
    globex("project", "join", PROJECT, "--accept-policy", globex.json("project", "policy", PROJECT)["digest"])
    return PROJECT


def test_who_leaves_or_is_removed_is_asked_about_and_sees_the_project_no_more(acme, globex, joined, base):
    assert globex("contribution", "push", joined, "--model", str(base), "--yes")[0] == 0
    code, _, err = globex("project", "leave", joined)
    assert (code, "Leave acme.tweets with globex, and withdraw what it contributed" in err) == (3, True)
    assert "frozen" not in err  # nothing was merged
    assert "has joined" in acme("project", "uninvite", joined, "globex")[2]
    assert globex("project", "leave", joined, "--yes")[:2] == (0, f"globex has left {joined}\n")
    assert globex("project", "list")[1] == "nothing to list\n"
    code, _, err = globex("project", "leave", joined, "--yes")
    assert (code, f"your organization is no member of {joined}, or not any more if it left before" in err) == (1, True)
    assert acme.json("contribution", "list", joined)[0]["state"] == "withdrawn"
    code, _, err = acme("project", "leave", joined, "--yes")
    assert (code, f"`gramfuse project delete {joined}` ends it" in err) == (1, True)
    acme("project", "invite", joined, "globex")
    digest = globex.json("project", "policy", joined)["digest"]
    assert globex("project", "join", joined, "--accept-policy", digest)[0] == 0
    code, _, err = acme("project", "remove", joined, "globex")
    assert (code, "Remove globex from acme.tweets" in err) == (3, True)
    removed = Project.model_validate(acme.json("project", "remove", joined, "globex", "--yes"))
    assert [one.organization for one in removed.participants] == ["acme"]
    code, _, err = acme("project", "remove", joined, "globex")
    assert (code, "globex does not take part in acme.tweets" in err) == (0, True)


def test_a_project_is_deleted_after_a_question_and_its_receipts_stay_readable(acme, globex, merged, tmp_path):
    code, _, err = acme("project", "delete", "tweets")
    assert (code, "Delete acme.tweets for its 3 organizations" in err) == (3, True)
    assert globex("project", "delete", PROJECT, "--yes")[0] == 1
    deleted = Project.model_validate(acme.json("project", "delete", PROJECT, "--yes"))
    assert deleted.deleted_at is not None
    assert acme("project", "delete", PROJECT, "--yes")[:2] == (
        0,
        f"deleted: {PROJECT}; its receipts stay readable\n",
    )
    assert " deleted " in globex("project", "list")[1]
    assert f"deleted on {deleted.deleted_at:%Y-%m-%d}" in globex("project", "show", PROJECT)[1]
    assert globex.json("model", "show", PROJECT, merged)["receipt"]["receipt"]["model"] == merged
    for refused in (
        ("project", "base", "pull", PROJECT, str(tmp_path / "base")),
        ("contribution", "push", PROJECT, "--model", str(tmp_path), "--yes"),
    ):
        code, _, err = globex(*refused)
        assert (code, "error[wrong-state]" in err, "was deleted on" in err) == (1, True, True)
    code, _, err = globex("project", "leave", PROJECT, "--yes")
    assert (code, "was deleted on" in err) == (1, True)


def test_where_cohorts_are_frozen_the_question_says_who_cannot_be_merged_any_more(world, settings, acme, globex):
    merge_everybody(world, settings, policy=Policy(minimum_cohort=2, minimum_rows_per_dimension=1.0))
    for asked in (globex("project", "leave", PROJECT), acme("project", "remove", PROJECT, "globex")):
        assert asked[0] == 3
        assert "Cohorts are frozen, and a model of globex with acme, initech was published" in asked[2]


def test_a_new_policy_tells_what_differs_and_that_all_have_to_push_again_everywhere(
    acme, globex, joined, base, tmp_path
):
    assert globex("contribution", "push", joined, "--model", str(base), "--yes")[0] == 0
    second = tmp_path / "second.yaml"
    second.write_text("minimum_cohort: 2\nhead_parameters: [classifier.*]\n")
    publish = ("project", "publish", joined, "--policy", str(second))
    code, _, err = acme(*publish)
    assert (code, globex.json("project", "policy", joined)["version"]) == (3, 1)
    asked = (
        f"Publish version 2 of the policy of {joined}? Each of the 2 organizations has to accept it, and 1 "
        "contribution stops counting until pushed again: globex. Give --yes"
    )
    assert err.index("- Task heads leave and are merged") < err.index(asked)
    code, _, err = acme(*publish, "--yes")
    assert code == 0
    code, _, again = acme(*publish)  # nobody is asked about rules that hold
    assert (code, "version 2 has these rules already; nothing was published" in again) == (0, True)
    assert "contributions of globex were made under an earlier version and no longer count" in err
    assert f"has to be accepted by acme, globex: gramfuse project join {joined}" in err
    again = "made under version 1 of the policy: push again"
    digest = globex.json("project", "policy", joined)["digest"]
    code, _, err = globex("project", "join", joined, "--accept-policy", digest)
    assert code == 0
    told = err[err.index("What differs from version 1") :]
    assert "- Task heads leave and are merged" in told
    assert "+ Task heads never leave" in told
    assert "* head_parameters: classifier.*, pre_classifier.*" in told
    assert "organizations" not in told
    assert f"{again}, with gramfuse contribution push {joined}" in told
    assert f"globex: policy accepted, contribution {again}" in acme("project", "show", joined)[1]
    assert again in globex("contribution", "list", joined)[1]
    (sent,) = globex.json("contribution", "list", joined)
    assert (sent["state"], sent["counts"], sent["passed_over"]) == ("accepted", False, "policy")
    assert globex("contribution", "push", joined, "--model", str(base), "--yes")[0] == 0
    assert "globex: policy accepted, contribution accepted" in acme("project", "show", joined)[1]
    assert "a newer one took its place" in globex("contribution", "list", joined)[1]
    (newer,) = [one["id"] for one in globex.json("contribution", "list", joined) if one["counts"]]
    code, _, err = globex("contribution", "withdraw", joined, newer, "--yes")
    assert (code, f"keeps other contributions of yours still: {sent['id'][:16]}; withdraw each" in err) == (0, True)
    assert globex("contribution", "withdraw", joined, sent["id"], "--yes")[1:] == (f"withdrawn: {sent['id']}\n", "")


def test_a_push_shows_what_leaves_and_stays_asks_sends_and_can_be_withdrawn(globex, joined, tmp_path):
    tuned = str(write_model(tmp_path / "tuned", seed=1))
    taps = (tap("encoder.layer.0.dense", "encoder.layer.0.dense.weight"),)
    statistics = str(write_statistics(tmp_path / "statistics.safetensors", taps))
    push = ("contribution", "push", joined, "--model", tuned, "--statistics", statistics)
    code, _, err = globex(*push)
    assert code == 3
    leaves, stays = err.split("Stays here:")
    assert "weights.safetensors" in leaves
    assert "encoder.layer.*.dense.weight × 2" in leaves
    assert "statistics.safetensors" in leaves
    assert "encoder.embeddings.word_embeddings.weight" in stays
    assert "Give --yes" in stays
    assert globex.site.wire.parts_sent() == []
    code, out, _ = globex(*push, "--dry-run")
    assert (code, "Leaves this machine" in out) == (0, True)
    assert globex.json(*push, "--dry-run")["bytes"] > 0
    assert globex.site.wire.parts_sent() == []
    assert "globex: policy accepted, no contribution yet" in globex("project", "show", joined)[1]
    pushed = globex.json(*push, "--yes")
    assert pushed["audit"]["verdict"] == "pass"
    sent = Contribution.model_validate({k: v for k, v in pushed.items() if k not in {"manifest", "audit", "new"}})
    assert (sent.state, pushed["new"]) == ("accepted", True)
    code, out, err = globex(*push)  # nobody is asked about what is there
    assert (code, f"accepted: contribution {sent.id} of globex; it was there already, so nothing was sent" in out) == (
        0,
        True,
    )
    assert "Leaves this machine" not in err
    again = globex.json(*push)
    assert (again["id"], again["new"], again["audit"]) == (sent.id, False, None)
    code, out, _ = globex("contribution", "list", joined, "--state", "accepted")
    assert sent.id[:16] in out
    assert "globex: policy accepted, contribution accepted" in globex("project", "show", joined)[1]
    assert globex("contribution", "withdraw", joined, sent.id[:8])[0] == 3
    assert globex.json("contribution", "withdraw", joined, sent.id[:8], "--yes")["state"] == "withdrawn"


def test_a_push_is_audited_before_it_asks_and_what_refuses_ends_it_also_with_yes(globex, joined, tmp_path):
    tuned = str(write_model(tmp_path / "tuned", seed=1))
    few = (tap("classifier", "classifier.weight", rows=900, distinct_rows=800),)
    statistics = str(write_statistics(tmp_path / "statistics.safetensors", few))
    push = ("contribution", "push", joined, "--model", tuned, "--statistics", statistics)
    _, _, err = globex(*push)
    assert err.index("Stays here:") < err.index("Audit: ") < err.index("Send this to")
    assert "100, below 200" in err
    assert "no guarantee" in err
    assert "membership: it needs the texts that were measured" in err
    strict = tmp_path / "strict.yaml"
    strict.write_text("rows_per_dimension: {warn: 5000, refuse: 1000}\n")
    code, _, err = globex(*push, "--yes", "--thresholds", str(strict))
    assert (code, "error[audit-refused]" in err) == (3, True)
    assert globex.site.wire.parts_sent() == []
    audited = globex.json(*push, "--dry-run", "--thresholds", str(strict))["audit"]
    assert (audited["verdict"], audited["guarantee"]) == ("refuse", False)
    assert globex.site.wire.parts_sent() == []


def test_without_torch_a_push_says_that_nothing_was_attacked(globex, joined, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gramfuse.privacy.audit", None)  # as where the extra is not installed
    monkeypatch.setattr("gramfuse.auditing.running.EXTRAS", {"gramfuse": "collect"})
    tuned = str(write_model(tmp_path / "tuned", seed=1))
    code, out, _ = globex("contribution", "push", joined, "--model", tuned, "--dry-run")
    assert (code, "Leaves this machine" in out) == (0, True)
    report = globex.json("contribution", "push", joined, "--model", tuned, "--dry-run")["audit"]
    assert report["effort"] == "headers"
    assert {unrun["what"] for unrun in report["attacks"]["not_run"]} >= {"effective rank", "embeddings"}
    (tmp_path / "mine.txt").write_text("a text\n")
    push = ("contribution", "push", joined, "--model", tuned, "--dry-run", "--texts", str(tmp_path / "mine.txt"))
    code, _, err = globex(*push)
    assert (code, "extra `collect`" in err) == (1, True)


def test_a_push_names_the_labels_that_were_trained_and_the_plan_says_so(globex, joined, tmp_path):
    tuned = write_model(tmp_path / "tuned", seed=1)
    (tuned / "config.json").write_text('{"model_type": "bert", "num_labels": 5}')
    push = ("contribution", "push", joined, "--model", str(tuned))
    code, out, _ = globex(*push, "--labels", "4,0", "--dry-run")
    assert code == 0
    assert "you trained 0, 4 of the 5 label ids" in out
    assert globex.json(*push, "--dry-run", "--labels", "0,4")["labels"] == {"count": 5, "trained": [0, 4]}
    code, _, err = globex(*push, "--labels", "sports", "--dry-run")
    assert code == 2
    assert "no list of label ids" in err
    code, _, err = globex(*push, "--labels", "5", "--dry-run")
    assert code == 1
    assert "the labels end at 4" in err
    sent = globex.json(*push, "--labels", "0,4", "--yes")
    with globex.site.client() as client:
        (found,) = client.contributions(PROJECT)
    assert (found.id, found.state) == (sent["id"], "accepted")


def test_tuned_embeddings_are_told_where_the_base_was_pulled(globex, joined, tmp_path):
    assert globex("project", "base", "pull", joined, str(tmp_path / "pulled"))[0] == 0
    tuned = str(write_model(tmp_path / "tuned", seed=1))
    _, out, _ = globex("contribution", "push", joined, "--model", tuned, "--dry-run")
    assert "Warning: you tuned 1 embedding tensor" in out
    _, out, _ = globex("audit", "--project", joined, "--model", tuned)
    assert "Warning: you tuned 1 embedding tensor" in out


# --- jobs and models --------------------------------------------------------------------------------------------------


def test_a_finished_job_is_waited_for_shown_listed_and_explained(globex, merged):
    job = Job.model_validate(globex.json("job", "wait", PROJECT, merged))
    assert (job.state, job.id) == ("succeeded", merged)
    for command in ("show", "wait"):
        code, out, _ = globex("job", command, PROJECT, merged)
        assert code == 0
        assert "acme, globex, initech" in out
        assert "linear layers solved" in out
    assert "regmean" in globex("job", "list", PROJECT)[1]
    history = globex("job", "logs", PROJECT, merged)[1]
    assert "submitted" in history
    assert "linear layers are solved" in history
    assert "B to read" in history


def test_a_job_reports_its_layers_with_ones_own_distance(acme, globex, merged):
    code, out, _ = globex("job", "report", PROJECT, merged)
    assert code == 0
    assert out.startswith("regmean-1, attempt 1: ")
    assert "condition, at least (1 entries)" in out
    assert "encoder.query.weight" in out
    assert "yours" in out
    found = JobDiagnostics.model_validate(globex.json("job", "report", PROJECT, merged))
    (layer,) = [layer for layer in found.layers if layer.condition is not None]
    assert layer.spread.smallest <= layer.own <= layer.spread.largest
    others = JobDiagnostics.model_validate(acme.json("job", "report", PROJECT, merged))
    assert others.model_dump(exclude={"layers": {"__all__": {"own"}}}) == found.model_dump(
        exclude={"layers": {"__all__": {"own"}}}
    )


def test_a_submitted_job_that_is_cancelled_exits_with_five_and_can_be_retried(acme, globex, merged):
    submitted = acme.json("job", "submit", PROJECT, "--method", "linear", "--id", "linear-1")
    assert (submitted["state"], submitted["new"], submitted["outdated"]) == ("queued", True, [])
    code, _, err = acme("job", "submit", PROJECT, "--method", "linear", "--id", "linear-1")
    assert (code, "job linear-1 is there already, submitted 20" in err) == (0, True)
    assert "of acme, globex, initech; nothing has changed since" in err
    assert acme.json("job", "submit", PROJECT, "--method", "linear", "--id", "linear-1") == submitted | {"new": False}
    assert acme("job", "cancel", PROJECT, "linear-1")[0] == 0
    code, _, err = globex("job", "wait", PROJECT, "linear-1")
    assert code == 5
    assert "error[cancelled]: job linear-1 was cancelled" in err
    assert acme.json("job", "retry", PROJECT, "linear-1")["attempt"] == 2


def test_a_withdrawal_asks_of_one_that_is_there_and_ones_own_and_says_what_goes_with_it(acme, globex, merged):
    (theirs,) = acme.json("contribution", "list", PROJECT, "--organization", "acme")
    for wrong in ("abcdef", theirs["id"]):
        code, _, err = globex("contribution", "withdraw", PROJECT, wrong)
        assert (code, "no contribution of yours begins with" in err) == (1, True)
    (mine,) = globex.json("contribution", "list", PROJECT, "--organization", "globex")
    code, _, err = globex("contribution", "withdraw", PROJECT, mine["id"][:8])
    assert (code, f"Withdraw contribution {mine['id'][:16]} (accepted, of " in err) == (3, True)
    assert "the files of your answers" in err


def test_a_merge_of_old_contributions_says_so_before_it_is_waited_for(acme, globex, merged):
    withdrawn = globex.json("contribution", "list", PROJECT, "--organization", "globex")[0]["id"]
    assert globex("contribution", "withdraw", PROJECT, withdrawn, "--yes")[0] == 0
    code, out, err = acme("job", "submit", PROJECT, "--method", "regmean", "--id", merged, "--wait")
    assert (code, "succeeded" in out) == (0, True)
    assert f"job {merged} is there already" in err
    assert "(globex); this job holds the old ones: submit under another --id for a new merge" in " ".join(err.split())


def test_a_participant_may_not_submit_and_an_unknown_job_is_not_found(globex, merged):
    code, _, err = globex("job", "submit", PROJECT, "--method", "linear")
    assert (code, "error[role-required]" in err) == (1, True)
    code, _, err = globex("job", "wait", PROJECT, "nothing")
    assert (code, "error[not-found]" in err) == (1, True)


def test_a_model_is_listed_pulled_verified_offline_and_deleted(acme, globex, merged, tmp_path):
    listed = globex("model", "list", PROJECT)[1]
    assert merged in listed
    assert "published" in listed
    code, out, _ = globex("model", "show", PROJECT, merged)
    assert code == 0
    for told in (f"{merged} of {PROJECT}", "published", "regmean of 3", "globex", "model.safetensors"):
        assert told in out
    assert Model.model_validate(globex.json("model", "show", PROJECT, merged)).id == merged
    folder = tmp_path / "merged"
    code, out, _ = globex("model", "pull", "tweets", merged, str(folder))
    assert code == 0
    assert "verified in" in out
    code, out, _ = globex("model", "verify", str(folder))
    assert code == 0
    assert f"signed by {URL}" in out
    assert globex.json("model", "verify", str(folder))["receipt"]["model"] == merged
    (folder / "config.json").write_text("{}")
    code, _, err = globex("model", "verify", str(folder))
    assert (code, "error[digest-mismatch]" in err) == (1, True)
    assert acme("model", "delete", PROJECT, merged)[0] == 3
    deleted = Model.model_validate(acme.json("model", "delete", PROJECT, merged, "--yes"))
    assert deleted.deleted_at is not None
    assert globex("model", "pull", PROJECT, merged, str(tmp_path / "again"))[0] == 1


def test_login_keeps_the_token_of_a_server_that_accepts_it(globex, monkeypatch):
    from gramfuse import participation  # noqa: PLC0415

    token = globex.site.token
    monkeypatch.setattr(participation, "Client", lambda *_, **__: globex.site.client())
    monkeypatch.setattr("sys.stdin.readline", lambda: f"{token}\n", raising=False)
    code, out, _ = globex("login", "http://127.0.0.1:1/", "--token", "-")
    assert code == 0
    assert "signed in to http://127.0.0.1:1 as globex (participant)" in out
    endpoint = globex.site.home.endpoint(environment={})
    assert (endpoint.url, endpoint.token.reveal()) == (URL, token)


def test_a_merged_model_gets_ones_own_head_by_pull_or_later_in_a_folder_of_its_own(acme, merged, tmp_path):
    shapes = {name: (dtype, shape) for name, dtype, shape in BASE_TENSORS} | {"classifier.weight": ("F32", (7, WIDTH))}
    tuned = write_model(tmp_path / "tuned", seed=4, shapes=shapes)
    (tuned / "config.json").write_text('{"model_type": "tiny", "num_labels": 7}')
    pull = ("model", "pull", PROJECT, merged, str(tmp_path / "merged"), "--head-from", str(tuned))
    code, out, err = acme(*pull)
    assert code == 0, err
    assert f"{tmp_path / 'merged-with-head'} is the same model with your own classifier.weight" in out
    assert acme.json(*pull)["with_head"]["own"] == ["classifier.weight"]
    code, _, err = acme("model", "verify", str(tmp_path / "merged-with-head"))
    assert code == 1
    assert "head of your own" in err
    assert acme("model", "verify", str(tmp_path / "merged"))[0] == 0
    attach = ("model", "attach-head", str(tmp_path / "merged"), str(tmp_path / "mine"), "--head-from", str(tuned))
    shown = acme.json(*attach)
    assert (shown["folder"], shown["own"]) == (str(tmp_path / "mine"), ["classifier.weight"])
    assert {p.name: p.read_bytes() for p in (tmp_path / "mine").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "merged-with-head").iterdir()
    }
    (tmp_path / "other.yaml").write_text("heads: shared\n")
    code, _, err = acme(*attach, "--policy", str(tmp_path / "other.yaml"), "--overwrite")
    assert code == 3
    assert "give that policy" in err
