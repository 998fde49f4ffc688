"""moto, made as strict with signed addresses as S3 says that it is: signature, time, headers, the bytes' SHA-256.

moto itself takes any address and any bytes, which is what a careless store does; both kinds are tested. Signatures are
computed anew by the one who made them, botocore, but over what arrived.
"""

import base64
import hashlib
import io
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

FORM = "%Y%m%dT%H%M%SZ"
SECRET = "test"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


class Strict:
    """Refuses before moto what S3 would, but for one careless bucket. Requests without a signed address pass."""

    def __init__(self, store: Callable[[Environ, StartResponse], Iterable[bytes]], careless: str) -> None:
        self._store = store
        self._careless = f"/{careless}/"

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        if "X-Amz-Signature" not in query or environ["PATH_INFO"].startswith(self._careless):
            return self._store(environ, start)
        sent = self._refusal_of_the_request(environ, query)
        content = b""
        if sent is None and environ["REQUEST_METHOD"] == "PUT":
            length = int(environ.get("CONTENT_LENGTH") or 0)
            content = environ["wsgi.input"].read(length)
            if len(content) < length:
                sent = "IncompleteBody"
            promised = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
            if promised and base64.b64encode(hashlib.sha256(content).digest()).decode() != promised:
                sent = "BadDigest"
            environ["wsgi.input"] = io.BytesIO(content)
        if sent is not None:
            status = "400 Bad Request" if sent in {"BadDigest", "IncompleteBody"} else "403 Forbidden"
            answer = f"<Error><Code>{sent}</Code></Error>".encode()
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(answer)))])
            return [answer]
        return self._store(environ, start)

    def _refusal_of_the_request(self, environ: Environ, query: dict[str, str]) -> str | None:
        began = datetime.strptime(query["X-Amz-Date"], FORM).replace(tzinfo=UTC)
        if datetime.now(UTC) > began + timedelta(seconds=int(query["X-Amz-Expires"])):
            return "AccessDenied"
        fields = {name.removeprefix("HTTP_").replace("_", "-").lower(): value for name, value in environ.items()
                  if name.startswith("HTTP_")}  # fmt: skip
        fields["content-length"] = environ.get("CONTENT_LENGTH") or ""
        signed = query["X-Amz-SignedHeaders"].split(";")
        if any(name.startswith("x-amz-") and name not in signed for name in fields):
            return "AccessDenied"  # "headers present in the request which were not signed"
        headers = {name: fields.get(name, "") for name in signed if name != "host"}
        url = f"http://{environ['HTTP_HOST']}{environ.get('RAW_URI', environ['PATH_INFO']).partition('?')[0]}"
        return None if _signature(environ["REQUEST_METHOD"], url, headers, query) == query["X-Amz-Signature"] else (
            "SignatureDoesNotMatch"
        )  # fmt: skip


def _signature(method: str, url: str, headers: dict[str, str], query: dict[str, str]) -> str:
    key, _, region = query["X-Amz-Credential"].split("/")[:3]
    request = AWSRequest(method=method, url=url, headers=headers)
    auth = S3SigV4QueryAuth(Credentials(key, SECRET), "s3", region, int(query["X-Amz-Expires"]))
    request.context["timestamp"] = query["X-Amz-Date"]
    auth._modify_request_before_signing(request)
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)


def main(host: str, port: int, careless: str) -> None:
    """Serve until killed."""
    app = Strict(DomainDispatcherApplication(create_backend_app), careless)
    make_server(host, port, app, threaded=True).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
