"""The ledger never tells less than was released: limits, files sent from elsewhere, other processes, kill -9."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gramfuse.privacy.gaussian import epsilon_of
from gramfuse.privacy.ledger import FILE_NAME, Ledger, spent
from gramfuse_shared.contract.privacy import COVERS, Noised, PrivacyBudget
from gramfuse_shared.errors import ConfigurationError, PrivacyBudgetExceededError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROJECT, OTHER = "acme.tweets", "acme.news"
LIMIT = PrivacyBudget(epsilon=8, delta=1e-5)
HALF = PrivacyBudget(epsilon=4, delta=1e-5)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "home" / FILE_NAME)


def reserve(ledger: Ledger, budget=HALF, project: str | None = PROJECT, limit=LIMIT) -> str:
    return ledger.reserve(budget, examples=100, now=NOW, project=project, limit=limit)


def noised(release: str, budget=HALF) -> Noised:
    return Noised(**budget.model_dump(), examples=100, scales="a" * 64, release=release)


def test_a_release_is_remembered_as_it_was_made(ledger):
    release = reserve(ledger)
    (known,) = Ledger(ledger.path).releases()
    assert (known.id, known.project, known.at, known.budget, known.examples) == (release, PROJECT, NOW, HALF, 100)
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert Ledger(ledger.path.with_name("other")).releases() == ()


def test_the_whole_budget_may_be_spent_at_once_and_then_nothing(ledger):
    reserve(ledger, LIMIT)
    with pytest.raises(PrivacyBudgetExceededError, match=f"ε = 0 is left. {COVERS}"):
        reserve(ledger, PrivacyBudget(epsilon=0.01, delta=1e-5))
    assert len(ledger.releases()) == 1


def test_two_releases_of_half_the_epsilon_cost_less_than_the_whole_and_a_third_is_refused_if_it_costs_more(ledger):
    """Gaussian mechanisms compose better than ε adds up: 4 and 4 come to 6.0."""
    reserve(ledger)
    reserve(ledger)
    assert epsilon_of(spent(ledger.releases(PROJECT)), 1e-5) == pytest.approx(5.992, abs=1e-3)
    reserve(ledger)
    with pytest.raises(PrivacyBudgetExceededError) as refused:
        reserve(ledger)
    left = PrivacyBudget(epsilon=refused.value.facts["left"], delta=1e-5)
    with pytest.raises(PrivacyBudgetExceededError):
        reserve(ledger, PrivacyBudget(epsilon=left.epsilon * 1.01, delta=1e-5))
    reserve(ledger, left)
    assert epsilon_of(spent(ledger.releases(PROJECT)), 1e-5) == pytest.approx(8, rel=1e-6)


def test_a_project_is_not_charged_for_anothers_releases(ledger):
    reserve(ledger, LIMIT)
    reserve(ledger, LIMIT, project=OTHER)
    assert [release.project for release in ledger.releases()] == [PROJECT, OTHER]
    assert len(ledger.releases(OTHER)) == 1


def test_room_is_asked_for_without_spending(ledger):
    ledger.require_room(LIMIT, project=PROJECT, limit=LIMIT)
    assert not ledger.path.exists()
    reserve(ledger, LIMIT)
    with pytest.raises(PrivacyBudgetExceededError):
        ledger.require_room(HALF, project=PROJECT, limit=LIMIT)


# --- files that are sent ---------------------------------------------------------------------------------------------


def test_a_file_that_is_sent_again_counts_once(ledger):
    release = reserve(ledger, LIMIT)
    for _ in range(3):
        ledger.count(noised(release, LIMIT), now=NOW, project=PROJECT, limit=LIMIT)
    assert len(ledger.releases()) == 1


def test_a_release_for_no_project_becomes_that_of_the_project_it_is_sent_to(ledger):
    release = reserve(ledger, LIMIT, project=None, limit=None)
    ledger.count(noised(release, LIMIT), now=NOW, project=PROJECT, limit=LIMIT)
    assert [(known.id, known.project) for known in ledger.releases()] == [(release, PROJECT)]


def test_a_release_that_is_sent_to_two_projects_counts_for_both(ledger):
    release = reserve(ledger, LIMIT)
    for _ in range(2):
        ledger.count(noised(release, LIMIT), now=NOW, project=OTHER, limit=LIMIT)
    assert [known.project for known in ledger.releases()] == [PROJECT, OTHER]


def test_a_file_from_another_machine_is_counted_when_it_is_sent_and_refused_where_nothing_is_left(ledger):
    ledger.count(noised("b" * 32, LIMIT), now=NOW, project=PROJECT, limit=LIMIT)
    with pytest.raises(PrivacyBudgetExceededError):
        ledger.count(noised("c" * 32), now=NOW, project=PROJECT, limit=LIMIT)
    assert [release.id for release in ledger.releases()] == ["b" * 32]


# --- what may happen to a file ---------------------------------------------------------------------------------------


def test_a_ledger_that_cannot_be_read_refuses_every_release(ledger):
    reserve(ledger)
    ledger.path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigurationError, match="Do not delete it"):
        reserve(ledger)


def test_releases_at_the_same_time_never_exceed_the_limit_together(ledger):
    def attempt(_: int) -> bool:
        try:
            reserve(Ledger(ledger.path))
        except PrivacyBudgetExceededError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(attempt, range(16)))
    assert granted == len(ledger.releases()) == 3


_RELEASING = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from gramfuse.privacy.ledger import Ledger
from gramfuse_shared.contract.privacy import PrivacyBudget
while True:
    budget = PrivacyBudget(epsilon=0.01, delta=1e-5)
    release = Ledger(Path(sys.argv[1])).reserve(budget, examples=1, now=datetime.now(UTC), project="a.b", limit=None)
    print(release, flush=True)  # from here on, noise may be drawn and seen
"""


@pytest.mark.parametrize("after", [1, 2, 7])
def test_a_process_that_is_killed_at_any_moment_leaves_no_release_uncounted(ledger, after):
    with subprocess.Popen(
        [sys.executable, "-c", _RELEASING, str(ledger.path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline().strip() for _ in range(after)]
        process.send_signal(signal.SIGKILL)
        seen += [line.strip() for line in process.stdout if line.endswith("\n")]
    known = [release.id for release in ledger.releases()]
    assert set(seen) <= set(known)
    assert len(known) - len(seen) <= 1
    reserve(ledger, project="a.b", limit=None)  # and it works on


def test_the_ledger_lies_where_nobody_but_its_owner_reads(tmp_path):
    path = tmp_path / "new" / FILE_NAME
    reserve(Ledger(path))
    assert Path(path.parent).stat().st_mode & 0o777 == 0o700
