"""Identity keys at the server: registered by a signed acceptance, one of an organization, and not changed unseen."""

import pytest
from sqlalchemy import text

from gramfuse_server import schema
from gramfuse_server.database import reading, transaction
from gramfuse_server.tables import AcceptanceRow, ParticipantRow
from gramfuse_shared.contract.http_api import Participant
from gramfuse_shared.contract.identity import SIGNATURE_HEADER, ContributionStatement, PolicyAcceptance, statement_of
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.signatures import is_signed, public_key, sign
from support.identities import signed_acceptance
from support.secure_sessions import identity_of, public_identity
from support.server_world import OPEN_POLICY, make_contribution, problem
from support.worker_world import MEMBERS, merge_everybody

PROJECT = "acme.tweets"


@pytest.fixture
def project(world):
    """A project that globex was invited to and did not join yet."""
    project = world.project("acme", ready=False)
    world.organization("globex")
    assert world.coordinator("acme").put(f"/v1/projects/{PROJECT}/participants/globex").status_code == 201
    return project


def participant(world, organization):
    listed = world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()["participants"]
    return Participant.model_validate(next(p for p in listed if p["organization"] == organization))


def test_every_member_sees_an_acceptance_whose_signature_it_can_check(world, project):
    assert participant(world, "globex").identity is None
    assert world.accept_policy(PROJECT, "globex").json()["identity"] == public_identity("globex")
    seen = participant(world, "globex")
    acceptance = PolicyAcceptance(
        project=PROJECT, organization="globex", policy=seen.accepted_policy, identity=seen.identity
    )
    assert is_signed(acceptance, seen.signature, public_identity("globex"))


def test_an_acceptance_that_its_key_did_not_sign_is_refused(world, project):
    digest = project["policy"]["digest"]
    mine = signed_acceptance(PROJECT, "globex", digest)
    forged = mine.model_copy(update={"signature": signed_acceptance(PROJECT, "acme", digest).signature})
    answer = world.participant("globex").put_document(f"/v1/projects/{PROJECT}/acceptances/{digest}", forged)
    problem(answer, 422, "signature-invalid")
    assert participant(world, "globex").accepted_policy is None


@pytest.mark.parametrize(
    ("project_name", "organization", "version"),
    [("acme.other", "globex", 1), (PROJECT, "acme", 1), (PROJECT, "globex", 2)],
)
def test_an_acceptance_of_something_else_is_refused(world, project, project_name, organization, version):
    digest = project["policy"]["digest"]
    signed = signed_acceptance(project_name, organization, digest, version=version, key=identity_of("globex"))
    answer = world.participant("globex").put_document(f"/v1/projects/{PROJECT}/acceptances/{digest}", signed)
    problem(answer, 422, "request-malformed")


def test_a_registered_key_is_not_replaced_by_another(world, project):
    assert world.accept_policy(PROJECT, "globex").status_code == 201
    found = problem(world.accept_policy(PROJECT, "globex", key=identity_of("thief")), 409, "identity-changed")
    assert found["facts"]["registered"] == public_identity("globex")
    newer = Policy(minimum_cohort=2)
    world.coordinator("acme").put_document(f"/v1/projects/{PROJECT}/policies/2", newer)
    problem(world.accept_policy(PROJECT, "globex", key=identity_of("thief")), 409, "identity-changed")
    assert world.accept_policy(PROJECT, "globex").status_code == 201
    assert participant(world, "globex").identity == public_identity("globex")


def test_two_organizations_cannot_have_one_key(world, project):
    found = problem(world.accept_policy(PROJECT, "globex", key=identity_of("acme")), 409, "conflict")
    assert "acme" not in found["detail"]


def test_an_acceptance_is_one_row_of_the_audit_log_with_its_key(world, project):
    for status in (201, 200):
        assert world.accept_policy(PROJECT, "globex").status_code == status
    rows = world.operator.get("/v1/admin/audit-log", params={"limit": 200}).json()["items"]
    accepted = [row for row in rows if row["action"] == "policy.accept" and row["organization"] == "globex"]
    assert [row["details"]["identity"] for row in accepted] == [public_identity("globex")]


def test_the_coordinator_forgets_a_lost_key_and_the_member_joins_with_another(world, project):
    world.accept_policy(PROJECT, "globex")
    path = f"/v1/projects/{PROJECT}/participants/globex/identity"
    problem(world.participant("globex").delete(path), 403, "role-required")
    for _ in range(2):
        assert world.coordinator("acme").delete(path).status_code == 200
    assert participant(world, "globex").accepted_policy is None
    assert world.accept_policy(PROJECT, "globex", key=identity_of("globex's new one")).status_code == 201
    assert participant(world, "globex").identity == public_identity("globex's new one")
    rows = world.operator.get("/v1/admin/audit-log", params={"limit": 200}).json()["items"]
    (reset,) = (row for row in rows if row["action"] == "identity.reset")
    assert reset["details"] == {"organization": "globex", "identity": public_identity("globex")}
    problem(world.coordinator("acme").delete(path.replace("globex", "hooli")), 404, "not-found")


def test_what_was_accepted_before_there_were_keys_stays_on_record_and_everybody_joins_again(world, project):
    world.accept_policy(PROJECT, "globex")
    database = world.services.database
    schema.downgrade(database, "0004")
    with reading(database) as session:
        rows = session.execute(text("SELECT organization FROM acceptances ORDER BY organization")).scalars().all()
        assert rows == ["acme", "globex"]
    schema.upgrade(database)
    with reading(database) as session:
        assert {row.accepted_version for row in session.query(ParticipantRow)} == {None}
        assert {(row.identity, row.signature) for row in session.query(AcceptanceRow)} == {("", None)}
    assert world.accept_policy(PROJECT, "globex").status_code == 201
    with transaction(database) as session:
        assert session.query(AcceptanceRow).filter_by(organization="globex").count() == 2  # the old one, and the signed
    assert participant(world, "globex").identity == public_identity("globex")


def test_a_contribution_is_signed_by_who_accepted_the_policy(world):
    project = world.project(*MEMBERS, policy=OPEN_POLICY)
    made, other = make_contribution(project, "globex"), make_contribution(project, "globex", seed=5)
    member, path = world.participant("globex"), f"/v1/projects/{PROJECT}/contributions/{made.id}"
    content, kind = made.manifest.model_dump_json(), {"content-type": "application/json"}
    for signer, signed in (("initech", made.manifest), ("globex", other.manifest)):
        key = identity_of(signer)
        signature = sign(statement_of(signed, public_key(key)), key)
        answer = member.put(path, content=content, headers=kind | {SIGNATURE_HEADER: signature})
        problem(answer, 422, "signature-invalid")
    problem(member.put(path, content=content, headers=kind), 422, "signature-invalid")
    malformed = member.put(path, content=content, headers=kind | {SIGNATURE_HEADER: "no base64"})
    problem(malformed, 422, "request-malformed")
    assert member.put_document(path, made.manifest).status_code == 201
    assert member.put_document(path, made.manifest).status_code == 200


def test_the_receipt_carries_everybodys_signature(world, settings):
    merge_everybody(world, settings)
    model = world.participant("globex").get(f"/v1/projects/{PROJECT}/models/regmean-1").json()
    receipt = SignedReceipt.model_validate(model["receipt"]).receipt
    assert len(receipt.contributions) == len(MEMBERS)
    for member in receipt.contributions:
        statement = ContributionStatement(
            project=PROJECT,
            organization=member.organization,
            policy=receipt.policy,
            manifest=member.manifest,
            identity=member.identity,
        )
        assert is_signed(statement, member.signature, public_identity(member.organization))
