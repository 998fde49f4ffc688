"""The doctor's checks, each with what it finds where all is well and where it is not."""

import os
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from gramfuse_server import receipt_key
from gramfuse_server.doctor.clocks import check_clock
from gramfuse_server.doctor.command import table, tell
from gramfuse_server.doctor.configuration import check_key, check_settings
from gramfuse_server.doctor.database import Work, check_schema, check_versions, check_workers
from gramfuse_server.doctor.device import check_device
from gramfuse_server.doctor.examination import examine
from gramfuse_server.doctor.findings import Finding, failed, masked, ok, secrets_of, warning, worst
from gramfuse_server.settings import Settings
from gramfuse_server.tables import WorkerRow
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.limits import GIB
from support.nobody import NOBODY

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=5)


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(server_home=tmp_path)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_say_where_everything_lies_without_a_password(tmp_path):
    settings = Settings(
        server_home=tmp_path,
        database_url=SecretStr("postgresql://user:hunter2@db/gramfuse"),
        blobs="https://key:s3cret@store.example/bucket?signature=abcdef",
    )
    found = check_settings(settings, ["PATH", "GRAMFUSE_DATABASE_URL"])
    assert found.verdict == "ok"
    assert "postgresql://user:***@db/gramfuse" in found.found
    assert "https://store.example/bucket" in found.found
    assert not [word for word in ("hunter2", "s3cret", "abcdef") if word in found.found]


def test_a_misspelt_variable_is_told_with_the_setting_that_was_meant(settings):
    found = check_settings(settings, ["GRAMFUSE_DATABSE_URL", "GRAMFUSE_HOME", "GRAMFUSE_URL", "GRAMFUSE_ELSE"])
    assert found.verdict == "warning"
    assert "GRAMFUSE_DATABSE_URL is no setting, GRAMFUSE_DATABASE_URL is" in found.found
    assert "GRAMFUSE_ELSE" not in found.found
    assert "GRAMFUSE_HOME" not in found.found


def test_settings_that_cannot_be_read_end_the_examination_with_the_variable():
    def load() -> Settings:
        raise ConfigurationError("GRAMFUSE_PART_BYTES must be a whole number, not hunter2")

    (found,) = examine(load, {"SOME_PASSWORD": "hunter2"})
    assert (found.name, found.verdict) == ("settings", "failed")
    assert found.found == "GRAMFUSE_PART_BYTES must be a whole number, not ***"


# --- receipt key ------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path) -> Path:
    receipt_key.create_key(tmp_path / "receipt-key.pem")
    return tmp_path / "receipt-key.pem"


def test_a_receipt_key_as_init_makes_it_is_well(key):
    found = check_key(key, user=os.geteuid())
    assert found.verdict == "ok"
    assert f"mode 0600, owner {os.geteuid()}" in found.found
    assert "PRIVATE" not in found.found


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o400, "ok"), (0o640, "warning"), (0o644, "failed"), (0o660, "failed"), (0o602, "failed")]
)
def test_who_else_may_read_or_change_the_receipt_key_is_told_with_the_command(key, mode, verdict):
    key.chmod(mode)
    found = check_key(key, user=os.geteuid())
    assert found.verdict == verdict
    assert ("chmod 600" in found.advice) == (verdict != "ok")


def test_a_rotation_that_was_interrupted_is_told(key):
    receipt_key.create_next_key(key)
    found = check_key(key, user=os.geteuid())
    assert found.verdict == "warning"
    assert "gramfuse-server key rotate" in found.advice


def test_a_receipt_key_that_is_missing_or_none_is_told(key):
    assert "gramfuse-server init" in check_key(key.with_name("other.pem"), user=0).advice
    key.write_text("nonsense")
    found = check_key(key, user=0)
    assert found.verdict == "failed"
    assert "backup" in found.advice


