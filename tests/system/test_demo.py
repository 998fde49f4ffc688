"""The README's `make demo`, in a fresh clone, small; and what is left of it when it is interrupted."""

import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from support.checkout import REPOSITORY, clone, make_environment
from support.deployment import wait_until

ROWS = ("btc-f", "btc-g", "btc-h", "simple-average", "regmean")
COLUMNS = ("btc-f", "btc-g", "btc-h", "wnut17")


@dataclass(frozen=True)
class Played:
    """A demo that came to its end, its service kept."""

    checkout: Path
    folder: Path
    output: str


def _left_behind(folder: Path) -> list[str]:
    """The programs that still run with this demo's environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DEMO_FOLDER") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(shlex.join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _url(output: str) -> tuple[str, int]:
    match = re.search(r"http://([\d.]+):(\d+)", output.partition("The service is up at ")[2])
    assert match, output
    return match[1], int(match[2])


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    checkout, folder = clone(tmp_path_factory.mktemp("clone") / "gramfuse"), tmp_path_factory.mktemp("demo")
    finished = subprocess.run(
        ["make", "demo"], cwd=checkout, env=make_environment(DEMO_SIZE="smoke", KEEP="1", DEMO_FOLDER=str(folder)),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
    )  # fmt: skip
    stop = re.search(r"Stop it: (kill [\d ]+)", finished.stdout)
    try:
        assert finished.returncode == 0, finished.stdout[-4000:]
        yield Played(checkout, folder, finished.stdout)
    finally:
        if stop:
            subprocess.run(shlex.split(stop[1]), check=False)
    # how to stop it was told truly
    wait_until(lambda: not _left_behind(folder), seconds=20, what=f"the end of {_left_behind(folder)}")


def test_the_demo_reports_every_model_on_every_domain(played):
    summary = json.loads((played.folder / "summary.json").read_text())
    assert tuple(summary["domains"]) == COLUMNS
    assert tuple(summary["scores"]) == ROWS
    for scores in summary["scores"].values():
        assert all(0 <= scores[column] <= 100 for column in COLUMNS)
        assert scores["average"] == pytest.approx(sum(scores[name] for name in ROWS[:3]) / 3, abs=0.02)
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    for title in ("btc-f's own model", "simple average", "RegMean", "wnut17"):
        assert title in played.output
    page = (played.folder / "report.html").read_text()
    assert "<svg" in page
    assert page.count("<tr") > len(ROWS)
    assert not re.search(r"""(src|href)=["']\w+:|url\(\w+:|@import""", page), "the page needs no other file"


def test_each_organization_has_its_own_home_token_and_statistics(played):
    tokens = {
        json.dumps(json.loads(path.read_text())["servers"]) for path in played.folder.glob("*/home/credentials.json")
    }
    assert len(tokens) == 3
    assert len(list(played.folder.glob("*/statistics.safetensors"))) == 3
    assert len([path for path in (played.folder / "cache").iterdir() if (path / "model.safetensors").exists()]) == 3
    # the commands are printed as a user would type them, and no token among them
    assert "btc-g$ gramfuse contribution push btc-f.tweets" in played.output
    assert not re.search(r"gf_[A-Za-z0-9]+_[A-Za-z0-9_-]{20,}", played.output)


def test_it_says_how_long_it_takes_and_how_long_each_stage_took(played):
    summary = json.loads((played.folder / "summary.json").read_text())
    assert "This takes about a minute" in played.output.partition("operator$")[0]
    for seconds in summary["seconds"].values():
        assert f"took {seconds:.1f} s" in played.output


def test_what_all_are_told_alike_is_printed_once(played):
    for once in ("Policy version 1, digest", "Leaves this machine"):
        assert played.output.count(once) == 1
        logs = [(played.folder / "logs" / f"{name}.log").read_text() for name in ROWS[1:3]]
        assert all(once in log for log in logs)
    for name in ROWS[:3]:  # the same commands all the same
        assert f"{name}$ gramfuse project join btc-f.tweets --accept-policy" in played.output
        assert f"{name} accepted version 1" in played.output
        assert re.search(rf"accepted: contribution [0-9a-f]{{64}} of {name}", played.output)


def test_the_folder_holds_what_its_readme_says_and_no_leftovers(played):
    promised = re.findall(r"^\| (`.*?) \|", (REPOSITORY / "examples" / "demo" / "README.md").read_text(), re.MULTILINE)
    names = {name.strip("/") for row in promised for name in re.findall(r"`([\w.-]+/?)`", row)}
    assert {path.name for path in played.folder.iterdir()} - {".gramfuse-demo"} <= names
    assert not list(played.folder.glob("cache/*.unfinished"))


def test_the_commands_that_it_tells_work_as_they_are_typed(played):
    told = played.output.partition("The service is up at ")[2]
    lines = [line.strip() for line in told.splitlines() if re.match(r"  GRAMFUSE_\w+=", line)]
    assert len(lines) == 2
    token, models = (
        subprocess.run(["bash", "-c", line], cwd=played.checkout, capture_output=True, text=True, check=True).stdout
        for line in lines
    )
    assert "regmean" in models
    with httpx.Client(base_url=re.search(r"http://\S+/dashboard", told)[0] + "/", follow_redirects=True) as browser:
        form = re.search(r'name="csrf" value="(\w+)"', browser.get("sign-in").text)[1]
        page = browser.post("sign-in", data={"token": token.strip(), "csrf": form})
        assert page.status_code == 200
        assert "btc-f.tweets" in page.text


def test_keep_leaves_the_service_up_and_nothing_else(played):
    left = _left_behind(played.folder)
    assert sorted(command.split("gramfuse-server ")[1].split()[0] for command in left) == ["serve", "worker"]
    connection = http.client.HTTPConnection(*_url(played.output), timeout=10)
    connection.request("GET", "/readyz")
    assert connection.getresponse().status == http.client.OK
    connection.close()
    # a second demo would pull the folder from under it
    again = _start(played.folder)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 1
    assert "stop it: kill " in output
    assert (played.folder / "summary.json").exists()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path, number, exit_code):
    demo = _start(tmp_path)

    def is_in_the_middle() -> bool:  # the API, the worker, and a command of a user beside the demo itself
        assert demo.poll() is None, demo.communicate()[0]
        return (tmp_path / "btc-f").exists() and len(_left_behind(tmp_path)) > 3

    wait_until(is_in_the_middle, seconds=120, what="the first user's command", pause=0.1)
    demo.send_signal(number)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == exit_code, output
    assert _left_behind(tmp_path) == []


def test_an_unknown_size_is_refused(tmp_path):
    demo = _start(tmp_path, size="huge")
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert "full, smoke" in output


def _start(folder: Path, *, size: str = "smoke") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "examples" / "demo" / "play.py")],
        cwd=folder, env=dict(os.environ) | {"DEMO_SIZE": size, "DEMO_FOLDER": str(folder)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
