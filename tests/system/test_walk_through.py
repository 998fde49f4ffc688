"""The README's "Use it", typed at terminals as it is written; nothing is changed but the server's address."""

import builtins
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import gramfuse
from support import tiny
from support.checkout import REPOSITORY
from support.collaboration import measure
from support.deployment import HOST, Desk, clean_environment, kill, wait_until
from support.terminal import type_command

SECTION = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Use it")[2].partition("### Deploy")[0]
TOKEN = re.compile(r"\bgf_\w+")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


_, SERVER, ORGANIZATIONS, COORDINATOR, PARTICIPANT, MERGE, ANSWERING, LOCAL = blocks("sh")
POLICY, PARTICIPATION, RECIPE = blocks("yaml")
(PYTHON,) = blocks("python")


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


@pytest.fixture
def tokens(tmp_path: Path, port: int) -> Iterator[dict[str, str]]:
    """The operator's part: a server, a worker, and a token for each organization."""
    folder = tmp_path / "operator"
    folder.mkdir()
    initialize, *services = SERVER.replace("8080", str(port)).splitlines()
    environment = clean_environment()
    printed = succeed(initialize, folder, environment)
    assert TOKEN.search(printed)
    running = [subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=folder, env=environment) for line in services]
    try:
        wait_until(lambda: _listens(port), seconds=60, what="the API's start")
        found = {"receipt key": printed.split("receipt key")[1].split()[0]}
        for line in ORGANIZATIONS.splitlines():
            printed = succeed(line, folder, environment)
            if " token " in line:
                organization = line.split("--org ")[1].split()[0]
                found[organization] = TOKEN.search(printed)[0]
        assert (folder / ".gramfuse-server" / "gramfuse.sqlite").exists()
        yield found
    finally:
        for service in running:
            kill(service)


def _listens(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex((HOST, port)) == 0


def succeed(line: str, folder: Path, environment: dict[str, str], *, token: str = "") -> str:
    """Type a line at a terminal, answer its questions with the token or a yes; return what was printed."""
    typed = type_command(line, folder=folder, environment=environment, answers={"Token: ": token, "[y/N] ": "y"})
    assert typed.exit_code == 0, f"{line}\n{typed.output}"
    return typed.output


def test_the_configuration_for_answers_is_one_that_answers_what_it_says(tmp_path):
    name = ANSWERING.split()[2]
    (tmp_path / name).write_text(PARTICIPATION, encoding="utf-8")
    found = gramfuse.read_participation(tmp_path / name)
    assert found.kinds == {"evaluate", "gram", "head", "refit", "calibration"}
    assert found.allow == ("evaluate",)


def test_the_walk_through_works_as_it_is_written(tmp_path, tokens, port, monkeypatch):
    url = f"http://{HOST}:{port}"
    desks = {}
    for name in ("acme", "globex", "initech"):
        (tmp_path / name).mkdir()
        desks[name] = Desk(name, tmp_path / name, url, "")

    def follow(desk: Desk, commands: str, folder: Path | None = None) -> list[str]:
        """Type a block's lines; where it says to fine-tune, that is done."""
        printed = []
        for line in commands.splitlines():
            if line.startswith("#"):
                tune(desk)
            else:
                line = line.replace("https://merge.example.org", url)  # noqa: PLW2901 - the one change
                printed.append(succeed(line, folder or desk.folder, desk.environment, token=tokens[desk.name]))
        return printed

    acme, globex, initech = desks.values()
    tiny.write_base(acme.folder / "base")
    (acme.folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    follow(acme, COORDINATOR)

    printed = follow(globex, PARTICIPANT)
    assert f"receipt key {tokens['receipt key']} is pinned" in printed[0]
    assert "Task heads leave" in printed[1]
    assert "Leaves this machine" in printed[-1]
    assert "accepted: contribution" in printed[-1]
    follow(acme, "\n".join(PARTICIPANT.splitlines()[1:3]))
    follow(initech, "\n".join(PARTICIPANT.splitlines()[:3]))
    tune(initech)
    with gramfuse.Client(home=initech.folder / "home") as client:
        client.push("acme.tweets", model=initech.folder / "tuned", statistics=measure(initech), confirm=lambda _: True)

    # The coordinator does it in Python,
    tune(acme)
    shown: list[str] = []
    monkeypatch.chdir(acme.folder)
    monkeypatch.setenv("GRAMFUSE_HOME", acme.environment["GRAMFUSE_HOME"])
    monkeypatch.setattr(builtins, "input", lambda question: shown.append(question) or "y")
    model = AutoModelForSequenceClassification.from_pretrained("tuned")
    exec(compile(PYTHON, "README.md", "exec"), {"model": model, "loader": batches(acme.folder)})  # noqa: S102 - ours
    assert "Leaves this machine" in shown[0]
    AutoModelForSequenceClassification.from_pretrained(acme.folder / "merged")

    # and in another folder on the command line: the same job, since it has the same id.
    (elsewhere := tmp_path / "elsewhere").mkdir()
    printed = follow(acme, MERGE, elsewhere)
    assert "initech: policy accepted, contribution accepted" in printed[0]
    assert "verified: acme.tweets/regmean-1" in printed[-1]

    # Without a server
    for name, desk in (("tuned-a", globex), ("tuned-b", initech)):
        shutil.copytree(desk.folder / "tuned", acme.folder / name)
        shutil.copy(desk.folder / "statistics.safetensors", acme.folder / name)
    (acme.folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    follow(acme, LOCAL)
    AutoModelForSequenceClassification.from_pretrained(acme.folder / "merged-locally")


def tune(desk: Desk) -> None:
    seed = len(desk.name)
    tiny.write_tuned(desk.folder / "pulled", desk.folder / "tuned", seed=seed)
    tiny.write_texts(desk.folder / "mine.jsonl", count=120, seed=seed)
    shutil.copy(desk.folder / "mine.jsonl", desk.folder / "texts.jsonl")


def batches(folder: Path) -> list[dict[str, object]]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tuned")
    texts = (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [dict(tokenizer(texts[start : start + 40], padding=True, return_tensors="pt")) for start in (0, 40, 80)]
