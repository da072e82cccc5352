"""A bucket of S3, or of a server that speaks its API, as the artifact store and the data sets need it.

botocore signs, retries and speaks HTTP; here stands what it leaves open: bodies that break off are continued, large
objects go in parts, a conditional write knows its own answer again after the first one was lost, and every failure is
one sentence. Imported only where something lies on S3.
"""

from __future__ import annotations

import base64
import hashlib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from botocore import exceptions
from botocore.config import Config
from botocore.loaders import Loader
from botocore.session import Session
from urllib3.exceptions import HTTPError

from include.artifacts.credentials import no_identity
from include.errors import AnemoneError, ArtifactError, ConfigurationError, TryAgainError

T = TypeVar("T")

_MOST_PARTS = 10_000
"""Of one object (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""

_PAGE = 1000
"""Keys that one DeleteObjects takes."""

_CHUNK = 2**20

_WRITER = "anemone-writer"
"""Metadata of an object that was written conditionally: whose write it was."""

_ABSENT = {"NoSuchKey", "NotFound", "404"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"}
_UNKNOWN_IDENTITY = {"InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "SignatureDoesNotMatch"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_ELSEWHERE = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301"}
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted"}
_CUT = {"BadDigest", "IncompleteBody", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
"""What the server calls a body that did not arrive as it was sent."""
_PASSING = {"NoSuchUpload", "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}

_DAMAGED = ": the artifact was damaged after its commit; remove its folder and clear the task that made it"

_loader = Loader()
"""Holds botocore's description of S3, so that it is read once a process."""


@dataclass(frozen=True)
class Access:
    """How one process reaches S3.

    Attributes:
        client: makes the client when it is first needed; None: with this process's own identity, by botocore's default
            chain and the standard variables (AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION, …).
        part_bytes: what is larger goes in parts of this size at the same time; S3 wants 5 MiB at least.
        threads: requests at the same time. At most `threads * part_bytes` of memory hold what goes up.
        attempts: of one request, and of one body that breaks off.
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
        """For a client of botocore's."""
        return Config(
            connect_timeout=self.connect_seconds,
            read_timeout=self.read_seconds,
            retries={"mode": "standard", "total_max_attempts": self.attempts},
            max_pool_connections=self.threads + 2,
            # Every file is compared with its manifest's sha256 anyway.
            response_checksum_validation="when_required",
        )

    def connect(self) -> Any:
        """A client."""
        if self.client is not None:
            return self.client(self)
        session = Session()
        session.register_component("data_loader", _loader)
        return session.create_client("s3", config=self.config)


