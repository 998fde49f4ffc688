"""The audit log's chain: edited, removed, added and reordered rows are found."""

import threading

import pytest
from sqlalchemy import text

from gramfuse_server import audit_log
from gramfuse_server.clock import system_clock
from gramfuse_server.database import reading, transaction
from gramfuse_shared.errors import AuditChainBrokenError


@pytest.fixture
def database(world):
    for number in range(6):
        with transaction(world.services.database) as session:
            append(session, number)
    return world.services.database


def append(session, number):
    audit_log.append(
        session,
        at=system_clock(),
        organization="acme",
        token="t",
        action="test",
        subject=str(number),
        details={"n": number, "text": "ü"},
    )


def change(database, *statements):
    with transaction(database) as session:
        for statement in statements:
            session.execute(text(statement))


def verify(database):
    with reading(database) as session:
        return audit_log.verify(session)


def test_an_untouched_chain_verifies_and_its_end_depends_on_every_row(database):
    rows, digest = verify(database)
    assert rows == 6
    with transaction(database) as session:
        append(session, 6)
    longer, other = verify(database)
    assert (longer, other != digest) == (7, True)


@pytest.mark.parametrize(
    "edit",
    ["subject = 'x'", "details = '{}'", "organization = NULL", "token = 'other'", "action = 'x'", "at = '2020-01-01'"],
)
def test_an_edited_row_is_found(database, edit):
    change(database, f"UPDATE audit_log SET {edit} WHERE sequence = 3")  # noqa: S608 - the edits above
    with pytest.raises(AuditChainBrokenError, match="row 3 of the audit log was edited"):
        verify(database)


def test_a_removed_row_is_found(database):
    change(database, "DELETE FROM audit_log WHERE sequence = 3")
    with pytest.raises(AuditChainBrokenError, match="row 3"):
        verify(database)


def test_a_removed_row_is_found_when_the_others_move_up(database):
    change(
        database,
        "DELETE FROM audit_log WHERE sequence = 3",
        "UPDATE audit_log SET sequence = 3 WHERE sequence = 4",
        "UPDATE audit_log SET sequence = 4 WHERE sequence = 5",
        "UPDATE audit_log SET sequence = 5 WHERE sequence = 6",
    )
    with pytest.raises(AuditChainBrokenError, match="row 3"):
        verify(database)


def test_rows_removed_at_the_end_are_found(database):
    change(database, "DELETE FROM audit_log WHERE sequence > 4")
    with pytest.raises(AuditChainBrokenError, match="ends at row 4"):
        verify(database)


def test_a_noted_head_finds_rows_that_were_cut_off_together_with_the_chains_end(database):
    noted = verify(database)
    with reading(database) as session:
        assert audit_log.verify(session, noted=noted) == noted
    change(
        database,
        "DELETE FROM audit_log WHERE sequence > 4",
        "UPDATE audit_head SET sequence = 4, digest = (SELECT digest FROM audit_log WHERE sequence = 4)",
    )
    assert verify(database)[0] == 4  # the chain alone does not tell
    with reading(database) as session, pytest.raises(AuditChainBrokenError, match="ends at row 4, but row 6 was noted"):
        audit_log.verify(session, noted=noted)


def test_a_noted_head_finds_a_chain_that_was_written_anew(database):
    noted = verify(database)
    change(database, "DELETE FROM audit_log", "DELETE FROM audit_head")
    for number in range(9):
        with transaction(database) as session:
            append(session, 100 + number)
    assert verify(database)[0] == 9
    with reading(database) as session, pytest.raises(AuditChainBrokenError, match=r"row 6 .* written anew"):
        audit_log.verify(session, noted=noted)


def test_a_noted_head_holds_when_rows_came_after_it(database):
    noted = verify(database)
    with transaction(database) as session:
        append(session, 7)
    with reading(database) as session:
        assert audit_log.verify(session, noted=noted)[0] == 7


def test_reordered_rows_are_found(database):
    change(
        database,
        "UPDATE audit_log SET sequence = 100 WHERE sequence = 2",
        "UPDATE audit_log SET sequence = 2 WHERE sequence = 3",
        "UPDATE audit_log SET sequence = 3 WHERE sequence = 100",
    )
    with pytest.raises(AuditChainBrokenError, match="row 2"):
        verify(database)


def test_appends_from_many_threads_make_one_unbroken_chain(database):
    failures = []

    def work(worker):
        try:
            for number in range(10):
                with transaction(database) as session:
                    append(session, worker * 100 + number)
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert verify(database)[0] == 6 + 60


def test_a_transaction_that_fails_leaves_no_row(database):
    with pytest.raises(RuntimeError), transaction(database) as session:  # noqa: PT012 - the append comes before
        append(session, 9)
        raise RuntimeError
    assert verify(database)[0] == 6
