"""Projects and base models: created, uploaded, seen by members, downloaded whole and in ranges."""

import pytest

from gramfuse_server.blobs import blob_key
from gramfuse_server.database import reading
from gramfuse_server.tables import AuditRow
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.digest import sha256_hex
from support.log_lines import logs, parsed
from support.server_world import OPEN_POLICY, make_base, problem

PATH = "/v1/projects/acme.tweets"
FILE = f"{PATH}/base/files/model.safetensors"


@pytest.fixture
def content(world):
    """A ready project; the bytes of its largest file."""
    world.project("acme", "globex")
    return make_base().files["model.safetensors"]


def test_a_project_goes_from_manifest_over_parts_to_ready(world):
    project = world.project("acme", "globex", ready=False)
    assert project["state"] == "open"
    assert world.coordinator("acme").get(f"{PATH}/base").json()["vocabulary_size"] == 31
    base, coordinator = make_base(), world.coordinator("acme")
    coordinator.put_files(f"{PATH}/base", project, base.files)
    assert coordinator.post(f"{PATH}/base/seal").json()["state"] == "sealed"
    world.accept_base("acme.tweets")
    seen = world.participant("globex").get(PATH).json()
    assert (seen["state"], seen["base"], seen["coordinator"]) == ("ready", base.id, "acme")
    assert [p["organization"] for p in seen["participants"]] == ["acme", "globex"]
    assert all(p["accepted_policy"] == seen["policy"] for p in seen["participants"])


