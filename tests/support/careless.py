"""A store that takes any bytes by any address, as some S3 servers do: the real one behind a way that looks at nothing.

What a signed address promises is thrown away: a put goes on under a signature that is made here, without a checksum.
Where something lies already is left to the store.
"""

import http.client
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from support.deployment import HOST
from support.s3 import ACCESS_KEY, SECRET_KEY, Store

_OF_A_CONNECTION = {"connection", "transfer-encoding", "keep-alive"}


@contextmanager
def careless(store: Store) -> Iterator[int]:
    """Open the way; yield its port."""

    class Way(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            target, headers = self.path, {name.lower(): value for name, value in self.headers.items()}
            if self.command == "PUT" and "X-Amz-Signature=" in target:
                target = urlsplit(target).path
                headers = _signed(f"http://{headers['host']}{target}", content, headers.get("if-none-match"))
            with closing(http.client.HTTPConnection(HOST, store.port, timeout=30)) as connection:
                connection.request(self.command, target, content or None, headers)
                answer = connection.getresponse()
                answered = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OF_A_CONNECTION | {"content-length"}:
                    self.send_header(name, value)
            length = answer.getheader("content-length") if self.command == "HEAD" else len(answered)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(answered)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        do_GET = do_HEAD = do_PUT = do_POST = pass_on  # noqa: N815 - the library's names

    with ThreadingHTTPServer((HOST, 0), Way) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _signed(url: str, content: bytes, if_none_match: str | None) -> dict[str, str]:
    headers = {} if if_none_match is None else {"if-none-match": if_none_match}
    request = AWSRequest(method="PUT", url=url, data=content, headers=headers)
    S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(request)
    return dict(request.headers) | {"host": urlsplit(url).netloc}