def test_a_receipt_key_that_is_not_the_databases_fails_and_one_that_it_handed_over_to_is_well(key):
    user, own = os.geteuid(), receipt_key.load_public_keys(key).present
    assert check_key(key, user=user, own=own).verdict == "ok"
    other = receipt_key.next_path(key)
    receipt_key.create_next_key(key)
    begun = check_key(key, user=user, own=receipt_key.next_public_key(key))
    assert (begun.verdict, "key rotate` or `key replace` again" in begun.advice) == ("failed", True)
    receipt_key.rotate(key, now=NOW)
    assert not other.exists()
    assert check_key(key, user=user, own=own).verdict == "ok"
    receipt_key.handovers_path(key).unlink()
    found = check_key(key, user=user, own=own)
    assert (found.verdict, own in found.found, "copy the key" in found.advice) == ("failed", True, True)
    key.unlink()
    found = check_key(key, user=user, own=own)
    assert (found.verdict, own in found.found, "copy the key" in found.advice) == ("failed", True, True)


def test_a_receipt_key_of_another_user_is_told(key):
    if os.geteuid() == 0:
        os.chown(key, NOBODY, -1)
    assert check_key(key, user=os.geteuid() + 1).verdict == "warning"


# --- schema, clocks, workers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revision", "verdict", "advice"),
    [
        ("0007", "ok", ""),
        ("0006", "failed", "gramfuse-server db upgrade"),
        (None, "failed", "gramfuse-server init"),
        ("0008", "failed", "install the version"),
    ],
)
def test_a_schema_of_another_version_fails_with_the_command_that_helps(revision, verdict, advice):
    found = check_schema(revision, "0007")
    assert found.verdict == verdict
    assert advice in found.advice


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(0, "ok"), (2.9, "ok"), (-2.9, "ok"), (4, "warning"), (-299, "warning"), (301, "failed")]
)
def test_clocks_may_differ_by_seconds_and_no_more(seconds, verdict):
    found = check_clock("clock", NOW + timedelta(seconds=seconds), NOW)
    assert found.verdict == verdict
    if verdict != "ok":
        assert ("behind" if seconds < 0 else "ahead") in found.found
        assert "NTP" in found.advice


def worker(name="w1", *, age=0.0, version="1") -> WorkerRow:
    beat = NOW - timedelta(seconds=age)
    return WorkerRow(id=name, host="h", device="cpu (2 threads)", version=version, heartbeat_at=beat, stopped_at=None)


def test_workers_that_are_alive_are_named():
    found = check_workers(Work([worker(), worker("w2", age=3), worker("w3", age=60)], waiting=2), NOW, LEASE)
    assert found.verdict == "ok"
    assert found.found == "2 alive: w1 on cpu (2 threads), w2 on cpu (2 threads); 2 uploads or jobs wait"


@pytest.mark.parametrize(("waiting", "verdict"), [(0, "warning"), (1, "failed")])
def test_no_worker_is_a_warning_and_a_failure_where_work_waits(waiting, verdict):
    for workers in ([], [worker(age=60)]):
        found = check_workers(Work(workers, waiting), NOW, LEASE)
        assert found.verdict == verdict
        assert "none is alive" in found.found
        assert "gramfuse-server worker" in found.advice
        assert ("w1, 60 s ago" in found.found) == bool(workers)


def test_workers_of_another_version_are_told_and_dead_ones_do_not_count():
    workers = Work([worker(version="2"), worker("w2", version="1", age=60)], waiting=0)
    found = check_versions(workers, NOW, LEASE, version="1")
    assert (found.verdict, "this is 1, workers run 2" in found.found) == ("warning", True)
    assert check_versions(workers, NOW, LEASE, version="2").verdict == "ok"
    assert check_versions(Work([], 0), NOW, LEASE, version="2").verdict == "ok"


# --- device -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_torch(monkeypatch):
    """A torch that sees what a test says: no machine of the suite has every device."""
    torch = pytest.importorskip("torch")

    def see(*, available=False, built="13.0", memory=None):
        def mem_get_info(_):
            if memory is None:
                raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nmore lines")
            return memory

        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")

    return see


