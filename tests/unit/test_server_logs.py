"""What stands in the logs: whose request or job a line is of, and no secret, whoever worded it."""

import logging

import pytest
import structlog

from gramfuse_server.logs import mask_secrets
from gramfuse_server.merging.attempts import Attempt
from gramfuse_shared.errors import FileUnreadableError
from support.log_lines import logs, parsed

TOKEN = "gf_" + "0123456789abcdef" + "_" + "5" * 64


def fail_with_secrets():
    token = TOKEN  # a local variable, which a traceback with variables would show
    raise ValueError(f"could not ask postgresql://user:hunter2@db/x with {token}")


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_masked_in_what_libraries_and_tracebacks_say(form):
    with logs(form) as written:
        log_secrets()
    said = written.getvalue()
    assert not [secret for secret in ("5" * 64, "hunter2", "AKIA", "0a1b2c") if secret in said]
    assert said.count("gf_0123456789abcdef_***") >= 4
    assert "//user:***@proxy" in said
    assert "&x=1" in said
    assert "Traceback" in said


def log_secrets():
    logging.getLogger("some.library").warning("sent Bearer %s to http://user:hunter2@proxy:1", TOKEN)
    structlog.get_logger("gramfuse_server.x").info(
        "asked", url="https://b.s3.example/k?X-Amz-Credential=AKIA%2Fx&X-Amz-Signature=0a1b2c&x=1", header=TOKEN
    )
    try:
        fail_with_secrets()
    except ValueError:
        structlog.get_logger("gramfuse_server.x").exception("failed")
        logging.getLogger("some.library").exception("failed as well")


def test_a_library_that_writes_what_it_signs_is_kept_quiet_whatever_the_servers_level():
    with logs(level="debug") as written:
        logging.getLogger("botocore.auth").debug("Signature:\n0a1b2c")
        logging.getLogger("httpx").info("HTTP Request: PUT https://b.s3.example/k?X-Amz-Signature=0a1b2c")
        logging.getLogger("some.library").debug("something else")
    assert "something else" in written.getvalue()
    assert "0a1b2c" not in written.getvalue()


def test_what_only_resembles_a_secret_stays():
    for line in ("http://127.0.0.1:8080/x@y", "12:30:00 a@b", "gf_0123456789abcdef alone", "s3://bucket/a:b", ""):
        assert mask_secrets(line) == line


def test_json_lines_have_time_level_logger_and_what_is_bound():
    with logs() as written, structlog.contextvars.bound_contextvars(request_id="abc"):
        structlog.get_logger("gramfuse_server.x").info("seen", bytes=3)
        logging.getLogger("some.library").warning("too")
    ours, theirs = parsed(written.getvalue())
    assert (ours["event"], ours["bytes"], ours["level"], ours["logger"]) == ("seen", 3, "info", "gramfuse_server.x")
    assert ours["request_id"] == theirs["request_id"] == "abc"
    assert ours["timestamp"].endswith("Z")


class FailingMerger:
    """Of a merger, what the border of an attempt calls."""

    worker = "w1"

    def fail(self, _, error, **__):
        structlog.get_logger("gramfuse_server.x").warning("attempt failed", code=error.code)


@pytest.mark.parametrize("task", [None, 2])
def test_every_line_of_an_attempt_says_whose_it_is_and_the_next_one_does_not(task):
    pytest.importorskip("torch")
    from gramfuse_server.merging.workflows import _bounded  # noqa: PLC0415 - needs torch

    def work():
        logging.getLogger("some.library").warning("within")
        raise FileUnreadableError("the disk is gone")

    def crash():
        raise RuntimeError("a bug")

    attempt = Attempt("acme.tweets", "regmean-1", 3)
    with logs() as written:
        for broken in (work, crash):
            _bounded(FailingMerger(), attempt, broken, task=task)
        structlog.get_logger("gramfuse_server.x").info("afterwards")
    *lines, last = parsed(written.getvalue())
    assert [line["event"] for line in lines] == ["within", "attempt failed", "attempt crashed", "attempt failed"]
    for line in lines:
        whose = (line["worker"], line["project"], line["job"], line["attempt"], line.get("task"))
        assert whose == ("w1", "acme.tweets", "regmean-1", 3, task)
    assert "project" not in last
