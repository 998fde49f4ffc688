"""A stand-in for S3, since no bucket can be had here: moto, a server that speaks its protocol, in memory.

By itself it checks no signature and no checksum. So `strict_s3` stands before it, but for one bucket.
"""

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
CARELESS = "careless"
"""A bucket that takes any signed address and any bytes."""


@contextmanager
def s3(log: Path) -> Iterator[dict[str, str]]:
    """Run the server with empty buckets; yield the variables by which a client finds it."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    url = f"http://{HOST}:{port}"
    program = Path(__file__).with_name("strict_s3.py")
    with log.open("wb") as stream:
        server = subprocess.Popen([sys.executable, program, HOST, str(port), CARELESS], stdout=stream, stderr=stream)

    def has_buckets() -> bool:
        assert server.poll() is None, log.read_text(errors="replace")
        try:
            for bucket in (BUCKET, CARELESS):
                create = urllib.request.Request(f"{url}/{bucket}", method="PUT")  # noqa: S310 - loopback
                urllib.request.urlopen(create).close()  # noqa: S310 - loopback
        except urllib.error.URLError:
            return False
        return True

    try:
        wait_until(has_buckets, seconds=60, what="the S3 server's start")
        yield {
            "AWS_ENDPOINT": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
    finally:
        kill(server)
