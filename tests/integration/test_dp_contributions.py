"""A project with differential privacy through the real API: what is refused where, and what the ledger counts."""

from pathlib import Path

import pytest

from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.privacy.gaussian import epsilon_of
from gramfuse.privacy.ledger import FILE_NAME, Ledger, spent
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.privacy import Noised, PrivacyBudget
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import NotConfirmedError, PrivacyBudgetExceededError, TransportError
from support.client_models import tap, write_model, write_statistics
from support.scales import scales_bytes, scales_metadata
from support.server_world import OPEN_POLICY, problem

PROJECT = "acme.tweets"
LIMIT = PrivacyBudget(epsilon=8, delta=1e-5)
TAPS = (tap("encoder.layer.0.dense", "encoder.layer.0.dense.weight", rows=50, distinct_rows=50),)


@pytest.fixture
def scales(tmp_path) -> Path:
    base = write_model(tmp_path / "base")
    path = tmp_path / "scales.safetensors"
    path.write_bytes(scales_bytes(scales_metadata(build_base_manifest(base).content_digest(), TAPS)))
    return path


@pytest.fixture
def project(acme, tmp_path, scales) -> str:
    policy = Policy(minimum_cohort=2, differential_privacy=LIMIT)
    with acme.client() as client:
        created = client.create_project("tweets", base=tmp_path / "base", policy=policy, scales=scales)
        client.accept_policy(PROJECT, created.policy.digest)
    return PROJECT


@pytest.fixture
def statistics(tmp_path, scales):
    """Makes a statistics file that says it was noised."""

    def write(release: str, budget: PrivacyBudget = LIMIT) -> Path:
        noised = Noised(
            **budget.model_dump(), examples=50, scales=sha256_hex(scales.read_bytes()), release=release * 32
        )
        return write_statistics(tmp_path / f"{release}.safetensors", TAPS, noised=noised)

    return write


def test_a_noised_contribution_is_counted_once_however_often_it_is_sent(acme, project, statistics, tmp_path):
    tuned, file = write_model(tmp_path / "tuned", seed=1), statistics("b")
    acme.wire.breaks_at = lambda request: "statistics.safetensors/parts" in request.url.path
    with acme.client() as client, pytest.raises(TransportError):
        client.push(project, model=tuned, statistics=file, confirm=lambda _: True)
    ledger = Ledger(acme.home.path / FILE_NAME)
    assert len(ledger.releases(project)) == 1  # before its first byte arrived
    acme.wire.breaks_at = lambda _: False
    with acme.client() as client:
        for _ in range(2):
            pushed = client.push(project, model=tuned, statistics=file, confirm=lambda plan: plan.noised is not None)
            assert pushed.state == "accepted"
    assert epsilon_of(spent(ledger.releases(project)), 1e-5) == pytest.approx(8, rel=1e-6)


def test_a_second_release_beyond_the_budget_is_not_sent(acme, project, statistics, tmp_path):
    tuned = write_model(tmp_path / "tuned", seed=1)
    with acme.client() as client:
        client.push(project, model=tuned, statistics=statistics("b"), confirm=lambda _: True)
        acme.wire.requests.clear()
        with pytest.raises(PrivacyBudgetExceededError, match="would exceed"):
            client.push(project, model=tuned, statistics=statistics("c"), confirm=lambda _: True)
    assert acme.wire.writes() == []


def test_statistics_without_noise_stay_at_home(acme, project, tmp_path):
    tuned, file = write_model(tmp_path / "tuned", seed=1), write_statistics(tmp_path / "bare.safetensors", TAPS)
    with acme.client() as client:
        plan = client.plan(project, model=tuned, statistics=file)
    assert plan.leaving_taps == ()
    assert any("gramfuse dp collect" in (group.stays_because or "") for group in plan.staying())


def test_what_was_declined_is_not_counted(acme, project, statistics, tmp_path):
    with acme.client() as client, pytest.raises(NotConfirmedError):
        client.push(
            project, model=write_model(tmp_path / "tuned", seed=1), statistics=statistics("b"), confirm=lambda _: False
        )
    assert Ledger(acme.home.path / FILE_NAME).releases() == ()


def test_differential_privacy_needs_scales(world):
    world.project("acme")
    policy = OPEN_POLICY.model_copy(update={"differential_privacy": LIMIT})
    answer = world.coordinator("acme").put_document(f"/v1/projects/{PROJECT}/policies/2", policy)
    assert "scales" in problem(answer, 422, "policy-violation")["detail"]