def test_without_torch_the_device_is_nobodys_business(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = check_device("cuda")
    assert (found.verdict, "extra `worker`" in found.found) == ("ok", True)


@pytest.mark.parametrize(
    ("choice", "built", "why"),
    [
        ("cpu", "13.0", "GRAMFUSE_DEVICE says so"),
        ("auto", None, "built without CUDA"),
        ("auto", "13.0", "sees no CUDA device"),
    ],
)
def test_a_cpu_is_told_with_its_reason(fake_torch, choice, built, why):
    fake_torch(built=built)
    found = check_device(choice, drivers=())
    assert found.verdict == "ok"
    assert found.found.startswith("cpu, ")
    assert found.found.endswith(why) or f"because this torch is {why}" in found.found


def test_a_cpu_beside_an_nvidia_driver_is_a_warning_unless_it_was_chosen(fake_torch, tmp_path):
    fake_torch()
    assert check_device("auto", drivers=(tmp_path,)).verdict == "warning"
    assert check_device("cpu", drivers=(tmp_path,)).verdict == "ok"


def test_cuda_that_was_asked_for_and_is_not_there_fails(fake_torch):
    fake_torch()
    assert check_device("cuda", drivers=()).verdict == "failed"


def test_a_cuda_device_is_told_with_its_memory_and_a_busy_one_fails(fake_torch):
    fake_torch(available=True, memory=(7 * GIB, 80 * GIB))
    assert check_device("auto").found == "cuda, Test GPU, 7.0 of 80.0 GiB free"
    fake_torch(available=True)
    busy = check_device("auto")
    assert (busy.verdict, busy.found) == (
        "failed",
        "CUDA does not start: CUDA error: all CUDA-capable devices are busy",
    )


# --- what is printed --------------------------------------------------------------------------------------------------


def test_secrets_are_masked_wherever_they_come_from(tmp_path):
    variables = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "AWS_SESSION_TOKEN": "FwoGZXIvYXdz",
        "GRAMFUSE_DB_PASSWORD": "hunter2",
        "HTTPS_PROXY": "http://user:proxypass@proxy:3128",
        "SHORT_TOKEN": "a",
        "PATH": "/bin",
    }
    settings = Settings(server_home=tmp_path, database_url=SecretStr("postgresql://u:other%21pass@db/x"))
    said = "wJalrXUtnFEMI FwoGZXIvYXdz hunter2 proxypass other%21pass a /bin"
    (found,) = masked([Finding("x", "failed", said, said)], secrets_of(variables, settings))
    assert found.found == found.advice == "*** *** *** *** *** a /bin"


def test_a_secret_within_another_leaves_no_rest():
    (found,) = masked([ok("x", "hunter2hunter2")], {"hunter2", "hunter2hunter2"})
    assert found.found == "***"


def test_the_worst_verdict_counts():
    good, bad, worse = ok("a", ""), warning("b", "", "x"), failed("c", "", "x")
    assert [worst([]), worst([good]), worst([bad, good]), worst([good, worse, bad])] == [
        "ok", "ok", "warning", "failed",
    ]  # fmt: skip


def test_the_table_wraps_at_the_terminals_width_and_never_otherwise():
    findings = [ok("short", "fine"), failed("a longer name", "word " * 30, "do " * 30)]
    assert len(table(findings, width=None)) == 3
    wrapped = table(findings, width=60)
    assert len(wrapped) > 6
    assert all(line.startswith(" ") for line in wrapped[2:])


@pytest.mark.parametrize(("warnings", "told"), [(0, "0 warnings"), (1, "1 warning"), (2, "2 warnings")])
def test_the_last_line_counts_what_was_found(warnings, told, capsys):
    tell([ok("disk", "fine"), *[warning("clock", "late", "set it")] * warnings], "gramfuse/doctor/1")
    assert capsys.readouterr().out.splitlines()[-1] == f"0 failed, {told}, 1 ok"


def test_a_key_file_made_by_init_is_closed_to_others(key):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
