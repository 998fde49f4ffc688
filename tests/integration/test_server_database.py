"""Sessions: what one leaves behind is not what the next one sees."""

import contextlib
from datetime import UTC, datetime

import pytest
from sqlalchemy import delete, func, insert, select

from gramfuse_server.database import open_database, reading, snapshot, transaction
from gramfuse_server.tables import OrganizationRow


@pytest.fixture
def database(new_database_url):
    opened = open_database(new_database_url())
    yield opened
    opened.close()


def count(database) -> int:
    with reading(database) as session:
        return session.scalar(select(func.count()).select_from(OrganizationRow))


def add(database, *names: str) -> None:
    with transaction(database) as session:
        for name in names:
            session.execute(insert(OrganizationRow).values(name=name, created_at=datetime.now(UTC)))


def test_a_snapshot_sees_one_moment_and_whoever_has_its_connection_next_the_present(database):
    for number in range(30):  # more than connections are pooled
        with snapshot(database) as session:
            counted = select(func.count()).select_from(OrganizationRow)
            assert session.scalar(counted) == number
            add(database, f"meanwhile-{number}")
            assert session.scalar(counted) == number
        with reading(database) as session:
            assert session.scalar(counted) == number + 1
            add(database, f"later-{number}")
            if session.get_bind().dialect.name == "postgresql":
                assert session.scalar(counted) == number + 2
        with transaction(database) as session:
            session.execute(delete(OrganizationRow).where(OrganizationRow.name == f"later-{number}"))


@pytest.mark.parametrize("open_session", [reading, transaction])
def test_an_error_amid_a_result_leaves_no_old_snapshot_to_the_next_reader(database, open_session):
    add(database, "first", "second", "third")
    before = count(database)
    kept = []  # as a log or a debugger keeps an error, and with it the result that was not read to its end
    for number in range(30):  # more than connections are pooled
        with contextlib.suppress(RuntimeError), open_session(database) as session:
            result = session.execute(select(OrganizationRow.__table__))
            kept.append((result.fetchone(), result))
            raise RuntimeError
        add(database, f"later-{number}")
        assert count(database) == before + number + 1
