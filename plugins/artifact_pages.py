"""Pages of artifacts in Airflow's web UI: inputs, metrics and files; reports and Data Docs open in place.

Read-only, for every user who is logged in to Airflow. Files are verified against the manifest before they are served,
in a sandbox of their own: a report contains text from data sets, and must not act with the reader's login.
"""

from __future__ import annotations

import mimetypes
from html import escape
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import requires_authenticated
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse, Response

from include.artifacts.manifest import Manifest
from include.artifacts.store import Store, split_uri
from include.errors import AnemoneError
from include.platforms import current_platform
from operators.store import platform_store

app = FastAPI(dependencies=[Depends(requires_authenticated())], docs_url=None, redoc_url=None, openapi_url=None)

_SANDBOX = {"Content-Security-Policy": "sandbox allow-scripts", "X-Content-Type-Options": "nosniff"}
_AS_TEXT = {".json", ".jsonl", ".yaml", ".jinja", ".md", ".txt", ".csv"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
@media (prefers-color-scheme: dark) { body { background: #14181d; color: #dbe2ea } a { color: #7fb4ff } }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
td, th { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; overflow-wrap: anywhere }
th { font-weight: 600 } h1 { font-size: 1.3rem } h2 { font-size: 1.05rem } code { font-size: .9em }
"""


@app.get("/{name}/", response_class=HTMLResponse)
def artifact_page(name: str) -> str:
    """Return the page of one artifact, from its manifest."""
    return _page(_manifest(platform_store(current_platform()), name))


@app.get("/{name}/files/{path:path}")
def artifact_file(name: str, path: str) -> Response:
    """Return one file of an artifact, verified against the manifest. Raises HTTPException (404, or 409: damaged)."""
    store = platform_store(current_platform())
    manifest = _manifest(store, name)
    if path not in {file.path for file in manifest.files}:
        raise HTTPException(404, f"{name} holds no {path}")
    suffix = path[path.rfind(".") :]
    kind = "text/plain" if suffix in _AS_TEXT else mimetypes.guess_type(path)[0] or "application/octet-stream"
    try:
        return Response(store.read_bytes(name, path), media_type=kind, headers=_SANDBOX)
    except AnemoneError as error:
        raise HTTPException(409, str(error)) from None


def _manifest(store: Store, name: str) -> Manifest:
    if "/" in name or name.startswith("."):
        raise HTTPException(404, "no such artifact")
    try:
        manifest = store.manifest(name)
    except AnemoneError as error:
        raise HTTPException(409, str(error)) from None
    if manifest is None:
        raise HTTPException(404, f"no artifact {name} in {store.root}")
    return manifest


def _page(manifest: Manifest) -> str:
    made = manifest.provenance
    commit = (made.git_sha or "unknown")[:12] + (", with local changes" if made.git_dirty else "")
    facts = {
        "Job": manifest.job,
        "Finished": made.finished.isoformat(timespec="seconds"),
        "Took": f"{made.wall_seconds:.1f} s, {made.cpu_seconds:.1f} CPU-s, {made.peak_rss_bytes / 2**20:.0f} MiB",
        "Code": f"{manifest.code[:12]} (git {commit})",
        "Content": manifest.content_digest,
    }
    files = {
        f'<a href="files/{quote(file.path)}">{escape(file.path)}</a>': f"{file.size:,} bytes" for file in manifest.files
    }
    inputs = {
        escape(key): f'<a href="../{quote(split_uri(value.uri)[1])}/">{escape(split_uri(value.uri)[1])}</a>'
        for key, value in manifest.inputs.items()
    }
    metrics = {
        escape(key): escape(f"{value:.4g}" if isinstance(value, float) else str(value))
        for key, value in manifest.metrics.items()
    }
    parts = [
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(manifest.name)}</title><style>{_STYLE}</style><h1><code>{escape(manifest.name)}</code></h1>",
        _table({escape(key): escape(value) for key, value in facts.items()}),
    ]
    for title, rows in (("Figures", metrics), ("Made from", inputs), ("Files", files)):
        if rows:
            parts += [f"<h2>{title}</h2>", _table(rows)]
    return "".join(parts)


def _table(rows: dict[str, str]) -> str:
    return f"<table>{''.join(f'<tr><th>{key}</th><td>{value}</td></tr>' for key, value in rows.items())}</table>"
