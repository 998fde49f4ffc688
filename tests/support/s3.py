"""A stand-in for S3, since no bucket can be had here: moto, a server that speaks its protocol, in memory."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.deployment import HOST, kill, wait_until

BUCKET = "models"


@contextmanager
def s3(log: Path) -> Iterator[dict[str, str]]:
    """Run the server with one empty bucket; yield the variables by which a client finds it."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    url = f"http://{HOST}:{port}"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)], stdout=stream, stderr=stream
        )

    def has_bucket() -> bool:
        assert server.poll() is None, log.read_text(errors="replace")
        try:
            create = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")  # noqa: S310 - loopback
            urllib.request.urlopen(create).close()  # noqa: S310 - loopback
        except urllib.error.URLError:
            return False
        return True

    try:
        wait_until(has_bucket, seconds=60, what="the S3 server's start")
        yield {
            "AWS_ENDPOINT": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
    finally:
        kill(server)