def test_the_same_project_twice_is_the_same_and_another_base_or_policy_is_a_conflict(world):
    world.organization("acme")
    coordinator = world.coordinator("acme")
    document = {
        "base": make_base().manifest.model_dump(mode="json"),
        "policy": OPEN_POLICY.model_dump(mode="json"),
    }
    first, second = (coordinator.put(PATH, json=document) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    other_base = document | {"base": make_base(seed=9).manifest.model_dump(mode="json")}
    problem(coordinator.put(PATH, json=other_base), 409, "conflict")
    other_policy = document | {"policy": Policy().model_dump(mode="json")}
    problem(coordinator.put(PATH, json=other_policy), 409, "conflict")


def test_only_the_coordinator_sends_the_base(world):
    world.project("acme", "globex", ready=False)
    for client in (world.participant("acme"), world.coordinator("globex")):
        problem(client.put_part(f"{PATH}/base/files/config.json", 0, b"{}"), 403, "role-required")
        problem(client.post(f"{PATH}/base/seal"), 403, "role-required")
        problem(client.get(f"{PATH}/base/files/config.json/parts"), 403, "role-required")


def test_a_base_that_was_never_finished_expires_and_can_be_started_again(world):
    project = world.project("acme", ready=False)
    world.clock.advance(days=8)
    coordinator = world.coordinator("acme")
    expired = coordinator.get(PATH).json()
    assert (expired["state"], "in time" in expired["reason"]) == ("rejected", True)
    document = {
        "base": make_base().manifest.model_dump(mode="json"),
        "policy": OPEN_POLICY.model_dump(mode="json"),
    }
    again = coordinator.put(PATH, json=document)
    assert (again.status_code, again.json()["state"]) == (201, "open")
    assert again.json()["policy"] == project["policy"]


def test_projects_are_listed_for_their_members_only(world):
    world.project("acme", "globex")
    world.project("initech")
    listed = {
        name: [p["id"] for p in world.participant(name).get("/v1/projects").json()["items"]]
        for name in ("acme", "globex", "initech")
    }
    assert listed == {"acme": ["acme.tweets"], "globex": ["acme.tweets"], "initech": ["initech.tweets"]}
    assert world.operator.get("/v1/projects").json()["items"] == []


def test_an_invitation_twice_is_the_same_and_an_unknown_organization_is_not_found(world):
    world.project("acme")
    world.organization("globex")
    coordinator = world.coordinator("acme")
    first, second = (coordinator.put(f"{PATH}/participants/globex") for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    problem(coordinator.put(f"{PATH}/participants/nobody"), 404, "not-found")


def test_an_invitation_is_taken_back_until_it_is_accepted(world):
    world.project("acme", "globex")
    world.organization("globx")
    coordinator = world.coordinator("acme")
    assert coordinator.put(f"{PATH}/participants/globx").status_code == 201
    assert world.participant("globx").get(PATH).status_code == 200
    problem(world.coordinator("globex").delete(f"{PATH}/participants/globx"), 403, "role-required")
    world.organization("umbrella")
    problem(world.coordinator("umbrella").delete(f"{PATH}/participants/globx"), 404, "not-found")
    for _ in range(2):
        left = coordinator.delete(f"{PATH}/participants/globx")
        assert left.status_code == 200
        assert [member["organization"] for member in left.json()["participants"]] == ["acme", "globex"]
    problem(world.participant("globx").get(PATH), 404, "not-found")
    (entry,) = world.operator.get("/v1/admin/audit-log?action=project.uninvite").json()["items"]
    assert (entry["organization"], entry["subject"], entry["details"]) == (
        "acme",
        "acme.tweets",
        {"organization": "globx"},
    )
    for member in ("acme", "globex"):
        problem(coordinator.delete(f"{PATH}/participants/{member}"), 409, "wrong-state")
    assert coordinator.delete(f"{PATH}/participants/globex/identity").status_code == 200
    problem(coordinator.delete(f"{PATH}/participants/globex"), 409, "wrong-state")  # what it signed stays
    assert coordinator.put(f"{PATH}/participants/globx").status_code == 201


def test_a_projects_members_are_told_what_it_holds_and_may_hold(world):
    world.project("acme", "globex")
    told = world.participant("globex").get(PATH).json()
    admin = world.operator.get("/v1/admin/projects/acme.tweets").json()
    assert (told["bytes"], told["quota"]) == (admin["bytes"], admin["quota"])
    assert told["bytes"] > 0


# --- downloads -------------------------------------------------------------------------------------------------------


def test_a_download_is_the_file_under_its_digest(world, content):
    answer = world.participant("globex").get(FILE)
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["etag"] == f'"{sha256_hex(content)}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert int(answer.headers["content-length"]) == len(content)


def test_head_tells_length_and_digest_without_the_file(world, content):
    answer = world.participant("globex").head(FILE)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(content)
    assert answer.headers["etag"] == f'"{sha256_hex(content)}"'


@pytest.mark.parametrize(
    ("field", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=5-99", 5, 100), ("bytes=100-", 100, None), ("bytes=-7", -7, None)],
)
def test_a_range_is_answered_with_just_its_bytes(world, content, field, start, end):
    answer = world.participant("globex").get(FILE, headers={"range": field})
    assert (answer.status_code, answer.content) == (206, content[start:end])
    first = start % len(content)
    last = first + len(answer.content) - 1
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(content)}"


def test_a_range_beyond_the_end_is_cut_and_one_behind_it_is_refused(world, content):
    client = world.participant("globex")
    long = client.get(FILE, headers={"range": f"bytes=10-{10**18}"})
    assert (long.status_code, long.content) == (206, content[10:])
    for field in (f"bytes={len(content)}-", f"bytes={10**18}-", "bytes=-0"):
        answer = client.get(FILE, headers={"range": field})
        problem(answer, 416, "range-not-satisfiable")
        assert answer.headers["content-range"] == f"bytes */{len(content)}"


@pytest.mark.parametrize("field", ["bytes=", "bytes=-", "bytes=5-2", "lines=1-2", "bytes=0-1,5-6", "bytes=a-b"])
def test_a_range_that_is_none_is_answered_with_the_whole_file(world, content, field):
    answer = world.participant("globex").get(FILE, headers={"range": field})
    assert (answer.status_code, answer.content) == (200, content)


def test_if_range_resumes_the_same_file_and_starts_over_with_another(world, content):
    client, etag = world.participant("globex"), f'"{sha256_hex(content)}"'
    same = client.get(FILE, headers={"range": "bytes=9-", "if-range": etag})
    other = client.get(FILE, headers={"range": "bytes=9-", "if-range": '"' + "0" * 64 + '"'})
    assert (same.status_code, same.content) == (206, content[9:])
    assert (other.status_code, other.content) == (200, content)


def test_if_none_match_saves_the_download_of_what_is_there(world, content):
    answer = world.participant("globex").get(FILE, headers={"if-none-match": f'"x", "{sha256_hex(content)}"'})
    assert (answer.status_code, answer.content) == (304, b"")


def test_a_file_that_the_manifest_does_not_name_is_not_found(world, content):
    problem(world.participant("globex").get(f"{PATH}/base/files/nothing.json"), 404, "not-found")


def test_a_base_that_is_not_ready_cannot_be_downloaded(world):
    world.project("acme", "globex", ready=False)
    problem(world.participant("globex").get(FILE), 409, "wrong-state")


@pytest.mark.parametrize("left", [None, b"cut"])
def test_a_blob_that_the_store_lost_is_told_as_lost_and_logged_under_the_requests_id(world, content, left):
    key = blob_key(sha256_hex(content))
    world.services.blobs.delete(key)
    if left is not None:
        world.services.blobs.put(key, left)
    with logs() as written:
        answer = world.participant("globex").get(FILE)
    told = problem(answer, 500, "file-lost")
    assert not told["retryable"]
    assert "model.safetensors" in told["detail"]
    assert "sha256" not in told["detail"]
    (line,) = [line for line in parsed(written.getvalue()) if line["event"] == "a file is lost"]
    assert (line["level"], line["blob"], line["found"]) == ("error", key, None if left is None else len(left))
    assert line["request_id"] == answer.headers["x-request-id"]


def test_downloads_are_in_the_audit_log_with_their_range(world, content):
    world.participant("globex").get(FILE, headers={"range": "bytes=0-9"})
    world.participant("globex").head(FILE)
    with reading(world.services.database) as session:
        (row,) = session.query(AuditRow).filter_by(action="file.download")
    assert (row.organization, row.subject) == ("globex", "acme.tweets")
    assert "bytes=0-9" in row.details