@dataclass(frozen=True)
class Upload:
    """A local file on its way to `path`, relative to the root; `sha256` (hex) of its bytes."""

    file: Path
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Download:
    """The object at `path`, relative to the root, on its way to a local file."""

    path: str
    file: Path
    size: int


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
    and TryAgainError where it can (the endpoint is away or overloaded), after `Access.attempts` tries.
    """

    def __init__(self, root: str, access: Access) -> None:
        self._root = root.rstrip("/")
        self._bucket, _, prefix = self._root.removeprefix("s3:").removeprefix("//").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._access = access
        self._knows_conditions = False
        if not self._bucket:
            raise ConfigurationError(f"{root!r} names no bucket: write s3://bucket/prefix")

    @cached_property
    def _client(self) -> Any:
        try:
            return self._access.connect()
        except exceptions.BotoCoreError as error:
            raise (no_identity(error, self._root) or self._sentence("its client", error)) from error
        except OSError as error:
            if refusal := no_identity(error, self._root):
                raise refusal from error
            raise
        except ValueError as error:
            raise ConfigurationError(f"{self._root}: {error}; correct its endpoint") from error

    def read(self, path: str, *, at_most: int | None = None) -> bytes:
        """The bytes at `path`. Raises FileNotFoundError; ArtifactError where there are more than `at_most`."""
        data = bytearray()
        for chunk in self.stream(path, at_most=at_most):
            data += chunk
        return bytes(data)

    def put(self, path: str, data: bytes) -> None:
        """Write an object, whatever stood there."""
        self._call("put_object", Key=self._key(path), Body=data, ChecksumSHA256=_checksum(data))

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; False where there is another writer's.

        A write whose answer was lost is tried again, and refused because of itself: the object's metadata tell whose
        it is.
        """
        request = {"Key": self._key(path), "Body": data, "IfNoneMatch": "*", "ChecksumSHA256": _checksum(data)}
        request["Metadata"] = {_WRITER: uuid4().hex}
        for attempt in range(self._access.attempts):
            try:
                self._call("put_object", **request)
            except FileExistsError:
                with suppress(FileNotFoundError):
                    return self._head(path).get("Metadata", {}).get(_WRITER) == request["Metadata"][_WRITER]
                # Refused by an object that is gone again.
                self._pause(attempt)
            else:
                self._require_conditions(request)
                return True
        raise TryAgainError(f"{self._root}/{path} comes and goes while it is to be written: clear this task")

    def _require_conditions(self, request: dict[str, Any]) -> None:
        """Once a bucket: a server that does not know conditional writes takes the same one twice, and says nothing."""
        if self._knows_conditions:
            return
        try:
            self._call("put_object", **request)
        except FileExistsError:
            self._knows_conditions = True
            return
        raise ConfigurationError(
            f"{self._root}: {self._place} writes over what stands there in spite of If-None-Match, so that two writers "
            "could both believe that they made an artifact: a store needs a server with conditional writes"
        )

    def walk(self, below: str = "") -> Iterator[Object]:
        """Every object below a folder, as it is now."""
        return self._objects(Prefix=self._key(f"{below}/") if below else self._prefix)

    def files(self) -> Iterator[Object]:
        """The objects right below the root."""
        return self._objects(Prefix=self._prefix, Delimiter="/")

    def file(self, path: str) -> Object | None:
        """The object at `path`, or None, in a bucket that is known to exist."""
        try:
            head = self._head(path)
        except FileNotFoundError:
            return None
        return Object(path, head["ContentLength"], head["LastModified"], head["ETag"].strip('"'))

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below the root that start with `prefix`."""
        pages = self._pages(Prefix=self._key(prefix), Delimiter="/")
        found = [folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", ())]
        return [folder.removeprefix(self._prefix).rstrip("/") for folder in found]

    def delete(self, path: str) -> None:
        """Remove the object at `path`, and all below it. Nothing happens where there is none."""
        self._call("delete_object", Key=self._key(path))
        keys = [self._key(found.path) for found in self.walk(path)]
        for start in range(0, len(keys), _PAGE):
            page = [{"Key": key} for key in keys[start : start + _PAGE]]
            answer = self._call("delete_objects", Delete={"Objects": page, "Quiet": True})
            for refused in answer.get("Errors", ()):
                raise self._refusal("DeleteObjects", refused.get("Code", ""), refused.get("Message", ""), 200)

    def upload(self, files: Sequence[Upload]) -> None:
        """Write files, several at a time, and the large ones in parts, so that no cut body becomes an object."""
        small = [file for file in files if file.size <= self._access.part_bytes]
        self.each([partial(self._upload_whole, file) for file in small])
        for file in files:
            if file.size > self._access.part_bytes:
                self._upload_parts(file)

    def download(self, files: Sequence[Download]) -> None:
        """Fetch objects, several at a time, and the large ones in ranges; their bytes are the caller's to verify.

        Raises:
            FileNotFoundError: its `filename` is the path of the object that is missing.
            ArtifactError: an object has another size.
        """
        step = self._access.part_bytes
        for file in files:
            with file.file.open("wb") as sink:
                sink.truncate(file.size)
        # An empty object has no range, and is asked for all the same: it may be missing.
        self.each(
            [
                partial(self._fetch, file, start, min(start + step, file.size))
                for file in files
                for start in range(0, max(file.size, 1), step)
            ]
        )

    def each(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Do `tasks` on a few threads; the first failure ends the rest."""
        _ = self._client  # made once, and not by several threads
        with ThreadPoolExecutor(self._access.threads) as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
            return [future.result() for future in futures]

    def _upload_whole(self, file: Upload) -> None:
        body = file.file.read_bytes()
        self._call("put_object", Key=self._key(file.path), Body=body, ChecksumSHA256=_encoded(file.sha256))

    def _upload_parts(self, file: Upload) -> None:
        key = self._key(file.path)
        step = max(self._access.part_bytes, math.ceil(file.size / _MOST_PARTS))
        upload = self._call("create_multipart_upload", Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
        try:
            parts = self.each(
                [
                    partial(self._upload_part, file, upload, number, start, step)
                    for number, start in enumerate(range(0, file.size, step), start=1)
                ]
            )
            self._complete(file, upload, parts)
        except BaseException:
            with suppress(AnemoneError, FileNotFoundError):
                self._call("abort_multipart_upload", Key=key, UploadId=upload)
            raise

    def _upload_part(self, file: Upload, upload: str, number: int, start: int, size: int) -> dict[str, Any]:
        with file.file.open("rb") as stream:
            stream.seek(start)
            body = stream.read(size)
        checksum = _checksum(body)
        answer = self._call(
            "upload_part",
            Key=self._key(file.path),
            UploadId=upload,
            PartNumber=number,
            Body=body,
            ChecksumSHA256=checksum,
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _complete(self, file: Upload, upload: str, parts: list[dict[str, Any]]) -> None:
        try:
            self._call(
                "complete_multipart_upload",
                Key=self._key(file.path),
                UploadId=upload,
                MultipartUpload={"Parts": parts},
            )
        except TryAgainError:
            # Where the answer was lost, the next try finds no upload any more, but the object.
            if self.file(file.path) is None:
                raise

    def _fetch(self, file: Download, start: int, stop: int) -> None:
        with file.file.open("r+b") as sink:
            sink.seek(start)
            for chunk in self.stream(file.path, start, stop, size=file.size):
                sink.write(chunk)

    def stream(
        self,
        path: str,
        start: int = 0,
        stop: int | None = None,
        *,
        size: int | None = None,
        at_most: int | None = None,
    ) -> Iterator[bytes]:
        """An object's bytes from `start` to `stop`; where the body breaks off or stalls, the rest is asked for."""
        at, failures = start, 0
        while True:
            begun = at
            # Of nothing, no range can be asked for.
            asked = {"Range": f"bytes={at}-{'' if stop is None else stop - 1}"} if at or stop else {}
            try:
                answer = self._call("get_object", Key=self._key(path), **asked)
            except FileNotFoundError:
                raise FileNotFoundError(2, "no such object", path) from None
            whole = int(answer.get("ContentRange", f"/{answer['ContentLength']}").rpartition("/")[2])
            if size is not None and whole != size:
                raise ArtifactError(f"{self._root}/{path} has {whole:,} bytes, its manifest says {size:,}{_DAMAGED}")
            if at_most is not None and whole > at_most:
                raise ArtifactError(f"{self._root}/{path} is {whole:,} bytes long{_DAMAGED}")
            try:
                with closing(answer["Body"]) as body:
                    while chunk := body.read(_CHUNK):
                        at += len(chunk)
                        yield chunk
            except (exceptions.BotoCoreError, HTTPError) as error:
                # A body that comes in pieces comes; only what brings nothing is given up.
                failures = 1 if at > begun else failures + 1
                if failures >= self._access.attempts:
                    raise self._sentence("GetObject", error) from error
                self._pause(failures)
            if at >= (whole if stop is None else stop):
                return

    def _head(self, path: str) -> dict[str, Any]:
        return self._call("head_object", Key=self._key(path))

    def _objects(self, **question: str) -> Iterator[Object]:
        for page in self._pages(**question):
            for found in page.get("Contents", ()):
                # What some tools put there to stand for an empty folder is no file.
                if not found["Key"].endswith("/"):
                    path, version = found["Key"].removeprefix(self._prefix), found["ETag"].strip('"')
                    yield Object(path, found["Size"], found["LastModified"], version)

    def _pages(self, **question: str) -> Iterator[dict[str, Any]]:
        while True:
            page = self._call("list_objects_v2", **question)
            yield page
            if not page.get("IsTruncated"):
                return
            question["ContinuationToken"] = page["NextContinuationToken"]

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """One request. botocore has tried again where the server was away; here it is where a body was cut.

        Raises:
            FileNotFoundError: no such object. FileExistsError: there is one already.
        """
        for attempt in range(1, self._access.attempts + 1):
            try:
                return getattr(self._client, operation)(Bucket=self._bucket, **parameters)
            except exceptions.ClientError as error:
                if refusal := no_identity(error, self._root):
                    raise refusal from error
                code, status = error.response["Error"].get("Code", ""), _status(error.response)
                if code in _ABSENT:
                    raise FileNotFoundError(2, "no such object", parameters.get("Key")) from None
                if code == "InvalidRange":
                    where = f"s3://{self._bucket}/{parameters['Key']}"
                    raise ArtifactError(f"{where} is shorter than its manifest says{_DAMAGED}") from None
                if status == 412:
                    raise FileExistsError(17, "there is one already", parameters.get("Key")) from None
                if code not in _CUT | _CONFLICT or attempt == self._access.attempts:
                    message = error.response["Error"].get("Message", "")
                    raise self._refusal(error.operation_name, code, message, status) from error
            except exceptions.BotoCoreError as error:
                raise (no_identity(error, self._root) or self._sentence(operation, error)) from error
            except OSError as error:
                # Not S3's, which are botocore's: a file without which there is no identity, not an absent object.
                if refusal := no_identity(error, self._root):
                    raise refusal from error
                raise
            self._pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, attempt: int) -> None:
        time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))

    def _key(self, path: str) -> str:
        return f"{self._prefix}{path}"

    @property
    def _place(self) -> str:
        return self._client.meta.endpoint_url

    def _refusal(self, operation: str, code: str, message: str, status: int) -> AnemoneError:
        """What the server's answer means."""
        said = f"{code}: {message}".strip(": .")
        if code == "NoSuchBucket":
            return ConfigurationError(
                f"{self._root}: there is no bucket {self._bucket!r} at {self._place}: make it, or correct the address"
            )
        if code in _DENIED:
            return ConfigurationError(
                f"{self._root}: {self._place} denies {operation} ({said}): this identity needs s3:GetObject, "
                "s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and s3:ListBucket there"
            )
        if code in _UNKNOWN_IDENTITY:
            return ConfigurationError(
                f"{self._root}: {self._place} does not take the credentials ({said}): correct them"
            )
        if code in _EXPIRED:
            return TryAgainError(f"{self._root}: the credentials have expired ({said}): the next try asks for new ones")
        if code == "RequestTimeTooSkewed":
            return ConfigurationError(f"{self._root}: this machine's clock differs from the server's ({said}): set it")
        if code in _ELSEWHERE:
            return ConfigurationError(
                f"{self._root}: its bucket lies in another region ({said}): set AWS_DEFAULT_REGION, or the connection's"
            )
        if code == "NotImplemented":
            return ConfigurationError(
                f"{self._root}: {self._place} does not know {operation} as it is needed ({said}): a store needs one "
                "with conditional writes"
            )
        if status >= 500 or code in _PASSING | _CUT | _CONFLICT:
            return TryAgainError(
                f"{self._root}: {self._place} answers {operation} with {said} again and again: tasks try "
                "again meanwhile"
            )
        return ConfigurationError(f"{self._root}: {self._place} refuses {operation} ({said}): correct its address")

    def _sentence(self, operation: str, error: Exception) -> AnemoneError:
        """What it means that there is no answer, or none that can be read."""
        match error:
            case exceptions.ParamValidationError():
                return ConfigurationError(f"{self._root}: {_line(error)}; correct it")
            case exceptions.NoRegionError():
                return ConfigurationError(f"{self._root}: no region is given: set AWS_DEFAULT_REGION")
            case exceptions.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
                return ConfigurationError(
                    f"{self._root}: the certificate of its endpoint is not trusted ({_line(error)}): name its "
                    "authority in AWS_CA_BUNDLE"
                )
        return TryAgainError(
            f"{self._root} gives no whole answer to {operation} ({_line(error)}): see to its endpoint; tasks try again "
            "meanwhile"
        )


def _checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _encoded(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _status(response: Mapping[str, Any]) -> int:
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
