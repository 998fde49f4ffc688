"""Which tests run in one process of pytest-xdist: those of one database, those in a browser, else those of one file.

pytest-xdist has `--dist loadgroup` for this, but up to 3.8 it marks groups in an attribute that pytest 9.2 no longer
reads, so that every process starts everything.
"""

from xdist.scheduler import LoadScopeScheduling

DATABASES = ("sqlite", "postgresql")


class ByDatabase(LoadScopeScheduling):
    """Sends tests with a database in their parameters where that database runs, those in a browser where it is."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, rest = nodeid.partition("::")
        parameters = rest.partition("[")[2]
        browser = "browser" if file.startswith("tests/browser/") else file
        return next((name for name in DATABASES if name in parameters), browser)
