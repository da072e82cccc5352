"""How a process reaches S3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.config import Config
from botocore.loaders import Loader
from botocore.session import Session

_loader = Loader()
"""Holds botocore's description of S3, so that it is read once a process."""


@dataclass(frozen=True)
class Access:
    """How one process reaches S3.

    Attributes:
        client: makes the client when it is first needed; None: with this process's own credentials, by botocore's
            default chain and the standard variables (AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION, …).
        part_bytes: what is larger goes in parts of this size at the same time; S3 wants 5 MiB at least.
        threads: requests at the same time. At most `threads * part_bytes` of memory hold what is uploaded.
        attempts: at one request, and at a body that breaks off without having brought anything new.
        connect_seconds, read_seconds: without an answer, or without one more byte, before the next attempt.
    """

    client: Callable[[Access], Any] | None = None
    part_bytes: int = 16 * 2**20
    threads: int = 8
    attempts: int = 5
    connect_seconds: float = 5.0
    read_seconds: float = 30.0

    @property
    def config(self) -> Config:
        """The configuration of a botocore client."""
        return Config(
            connect_timeout=self.connect_seconds,
            read_timeout=self.read_seconds,
            retries={"mode": "standard", "total_max_attempts": self.attempts},
            max_pool_connections=self.threads + 2,
            # Every file is compared with its manifest's sha256 anyway.
            response_checksum_validation="when_required",
        )

    def connect(self) -> Any:
        """Return a new botocore client of S3."""
        if self.client is not None:
            return self.client(self)
        session = Session()
        session.register_component("data_loader", _loader)
        return session.create_client("s3", config=self.config)
