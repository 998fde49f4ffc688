"""Contributions through the public API: parts, seal, lists, withdrawal, quota, expiry."""

import pytest
from server_world import make_contribution, make_tap, problem

from gramfuse_shared.digest import format_content_digest, sha256_hex


@pytest.fixture
def project(world):
    return world.project("acme", "globex", "initech")


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
