"""The bearer token that the serving side's own APIs ask for."""

from __future__ import annotations

import hmac

from aiohttp import web


def is_authorized(request: web.Request, token: str) -> bool:
    """Return whether a request carries the token; a header of any bytes is no error, but a wrong one."""
    given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
    return hmac.compare_digest(given, f"Bearer {token}".encode())
