from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from include.home import PROJECT


class Router(BaseHTTPRequestHandler):
    """Says back what it was asked, as an OpenAI server would; knows one model."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = body["model"] == "kubectl" and self.path == "/v1/chat/completions"
        text = f"to {body['messages'][0]['content']}"
        answer = {"choices": [{"message": {"content": text}}]} if known else {"error": {"message": "no such model"}}
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """`ANEMONE_PORT`, with a router where it belongs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Router) as server:
        monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("ANEMONE_PORT", str(server.server_address[1] - 10))
        threading.Thread(target=server.serve_forever).start()
        yield server.server_address[1]
        server.shutdown()


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "include.laptop.ask", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def test_the_answer_is_printed_and_nothing_else(port: int) -> None:
    result = ask("로그 보여줘")
    assert (result.returncode, result.stdout, result.stderr) == (0, "to 로그 보여줘\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "PROMPT is not set"), (("hi",), "does not answer")],
)
def test_without_a_prompt_or_a_router_it_is_one_sentence(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANEMONE_PORT", "1")
    result = ask(*arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and words in result.stderr
    assert len(result.stderr.splitlines()) == 1
