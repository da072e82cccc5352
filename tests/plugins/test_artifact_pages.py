from __future__ import annotations

from pathlib import Path

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

from plugins import artifact_pages


@pytest.fixture
def client(store, monkeypatch):
    platform = artifact_pages.current_platform().model_copy(update={"store": store.root})
    monkeypatch.setattr(artifact_pages, "current_platform", lambda: platform)
    monkeypatch.setitem(artifact_pages.app.dependency_overrides, get_user, lambda: "someone")
    return TestClient(artifact_pages.app)


def test_shows_figures_inputs_and_files(client, store, commit):
    source = commit("data-1", {"data.jsonl": "{}"})
    commit(
        "curate-1",
        {"train.jsonl": "{}\n", "docs/a b.html": "<p>"},
        metrics={"kept": 1, "<script>": "<b>"},
        inputs={"data": {"uri": store.uri("data-1"), "digest": source.content_digest}},
    )
    page = client.get("/curate-1/")
    assert page.status_code == 200
    assert '<a href="files/docs/a%20b.html">docs/a b.html</a>' in page.text
    assert '<a href="../data-1/">data-1</a>' in page.text
    assert "&lt;script&gt;" in page.text and "<script>" not in page.text


def test_files_come_in_a_sandbox(client, commit):
    commit("check-1", {"data_docs/index.html": "<script>1</script>", "result.json": "{}"})
    page = client.get("/check-1/files/data_docs/index.html")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"] == "sandbox allow-scripts"
    assert client.get("/check-1/files/result.json").headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "path", ["/nothing-1/", "/x-1/files/b", "/x-1/files/../manifest.json", "/..%2fx/", "/.hidden/"]
)
def test_only_what_a_manifest_lists_is_served(client, commit, path):
    commit("x-1", {"a": "1"})
    assert client.get(path).status_code == 404


def test_an_altered_file_is_not_shown(client, store, commit):
    manifest = commit("x-1", {"a": "1"})
    root = Path(store.root.removeprefix("file://"))
    (root / "x-1" / "attempts" / manifest.attempt / "files" / "a").write_text("2")
    answer = client.get("/x-1/files/a")
    assert answer.status_code == 409 and "altered" in answer.text


def test_nobody_sees_anything_without_a_login(client, commit, monkeypatch):
    commit("x-1", {"a": "1"})
    artifact_pages.app.dependency_overrides.clear()
    assert client.get("/x-1/").status_code == 401
    assert client.get("/x-1/files/a").status_code == 401
