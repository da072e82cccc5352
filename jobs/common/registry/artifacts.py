"""The artifacts that a model version's tags name."""

from __future__ import annotations

from include.artifacts.store import Store


def artifact_problem(uri: str, digest: str) -> str | None:
    """Return what keeps the artifact at `uri` from being used ("is gone", …), or None where it is as registered.

    Args:
        digest: the content digest (hex) that was registered.
    """
    store, name = Store.of(uri)
    manifest = store.manifest(name)
    if manifest is None:
        return "is gone"
    if manifest.content_digest != digest:
        return f"now holds other bytes ({manifest.content_digest[:12]})"
    return None
