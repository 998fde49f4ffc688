"""Importing without searching for garbage: the search is back on afterwards, whatever happened."""

import gc

import pytest

from gramfuse_shared.imports import imports_kept


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()
    gc.enable()


def test_what_was_made_within_is_not_searched_for_garbage_afterwards():
    before = gc.get_freeze_count()
    with imports_kept():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_the_search_is_on_again_after_an_import_that_failed():
    with pytest.raises(ModuleNotFoundError), imports_kept():
        import no_such_module  # noqa: F401, PLC0415 - on purpose
    assert gc.isenabled()
