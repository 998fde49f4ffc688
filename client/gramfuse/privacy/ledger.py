"""The ledger of differential privacy: every release that noise was drawn for, and what a project's come to together.

It lies in the client's home, on the machine that draws the noise. A release is written, and on the disk, before its
noise is drawn: whatever happens then, it counts. So a release that was interrupted counts although nobody saw it; the
ledger may say too much, never too little. What an organization releases elsewhere, under another home, it cannot know
until the file is sent from here.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from gramfuse.config import Home
from gramfuse.privacy.gaussian import compose, epsilon_of, mu_of
from gramfuse_shared.contract.privacy import COVERS, Noised, PrivacyBudget
from gramfuse_shared.errors import ConfigurationError, PrivacyBudgetExceededError

FILE_NAME: Final = "privacy-ledger.sqlite"

_PATIENCE_SECONDS: Final = 30.0
_NO_PROJECT: Final = ""
_ROUNDING: Final = 1e-9
"""Of μ: the last digits of two bisections."""

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS releases (
    id TEXT NOT NULL,
    project TEXT NOT NULL,
    at TEXT NOT NULL,
    epsilon REAL NOT NULL,
    delta REAL NOT NULL,
    examples INTEGER NOT NULL,
    PRIMARY KEY (id, project)
)
"""


@dataclass(frozen=True, slots=True)
class Release:
    """One drawing of noise, as its file names it. `project` is None until it is known for which."""

    id: str
    project: str | None
    at: datetime
    budget: PrivacyBudget
    examples: int

    @property
    def mu(self) -> float:
        """What it adds to the sum of squares."""
        return mu_of(self.budget)


class Ledger:
    """Releases in a SQLite file, so that writing is atomic, durable, and safe from other processes."""

    def __init__(self, path: Path) -> None:
        """Name the ledger's file, `FILE_NAME` in the client's home; it is made at the first release."""
        self.path = path

    @classmethod
    def of_home(cls, home: Home | None = None) -> Self:
        """Return the ledger of a client's home; by default of the one that the commands use."""
        return cls((home or Home.default()).path / FILE_NAME)

    def releases(self, project: str | None = None) -> tuple[Release, ...]:
        """List the releases for a project, or all, in their order.

        Raises:
            ConfigurationError: the file cannot be read, or is no ledger.
        """
        if not self.path.exists():
            return ()
        with self._holding() as connection:
            return tuple(release for release in _releases(connection) if project is None or release.project == project)

    def require_room(self, budget: PrivacyBudget, *, project: str | None, limit: PrivacyBudget | None) -> None:
        """Require that a release would stay within a limit, without writing anything. Raises as `reserve`."""
        require_within((known for known in self.releases() if known.project == project), budget, limit)

    def reserve(
        self, budget: PrivacyBudget, *, examples: int, now: datetime, project: str | None, limit: PrivacyBudget | None
    ) -> str:
        """Write down a release before its noise is drawn, and return its id; the disk has it on return.

        Args:
            budget: ε and δ of the release.
            examples: how many texts it is about.
            now: the time.
            project: for which project, where that is known.
            limit: what the project's policy gives for all releases together.

        Raises:
            PrivacyBudgetExceededError: with this release the project's would exceed the limit; nothing was written.
            ConfigurationError: the home cannot be written, or the file is no ledger.
        """
        release = Release(secrets.token_hex(16), project, now, budget, examples)
        with self._holding() as connection:
            require_within((known for known in _releases(connection) if known.project == project), budget, limit)
            _insert(connection, release)
        return release.id

    def count(self, noised: Noised, *, now: datetime, project: str, limit: PrivacyBudget | None) -> None:
        """Count noised statistics for a project before they are sent; those that count for it already do so once.

        A release that this ledger does not know was made on another machine, and is written down now.

        Raises:
            PrivacyBudgetExceededError: the project's releases would exceed the limit; nothing was written.
            ConfigurationError: as above.
        """
        with self._holding() as connection:
            known = list(_releases(connection))
            if any((release.id, release.project) == (noised.release, project) for release in known):
                return
            require_within((release for release in known if release.project == project), noised.budget, limit)
            connection.execute("DELETE FROM releases WHERE id = ? AND project = ?", (noised.release, _NO_PROJECT))
            _insert(connection, Release(noised.release, project, now, noised.budget, noised.examples))

    @contextmanager
    def _holding(self) -> Iterator[sqlite3.Connection]:
        """Hold the ledger alone; what was written is on the disk when the block ends, or nothing of it is."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE_SECONDS, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")  # the folder's entry is on the disk, too
                connection.execute("BEGIN IMMEDIATE")
                try:
                    connection.execute(_TABLE)
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except (OSError, sqlite3.Error, ValueError) as error:
            msg = (
                f"the privacy ledger {self.path} cannot be read or written: {error}. Do not delete it: nothing else "
                "tells what was released"
            )
            raise ConfigurationError(msg) from error


def spent(releases: Iterable[Release]) -> float:
    """Return the μ of releases together: all about the same texts, as far as anybody knows."""
    return compose(release.mu for release in releases)


def require_within(releases: Iterable[Release], budget: PrivacyBudget, limit: PrivacyBudget | None) -> None:
    """Require that releases and one more stay within a limit.

    Raises:
        PrivacyBudgetExceededError: they do not; the message says what is left.
    """
    if limit is None:
        return
    before, allowed = spent(releases), mu_of(limit)
    if compose((before, mu_of(budget))) <= allowed * (1 + _ROUNDING):
        return
    left = epsilon_of(max(allowed**2 - before**2, 0.0) ** 0.5, limit.delta)
    msg = (
        f"a release of {budget} would exceed what the policy gives for all together, {limit}: at that δ, "
        f"ε = {left:.3g} is left. {COVERS}"
    )
    raise PrivacyBudgetExceededError(msg, left=left)


def _releases(connection: sqlite3.Connection) -> Iterator[Release]:
    rows = connection.execute("SELECT id, project, at, epsilon, delta, examples FROM releases ORDER BY rowid")
    for identifier, project, at, epsilon, delta, examples in rows:
        budget = PrivacyBudget(epsilon=epsilon, delta=delta)
        yield Release(identifier, project or None, datetime.fromisoformat(at), budget, examples)


def _insert(connection: sqlite3.Connection, release: Release) -> None:
    connection.execute(
        "INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?)",
        (
            release.id,
            release.project or _NO_PROJECT,
            release.at.isoformat(),
            release.budget.epsilon,
            release.budget.delta,
            release.examples,
        ),
    )
