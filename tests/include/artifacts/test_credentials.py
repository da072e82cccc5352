"""A process that gets no credentials says so, and never that an artifact is absent."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.s3 import Access
from include.artifacts.s3.credentials import credentials_failure
from include.artifacts.store import Store
from include.errors import ConfigurationError, TryAgainError

ROLE = "arn:aws:iam::123456789012:role/anemone-jobs"


@pytest.fixture
def refusing() -> Iterator[Callable[[int, str, str], str]]:
    """Return a function that starts an STS, or a pod identity agent, which answers everything with one error."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, code: str, message: str) -> str:
        body = f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>".encode()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Nothing on the test's output."""

            def do_POST(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST  # noqa: N815

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store on an S3 that is never reached, in a process without keys of its own."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return Store("s3://bucket/store", existing=True, access=Access(attempts=2))


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set what IRSA sets in a pod; return the path of the token."""
    path = tmp_path / "token"
    path.write_text("planted-web-identity")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(path))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    return path


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "AccessDenied", ConfigurationError, "trust policy name the cluster's OIDC provider"),
        (400, "InvalidIdentityToken", ConfigurationError, "trust policy name the cluster's OIDC provider"),
        (400, "ExpiredTokenException", TryAgainError, "has expired .* see whether kubelet renews it"),
        (503, "ServiceUnavailable", TryAgainError, "tasks try again meanwhile"),
    ],
)
def test_a_role_that_may_not_be_assumed_is_named_with_its_token(
    store: Store,
    token: Path,
    refusing: Callable,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    kind: type[Exception],
    says: str,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", refusing(status, code, "the answer of STS"))
    with pytest.raises(kind, match=says) as caught:
        store.manifest("data-1")
    message = str(caught.value)
    assert type(caught.value) is kind
    assert f"the role {ROLE} with the token in {token}" in message and "the answer of STS" in message
    assert "planted-web-identity" not in message and "s3:GetObject" not in message and "\n" not in message


def test_a_token_that_is_not_mounted_does_not_mean_that_the_artifact_is_absent(store: Store, token: Path) -> None:
    token.unlink()
    with pytest.raises(ConfigurationError, match=f"credentials cannot be read .*{token}.*the cluster mounts it"):
        store.manifest("data-1")


def test_another_file_that_cannot_be_read_is_not_called_the_token(
    store: Store, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a file of botocore's where a process has no descriptor left. No error becomes its own cause."""
    bundle = token.with_name("bundle.pem")
    refused = OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(bundle))
    assert credentials_failure(refused, "s3://bucket/store") is None
    assert credentials_failure(FileNotFoundError(errno.ENOENT, "gone", str(token)), "s3://bucket/store") is not None

    def refuse(_: Access) -> None:
        raise refused

    with pytest.raises(OSError, match=r"bundle\.pem") as caught:
        Store("s3://bucket/store", access=Access(client=refuse)).manifest("data-1")
    assert caught.value is refused and refused.__cause__ is None


def test_a_role_of_a_profile_that_may_not_be_assumed(
    store: Store, tmp_path: Path, refusing: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("[own]\naws_access_key_id = a\naws_secret_access_key = planted-secret\n")
    (tmp_path / "config").write_text(f"[profile jobs]\nrole_arn = {ROLE}\nsource_profile = own\n")
    monkeypatch.setenv("AWS_PROFILE", "jobs")
    denied = f"User: arn:aws:iam::1:user/own is not authorized to perform: sts:AssumeRole on resource: {ROLE}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", refusing(403, "AccessDenied", denied))
    with pytest.raises(ConfigurationError, match=f"{ROLE}.*correct the role in the profile") as caught:
        store.manifest("data-1")
    assert "planted-secret" not in str(caught.value)


def test_a_pod_identity_agent_that_refuses_is_named(
    store: Store, tmp_path: Path, refusing: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = refusing(400, "ResourceNotFoundException", "no association found")
    (tmp_path / "agent-token").write_text("planted-web-identity")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent}/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "agent-token"))
    with pytest.raises(TryAgainError, match=f"agent at {agent}/v1/credentials gives this pod no credentials") as caught:
        store.manifest("data-1")
    assert "association of the pod's service account" in str(caught.value)
    (tmp_path / "agent-token").unlink()
    with pytest.raises(ConfigurationError, match="credentials cannot be read"):
        Store("s3://bucket/store", existing=True, access=Access(attempts=2)).manifest("data-1")
