"""An S3 server on this machine: moto's, in a process of its own, and stricter than moto is by itself.

Around moto stands what it leaves out: signatures and keys are verified, a body is compared with its length and with the
checksums that were sent along, and writes come one after the other, so that of two conditional ones exactly one wins.

`python -m tests.s3.server` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEY, SECRET, REGION = "who-tests", "and-what-it-knows", "eu-central-1"

_PROJECT = Path(__file__).resolve().parents[2]
_CHECKSUMS = {
    "HTTP_X_AMZ_CHECKSUM_SHA256": lambda body: hashlib.sha256(body).digest(),
    "HTTP_X_AMZ_CHECKSUM_CRC32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "HTTP_CONTENT_MD5": lambda body: hashlib.md5(body).digest(),
}


@contextmanager
def running() -> Iterator[str]:
    """Yield the address of a server that runs meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.s3.server"],
        cwd=_PROJECT,
        env={**os.environ, "PYTHONPATH": str(_PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the S3 server did not start: is moto installed?"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


class Strict:
    """WSGI middleware that refuses what S3 refuses and moto accepts."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        refused = self._refused(environ, body, length)
        if refused is not None:
            status, code = refused
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>as S3 says it</Message></Error>".encode()]
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            return list(self._app(environ, start_response))

    def _refused(self, environ: dict[str, Any], body: bytes, length: int) -> tuple[str, str] | None:
        if len(body) != length:
            return "400 Bad Request", "IncompleteBody"
        authorization = environ.get("HTTP_AUTHORIZATION", "")
        if f"Credential={KEY}/" not in authorization:
            return "403 Forbidden", "InvalidAccessKeyId"
        if authorization != _authorization(environ, authorization):
            return "403 Forbidden", "SignatureDoesNotMatch"
        if environ.get("HTTP_X_AMZ_CONTENT_SHA256") not in (hashlib.sha256(body).hexdigest(), "UNSIGNED-PAYLOAD"):
            return "400 Bad Request", "XAmzContentSHA256Mismatch"
        for header, checksum in _CHECKSUMS.items():
            if header in environ and base64.b64decode(environ[header]) != checksum(body):
                return "400 Bad Request", "BadDigest"
        return None


def _authorization(environ: dict[str, Any], given: str) -> str:
    """Return the header Authorization that the holder of the secret would have sent."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    fields = dict(part.strip().split("=", 1) for part in given.partition(" ")[2].split(","))
    headers = {name: environ[_wsgi(name)] for name in fields["SignedHeaders"].split(";")}
    url = f"http://{environ['HTTP_HOST']}{environ['RAW_URI']}"
    request = AWSRequest(environ["REQUEST_METHOD"], url, headers)
    request.context["timestamp"] = environ["HTTP_X_AMZ_DATE"]
    signer = S3SigV4Auth(Credentials(KEY, SECRET), "s3", REGION)
    signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    who, what = signer.scope(request), fields["SignedHeaders"]
    return f"AWS4-HMAC-SHA256 Credential={who}, SignedHeaders={what}, Signature={signature}"


def _wsgi(header: str) -> str:
    name = header.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Strict(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
