"""Contributions through the public API: parts, seal, lists, withdrawal, quota, expiry."""

import pytest

from gramfuse_server import audit_log
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake.uploads import expire_uploads
from gramfuse_server.tables import AuditRow, UploadRow
from gramfuse_shared.digest import format_content_digest, sha256_hex
from support.server_world import OPEN_POLICY, make_contribution, problem


def begin(world, settings):
    world.project("acme", "globex", "initech")


@pytest.fixture
def world(begun):
    return begun(begin)[0]


@pytest.fixture
def project(world):
    return world.coordinator("acme").get("/v1/projects/acme.tweets").json()


def path_of(project, contribution):
    return f"/v1/projects/{project['id']}/contributions/{contribution.id}"


def test_a_contribution_goes_from_manifest_over_parts_to_sealed(world, project):
    contribution = world.contribute(project, "globex")
    detail = world.participant("globex").get(path_of(project, contribution)).json()
    assert detail["state"] == "sealed"
    assert detail["organization"] == "globex"
    assert [file["received_parts"] for file in detail["files"]] == [file["part_count"] for file in detail["files"]]
    assert detail["manifest"]["project"] == "acme.tweets"
    assert detail["bytes"] == sum(map(len, contribution.files.values()))


def test_the_answer_to_a_manifest_tells_how_to_cut_the_files(world, project):
    contribution = make_contribution(project, "globex")
    answer = world.participant("globex").put_document(path_of(project, contribution), contribution.manifest)
    assert answer.status_code == 201
    for file in answer.json()["files"]:
        size = len(contribution.files[file["name"]])
        assert (file["part_count"] - 1) * file["part_bytes"] < size <= file["part_count"] * file["part_bytes"]
        assert file["received_parts"] == 0


def test_the_same_manifest_twice_is_the_same_contribution(world, project):
    contribution = make_contribution(project, "globex")
    member = world.participant("globex")
    first = member.put_document(path_of(project, contribution), contribution.manifest)
    second = member.put_document(path_of(project, contribution), contribution.manifest)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()


def test_a_manifest_under_another_digest_is_refused(world, project):
    contribution = make_contribution(project, "globex")
    other = make_contribution(project, "globex", seed=2)
    answer = world.participant("globex").put_document(path_of(project, other), contribution.manifest)
    problem(answer, 422, "digest-mismatch")


def test_the_same_part_twice_is_the_same_part_and_other_bytes_are_a_conflict(world, project):
    contribution, path, file = opened(world, project)
    member = world.participant("globex")
    part = contribution.files[file["name"]][: file["part_bytes"]]
    first = member.put_part(f"{path}/files/{file['name']}", 0, part)
    second = member.put_part(f"{path}/files/{file['name']}", 0, part)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json() == {"number": 0, "bytes": len(part), "sha256": sha256_hex(part)}
    problem(member.put_part(f"{path}/files/{file['name']}", 0, bytes(len(part))), 409, "conflict")
    parts = member.get(f"{path}/files/{file['name']}/parts").json()
    assert parts["parts"] == [first.json()]


def test_a_part_with_a_wrong_digest_stores_nothing(world, project):
    contribution, path, file = opened(world, project)
    before = world.stored_keys()
    part = contribution.files[file["name"]][: file["part_bytes"]]
    lie = format_content_digest(sha256_hex(b"something else"))
    answer = world.participant("globex").put_part(f"{path}/files/{file['name']}", 0, part, **{"content-digest": lie})
    assert problem(answer, 422, "digest-mismatch")["retryable"]
    assert world.stored_keys() == before


@pytest.mark.parametrize("number", [1_000, 9_999])
def test_a_part_behind_the_files_end_is_refused(world, project, number):
    _, path, file = opened(world, project)
    before = world.stored_keys()
    answer = world.participant("globex").put_part(f"{path}/files/{file['name']}", number, b"x" * file["part_bytes"])
    problem(answer, 422, "part-out-of-range")
    assert world.stored_keys() == before


