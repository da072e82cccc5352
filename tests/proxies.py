"""A proxy that no request comes through."""

from __future__ import annotations

_NAMES = ("http_proxy", "https_proxy", "all_proxy")

DEAD_PROXIES = {
    **{spelled: "http://127.0.0.1:9" for name in _NAMES for spelled in (name, name.upper())},
    "no_proxy": "",
    "NO_PROXY": "",
}
"""Environment variables that lead the requests of a client which heeds them to a port where nothing listens."""
