"""`make_bucket.py NAME`: wait until the store lets us in, and see that the bucket is there.

Keys, region and endpoint come from the environment, as they do for every job: what works here works there.
"""

from __future__ import annotations

import sys
import time

from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

TIMEOUT = 120.0
"""Seconds for a store that is only just starting."""


def make(bucket: str, timeout: float = TIMEOUT) -> None:
    """Raises botocore's own error where the store cannot be used after `timeout` seconds."""
    client = get_session().create_client("s3")
    deadline = time.monotonic() + timeout
    while True:
        try:
            if bucket not in [found["Name"] for found in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=bucket)
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


if __name__ == "__main__":
    try:
        make(sys.argv[1])
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"error: the store refuses access ({error}): look at its log, and at the volume keys")
