"""The objects of a bucket, request by request."""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar
from uuid import uuid4

from botocore import exceptions
from urllib3.exceptions import HTTPError

from include.artifacts.s3.access import Access
from include.artifacts.s3.credentials import credentials_failure
from include.artifacts.s3.failures import ABSENT, CONFLICT, CUT, no_answer, refusal
from include.errors import ArtifactError, ConfigurationError, TryAgainError

T = TypeVar("T")

_PAGE = 1000
"""Keys that one DeleteObjects takes."""

_CHUNK = 2**20

_WRITER = "anemone-writer"
"""Metadata of an object that was written conditionally: whose write it was."""

_DAMAGED = "the artifact was damaged after its commit; remove its folder and clear the task that made it"


@dataclass(frozen=True)
class Object:
    """An object below the root.

    Attributes:
        modified: the server's time, in whole seconds.
        version: its ETag, which changes whenever its bytes do.
    """

    path: str
    bytes: int
    modified: datetime
    version: str


class Bucket:
    """The objects below one root `s3://bucket/prefix`. All paths are relative to it.

    Every method raises ConfigurationError where retrying cannot help (no bucket, no permission, wrong credentials),
    and TryAgainError where it can (the endpoint cannot be reached or is overloaded), after `Access.attempts` tries.
    """

    def __init__(self, root: str, access: Access) -> None:
        self.root = root.rstrip("/")
        self.access = access
        self._bucket, _, prefix = self.root.removeprefix("s3:").removeprefix("//").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._conditions_proven = False
        if not self._bucket:
            raise ConfigurationError(f"{root!r} names no bucket: write s3://bucket/prefix")

    @cached_property
    def _client(self) -> Any:
        try:
            return self.access.connect()
        except exceptions.BotoCoreError as error:
            raise no_answer(self.root, "its client", error) from error
        except OSError as error:
            if failure := credentials_failure(error, self.root):
                raise failure from error
            raise
        except ValueError as error:
            raise ConfigurationError(f"{self.root}: {error}; correct its endpoint") from error

    def read(self, path: str, *, at_most: int | None = None) -> bytes:
        """Return the bytes at `path`. Raises FileNotFoundError; ArtifactError where there are more than `at_most`."""
        data = bytearray()
        for chunk in self.stream(path, at_most=at_most):
            data += chunk
        return bytes(data)

    def put(self, path: str, data: bytes, *, sha256: str | None = None) -> None:
        """Write an object, whatever stood there.

        Args:
            sha256: what the server compares the body with (hex); None: the digest of `data`.
        """
        self.call("put_object", path, Body=data, ChecksumSHA256=checksum(data) if sha256 is None else _encoded(sha256))

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether this call wrote it.

        A write whose answer was lost is tried again, and then refused because of itself: the object's metadata
        name the writer.

        Raises:
            TryAgainError: others create and delete the object at the same time.
        """
        writer = uuid4().hex
        request = {
            "Body": data,
            "IfNoneMatch": "*",
            "ChecksumSHA256": checksum(data),
            "Metadata": {_WRITER: writer},
        }
        for attempt in range(self.access.attempts):
            try:
                self.call("put_object", path, **request)
            except FileExistsError:
                with suppress(FileNotFoundError):
                    return self.call("head_object", path).get("Metadata", {}).get(_WRITER) == writer
                # Refused because of an object that is gone again.
                _pause(attempt)
            else:
                self._require_conditions(path, request)
                return True
        raise TryAgainError(f"{self.root}/{path} is created and deleted by others meanwhile: clear this task")

    def _require_conditions(self, path: str, request: dict[str, Any]) -> None:
        """Raise ConfigurationError, once a bucket, where the same conditional write is accepted a second time."""
        if self._conditions_proven:
            return
        try:
            self.call("put_object", path, **request)
        except FileExistsError:
            self._conditions_proven = True
            return
        raise ConfigurationError(
            f"{self.root}: {self._endpoint} overwrites an object in spite of If-None-Match, so that two writers could "
            "both believe that they made an artifact: a store needs a server with conditional writes"
        )

    def walk(self, below: str = "") -> Iterator[Object]:
        """Yield every object below a folder, as it is now."""
        return self._objects(Prefix=self._key(f"{below}/") if below else self._prefix)

    def files(self) -> Iterator[Object]:
        """Yield the objects directly below the root."""
        return self._objects(Prefix=self._prefix, Delimiter="/")

    def file(self, path: str) -> Object | None:
        """Return the object at `path`, or None, in a bucket that is known to exist."""
        try:
            head = self.call("head_object", path)
        except FileNotFoundError:
            return None
        return Object(path, head["ContentLength"], head["LastModified"], head["ETag"].strip('"'))

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below the root that start with `prefix`."""
        pages = self._pages(Prefix=self._key(prefix), Delimiter="/")
        found = [folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", ())]
        return [folder.removeprefix(self._prefix).rstrip("/") for folder in found]

    def delete(self, path: str) -> None:
        """Delete the object at `path`, and all below it. Nothing happens where there is none."""
        self.call("delete_object", path)
        keys = [self._key(found.path) for found in self.walk(path)]
        for start in range(0, len(keys), _PAGE):
            page = [{"Key": key} for key in keys[start : start + _PAGE]]
            answer = self.call("delete_objects", Delete={"Objects": page, "Quiet": True})
            for refused in answer.get("Errors", ()):
                code, message = refused.get("Code", ""), refused.get("Message", "")
                raise refusal(self.root, self._endpoint, "DeleteObjects", code, message, 200)

    def stream(
        self,
        path: str,
        start: int = 0,
        stop: int | None = None,
        *,
        size: int | None = None,
        at_most: int | None = None,
    ) -> Iterator[bytes]:
        """Yield an object's bytes from `start` to `stop`; where the body breaks off or stalls, the rest is requested.

        Args:
            size: the whole object's, in bytes. `at_most`: its limit.

        Raises:
            FileNotFoundError: there is no such object; its `filename` is the path.
            ArtifactError: the object has another size than `size`, or more bytes than `at_most`.
        """
        at, failures = start, 0
        while True:
            begun = at
            # An empty object has no range.
            parameters = {"Range": f"bytes={at}-{'' if stop is None else stop - 1}"} if at or stop else {}
            answer = self.call("get_object", path, **parameters)
            whole = int(answer.get("ContentRange", f"/{answer['ContentLength']}").rpartition("/")[2])
            if size is not None and whole != size:
                raise ArtifactError(f"{self.root}/{path} has {whole:,} bytes, its manifest says {size:,}: {_DAMAGED}")
            if at_most is not None and whole > at_most:
                raise ArtifactError(f"{self.root}/{path} is {whole:,} bytes long: {_DAMAGED}")
            try:
                with closing(answer["Body"]) as body:
                    while chunk := body.read(_CHUNK):
                        at += len(chunk)
                        yield chunk
            except (exceptions.BotoCoreError, HTTPError) as error:
                # A body may arrive in many pieces: only a try that brings nothing new counts as a failure.
                failures = 1 if at > begun else failures + 1
                if failures >= self.access.attempts:
                    raise no_answer(self.root, "GetObject", error) from error
                _pause(failures)
            if at >= (whole if stop is None else stop):
                return

    def each(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Do `tasks` on `Access.threads` threads and return their results; the first failure ends the rest."""
        _ = self._client  # made once, and not by several threads
        with ThreadPoolExecutor(self.access.threads) as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
            return [future.result() for future in futures]

    def call(self, operation: str, path: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one request, as botocore's client names and takes it, about the object at `path`, or the bucket.

        botocore retries where the server does not answer, this method where a body was cut.

        Raises:
            FileNotFoundError, FileExistsError: there is no such object, or one already; `filename` is the path.
            ArtifactError: a range of the object was asked for that it does not have.
            ConfigurationError, TryAgainError: the server refused, or cannot answer now.
        """
        if path is not None:
            parameters["Key"] = self._key(path)
        for attempt in range(1, self.access.attempts + 1):
            try:
                return getattr(self._client, operation)(Bucket=self._bucket, **parameters)
            except exceptions.ClientError as error:
                if failure := credentials_failure(error, self.root):
                    raise failure from error
                code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
                status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
                if code in ABSENT:
                    raise FileNotFoundError(2, "no such object", path) from None
                if code == "InvalidRange":
                    raise ArtifactError(f"{self.root}/{path} is shorter than its manifest says: {_DAMAGED}") from None
                if status == 412:
                    raise FileExistsError(17, "there is one already", path) from None
                if code not in CUT | CONFLICT or attempt == self.access.attempts:
                    raise refusal(self.root, self._endpoint, error.operation_name, code, message, status) from error
            except exceptions.BotoCoreError as error:
                raise no_answer(self.root, operation, error) from error
            except OSError as error:
                # Not from S3, whose errors are botocore's own: a file with a token cannot be read.
                if failure := credentials_failure(error, self.root):
                    raise failure from error
                raise
            _pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def _objects(self, **query: str) -> Iterator[Object]:
        for page in self._pages(**query):
            for found in page.get("Contents", ()):
                # Some tools put an object there that stands for an empty folder.
                if not found["Key"].endswith("/"):
                    path, version = found["Key"].removeprefix(self._prefix), found["ETag"].strip('"')
                    yield Object(path, found["Size"], found["LastModified"], version)

    def _pages(self, **query: str) -> Iterator[dict[str, Any]]:
        while True:
            page = self.call("list_objects_v2", **query)
            yield page
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def _key(self, path: str) -> str:
        return f"{self._prefix}{path}"

    @property
    def _endpoint(self) -> str:
        return self._client.meta.endpoint_url


def checksum(data: bytes) -> str:
    """Return the SHA-256 of `data` as S3's headers carry it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _encoded(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))