def opened(world, project):
    """A contribution of globex whose manifest is accepted and of which nothing has arrived."""
    contribution = make_contribution(project, "globex")
    answer = world.participant("globex").put_document(path_of(project, contribution), contribution.manifest)
    assert answer.status_code == 201, answer.text
    return contribution, path_of(project, contribution), answer.json()["files"][0]


def test_a_part_of_another_length_than_its_place_asks_for_is_refused(world, project):
    _, path, file = opened(world, project)
    before = world.stored_keys()
    for content in (b"", b"x", b"x" * (file["part_bytes"] + 1)):
        answer = world.participant("globex").put_part(f"{path}/files/{file['name']}", 0, content)
        problem(answer, 422, "part-out-of-range")
    assert world.stored_keys() == before


def test_a_body_that_is_longer_or_shorter_than_announced_stores_nothing(world, project):
    contribution, path, file = opened(world, project)
    before = world.stored_keys()
    part = contribution.files[file["name"]][: file["part_bytes"]]
    for body in (part + b"x", part[:-1]):
        headers = {"content-length": str(len(part)), "content-digest": format_content_digest(sha256_hex(part))}
        answer = world.participant("globex").put(
            f"{path}/files/{file['name']}/parts/0", content=iter([body]), headers=headers
        )
        problem(answer, 422, "part-out-of-range")
    assert world.stored_keys() == before


def test_a_part_without_a_length_is_refused_before_it_is_read(world, project):
    _, path, file = opened(world, project)

    def never_read():
        yield b"x"

    headers = {"content-digest": format_content_digest(sha256_hex(b"x"))}
    url = f"{path}/files/{file['name']}/parts/0"
    problem(world.participant("globex").put(url, content=never_read(), headers=headers), 411, "length-required")


@pytest.mark.parametrize("field", ["", "md5=:AAAA:", "sha-256=:AAAA:", "sha-256=" + "0" * 64])
def test_a_part_without_a_proper_digest_is_refused(world, project, field):
    _, path, file = opened(world, project)
    answer = world.participant("globex").put_part(
        f"{path}/files/{file['name']}", 0, b"x" * file["part_bytes"], **{"content-digest": field}
    )
    problem(answer, 422, "request-malformed")


def test_an_unauthenticated_part_is_refused_before_its_body_is_read(world, project):
    _, path, file = opened(world, project)
    before = world.stored_keys()
    read = []

    def body():
        read.append(True)
        yield b"x" * file["part_bytes"]

    digest = format_content_digest(sha256_hex(b"x" * file["part_bytes"]))
    headers = {"content-length": str(file["part_bytes"]), "content-digest": digest}
    for token in (None, "gf_0123456789abcdef_" + "0" * 64):
        status = world.raw_status("PUT", f"{path}/files/{file['name']}/parts/0", headers, token, body)
        assert status == 401
    assert read == []
    assert world.stored_keys() == before


def test_a_seal_before_all_parts_are_there_names_the_files(world, project):
    contribution, path, file = opened(world, project)
    member = world.participant("globex")
    member.put_part(f"{path}/files/{file['name']}", 0, contribution.files[file["name"]][: file["part_bytes"]])
    found = problem(member.post(f"{path}/seal"), 409, "parts-missing")
    assert found["facts"]["files"] == ["statistics.safetensors", "weights.safetensors"]
    assert member.get(path).json()["state"] == "open"


