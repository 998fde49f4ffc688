"""The command line as one organization types it."""

import json

from gramfuse.cli.main import main
from support.client_world import Site


class Shell:
    """Runs command lines as one organization, and keeps what they print."""

    def __init__(self, site: Site, monkeypatch, capsys) -> None:
        self.site, self._monkeypatch, self._capsys = site, monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setenv("COLUMNS", "200")
        self._monkeypatch.setenv("GRAMFUSE_HOME", str(self.site.home.path))
        self._monkeypatch.setattr("gramfuse.cli.session.open_client", self.site.client)
        self._capsys.readouterr()
        code = main([*arguments])
        printed = self._capsys.readouterr()
        return code, _without_log(printed.out), printed.err

    def json(self, *arguments: str):
        code, out, err = self(*arguments, "--format", "json")
        assert code == 0, err
        return json.loads(out)


def _without_log(text: str) -> str:
    """The API runs in this process and logs to the same stream."""
    return "".join(line for line in text.splitlines(keepends=True) if "request_id=" not in line)
