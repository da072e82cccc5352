"""A proxy between a client and its S3 server that fails on purpose."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Action = Literal["refuse", "lose answer", "cut answer", "stall", "cut request", "garble"]


@dataclass
class Fault:
    """A fault that meets the next `times` requests whose method is `method` and whose path has `path` in it.

    Attributes:
        action: `refuse`: answered with `status` and `code`, or with `body`, and not passed on. `lose answer`: carried
            out, and the connection closed. `cut answer`: closed after `after` bytes of the body; `stall`: silent from
            there on. `cut request`: the server gets `after` bytes of the body. `garble`: the answer's last byte is
            another.
    """

    method: str
    path: str
    action: Action
    times: int = 1
    status: int = 500
    code: str = "InternalError"
    body: str | None = None
    after: int = 10
    done: int = 0


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        url: the address to give to the client.
        faults: to come, in any order.
        seen: method and path of every request so far.
    """

    url: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.done < fault.times and fault.method == method and fault.path in path:
                    fault.done += 1
                    return fault
        return None


@contextmanager
def between(server: str) -> Iterator[Proxy]:
    """Yield a proxy in front of the server at the URL `server`."""
    upstream = urlsplit(server).netloc
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.next_fault(self.command, self.path)
            action = fault.action if fault else None
            if fault and action == "refuse":
                answer = f"<Error><Code>{fault.code}</Code></Error>" if fault.body is None else fault.body
                self._answer(fault.status, {}, answer.encode())
                return
            if fault and action == "cut request":
                self._cut_request(body[: fault.after], len(body))
                self.close_connection = True
                return
            connection = http.client.HTTPConnection(upstream)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            data, headers = response.read(), dict(response.getheaders())
            connection.close()
            if fault and action == "lose answer":
                self.close_connection = True
            elif fault and action in ("cut answer", "stall"):
                self._answer(response.status, headers, data, data[: fault.after])
                if action == "stall":
                    stopped.wait(60)
                self.close_connection = True
            elif action == "garble":
                self._answer(response.status, headers, data, data[:-1] + bytes([data[-1] ^ 1]))
            else:
                self._answer(response.status, headers, data)

        def _cut_request(self, body: bytes, length: int) -> None:
            host, _, port = upstream.partition(":")
            with socket.create_connection((host, int(port))) as raw:
                headers = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items() if name != "Expect")
                raw.sendall(f"{self.command} {self.path} HTTP/1.1\r\n{headers}\r\n".encode() + body)
                raw.shutdown(socket.SHUT_WR)
                with suppress(OSError):
                    raw.recv(65536)

        def _answer(self, status: int, headers: dict[str, str], data: bytes, sent: bytes | None = None) -> None:
            self.send_response_only(status)
            length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data if sent is None else sent)
            self.wfile.flush()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server_ = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server_.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server_.server_port}")
    thread = threading.Thread(target=server_.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        stopped.set()
        server_.shutdown()
        server_.server_close()
        thread.join()