def test_a_seal_twice_is_the_same_as_once(world, project):
    contribution = world.contribute(project, "globex")
    member = world.participant("globex")
    first, second = (member.post(f"{path_of(project, contribution)}/seal") for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()


def test_a_sealed_contribution_takes_no_more_parts(world, project):
    contribution = world.contribute(project, "globex")
    path = f"{path_of(project, contribution)}/files/weights.safetensors"
    answer = world.participant("globex").put_part(path, 0, contribution.files["weights.safetensors"][:1024])
    assert problem(answer, 409, "wrong-state")["facts"]["state"] == "sealed"


def test_an_upload_that_is_not_finished_in_time_expires(world, project):
    contribution, path, file = opened(world, project)
    member = world.participant("globex")
    world.clock.advance(days=7, seconds=1)
    part = contribution.files[file["name"]][: file["part_bytes"]]
    problem(member.put_part(f"{path}/files/{file['name']}", 0, part), 409, "wrong-state")
    problem(member.post(f"{path}/seal"), 409, "wrong-state")
    assert member.get(path).json()["state"] == "expired"
    listed = f"/v1/projects/{project['id']}/contributions"
    assert [item["id"] for item in member.get(f"{listed}?state=expired").json()["items"]] == [contribution.id]
    assert member.get(f"{listed}?state=open").json()["items"] == []


def test_the_sweep_expires_overdue_uploads_once_and_releases_their_bytes(world, project):
    opened(world, project)
    world.clock.advance(days=8)
    with transaction(world.services.database) as session:
        assert expire_uploads(session, world.clock()) == 1
    with transaction(world.services.database) as session:
        assert expire_uploads(session, world.clock()) == 0
        upload = session.query(UploadRow).filter_by(kind="contribution").one()
        assert (upload.state, upload.delete_after is not None) == ("expired", True)


def test_after_expiry_a_higher_generation_sends_the_same_content_again(world, project):
    contribution, path, _ = opened(world, project)
    world.clock.advance(days=8)
    again = make_contribution(project, "globex", generation=2)
    assert again.files == contribution.files
    member = world.participant("globex")
    assert member.put_document(path, contribution.manifest).json()["state"] == "expired"
    assert member.put_document(path_of(project, again), again.manifest).status_code == 201


def test_a_withdrawn_contribution_keeps_its_row_and_schedules_its_bytes_for_deletion(world, project):
    contribution = world.contribute(project, "globex", accept=True)
    member, path = world.participant("globex"), path_of(project, contribution)
    first, second = member.post(f"{path}/withdraw"), member.post(f"{path}/withdraw")
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert first.json()["state"] == "withdrawn"
    with reading(world.services.database) as session:
        upload = session.query(UploadRow).filter_by(kind="contribution").one()
        assert upload.delete_after - upload.withdrawn_at == world.services.settings.deletion_delay
    problem(member.post(f"{path}/seal"), 409, "wrong-state")


def test_another_organization_sees_that_a_contribution_exists_but_not_what_is_in_it(world, project):
    contribution = world.contribute(project, "globex")
    other, path = world.participant("initech"), path_of(project, contribution)
    detail = other.get(path).json()
    assert detail["state"] == "sealed"
    assert (detail["manifest"], detail["files"], detail["reason"]) == (None, [], None)
    problem(other.post(f"{path}/withdraw"), 403, "role-required")
    problem(other.post(f"{path}/seal"), 403, "role-required")
    problem(other.get(f"{path}/files/weights.safetensors/parts"), 403, "role-required")
    problem(other.put_part(f"{path}/files/weights.safetensors", 0, b"x"), 403, "role-required")


def test_contributions_are_listed_newest_first_in_pages(world, project):
    made = []
    for seed in range(5):
        contribution = make_contribution(project, "globex", seed=seed)
        world.participant("globex").put_document(path_of(project, contribution), contribution.manifest)
        made.append(contribution.id)
    listed, cursor = [], None
    for _ in range(3):
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = world.participant("initech").get(f"/v1/projects/{project['id']}/contributions", params=query).json()
        listed += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert cursor is None
    assert listed == made[::-1]


@pytest.mark.parametrize("cursor", ["x", "bnVsbA", "WzFd", "WyIyMDI2IiwgIngiXQ", "\u00e9", "A" * 600])
def test_a_cursor_that_no_list_gave_is_refused(world, project, cursor):
    answer = world.participant("globex").get(f"/v1/projects/{project['id']}/contributions", params={"cursor": cursor})
    problem(answer, 422, "request-malformed")


def test_a_project_over_its_quota_takes_no_more(make_world):
    world = make_world(project_quota_bytes=14_000)
    project = world.project("acme", "globex")
    accepted = []
    for seed in range(9):
        contribution = make_contribution(project, "globex", seed=seed)
        answer = world.participant("globex").put_document(path_of(project, contribution), contribution.manifest)
        accepted.append(answer.status_code == 201)
        if not accepted[-1]:
            facts = problem(answer, 413, "quota-exceeded")["facts"]
            assert facts["used"] + facts["requested"] > facts["quota"] == 14_000
    assert accepted[0]
    assert not accepted[-1]


def test_every_step_of_a_contribution_is_in_the_audit_log(world, project):
    contribution = world.contribute(project, "globex", accept=True)
    world.participant("globex").post(f"{path_of(project, contribution)}/withdraw")
    with reading(world.services.database) as session:
        audit_log.verify(session)
        rows = session.query(AuditRow).filter_by(organization="globex").order_by(AuditRow.sequence)
        actions = [row.action for row in rows]
    assert actions == ["policy.accept", "contribution.create", "contribution.seal", "contribution.withdraw"]


# --- which one counts ------------------------------------------------------------------------------------------------


def counting(world, project, organization):
    listed = world.participant(organization).get(f"/v1/projects/{project['id']}/contributions").json()["items"]
    return [item["id"] for item in listed if item["counts"]]


def accepted(world, project, organization, *, seed, generation=1):
    world.clock.advance(minutes=1)
    return world.contribute(project, organization, accept=True, seed=seed, generation=generation)


def test_a_newer_accepted_contribution_replaces_the_older_one_and_an_open_one_does_not(world, project):
    older = accepted(world, project, "globex", seed=1)
    world.contribute(project, "globex", seed=2)  # sealed, not accepted yet
    assert counting(world, project, "globex") == [older.id]
    newer = accepted(world, project, "globex", seed=3)
    assert counting(world, project, "globex") == [newer.id]


def test_withdrawing_the_newer_contribution_does_not_bring_the_older_one_back(world, project):
    older, newer = (accepted(world, project, "globex", seed=seed) for seed in (1, 2))
    answer = world.participant("globex").post(path_of(project, newer) + "/withdraw").json()
    assert (answer["state"], answer["counts"]) == ("withdrawn", False)
    assert counting(world, project, "globex") == []
    old = world.participant("globex").get(path_of(project, older)).json()
    assert (old["state"], old["counts"]) == ("accepted", False)
    again = accepted(world, project, "globex", seed=1, generation=2)
    assert counting(world, project, "globex") == [again.id]


def test_of_two_contributions_the_one_sealed_last_counts_whichever_is_checked_first(world, project):
    older, newer = (world.contribute(project, "globex", seed=seed) for seed in (1, 2))
    world.accept_contribution(newer.id)
    world.accept_contribution(older.id)
    assert counting(world, project, "globex") == [newer.id]


def test_a_contribution_made_under_an_earlier_policy_does_not_count(world, project):
    older = accepted(world, project, "globex", seed=1)
    assert counting(world, project, "globex") == [older.id]
    path = f"/v1/projects/{project['id']}"
    changed = OPEN_POLICY.model_copy(update={"minimum_rows_per_dimension": 2.0})
    world.coordinator("acme").put_document(f"{path}/policies/2", changed)
    assert counting(world, project, "globex") == []
    assert world.accept_policy(project["id"], "globex").status_code == 201
    newer = accepted(world, world.participant("globex").get(path).json(), "globex", seed=1)
    assert counting(world, project, "globex") == [newer.id]
