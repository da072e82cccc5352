"""From an error of botocore or of an S3 server to one that says what is wrong and whether to try again."""

from __future__ import annotations

from botocore import exceptions

from include.artifacts.s3.credentials import credentials_failure
from include.errors import AnemoneError, ConfigurationError, TryAgainError

ABSENT = {"NoSuchKey", "NotFound", "404"}
CUT = {"BadDigest", "IncompleteBody", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
"""What a server calls a body that did not arrive as it was sent."""
CONFLICT = {"ConditionalRequestConflict", "OperationAborted"}
"""What a server calls two writes of one object at the same time."""

_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"}
_BAD_CREDENTIALS = {"InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "SignatureDoesNotMatch"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_ELSEWHERE = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301"}
_PASSING = {"NoSuchUpload", "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}


def refusal(root: str, endpoint: str, operation: str, code: str, message: str, status: int) -> AnemoneError:
    """Return what a server's refusal means.

    Args:
        root: URI of the store. `endpoint`: URL of the server.
        operation: as S3 names it, as in "GetObject".
        code, message: of the error in the answer. `status`: of HTTP.
    """
    answer = f"{code}: {message}".strip(": .")
    if code == "NoSuchBucket":
        bucket = root.removeprefix("s3://").partition("/")[0]
        return ConfigurationError(
            f"{root}: there is no bucket {bucket!r} at {endpoint}: make it, or correct the address"
        )
    if code in _DENIED:
        return ConfigurationError(
            f"{root}: {endpoint} denies {operation} ({answer}): these credentials need s3:GetObject, s3:PutObject, "
            "s3:DeleteObject, s3:AbortMultipartUpload and s3:ListBucket there"
        )
    if code in _BAD_CREDENTIALS:
        return ConfigurationError(f"{root}: {endpoint} does not accept the credentials ({answer}): correct them")
    if code in _EXPIRED:
        return TryAgainError(f"{root}: the credentials have expired ({answer}): the next try asks for new ones")
    if code == "RequestTimeTooSkewed":
        return ConfigurationError(f"{root}: this machine's clock differs from the server's ({answer}): set it")
    if code in _ELSEWHERE:
        return ConfigurationError(
            f"{root}: its bucket lies in another region ({answer}): set AWS_DEFAULT_REGION, or the connection's"
        )
    if code == "NotImplemented":
        return ConfigurationError(
            f"{root}: {endpoint} does not support {operation} as it is needed ({answer}): a store needs a server with "
            "conditional writes"
        )
    if status >= 500 or code in _PASSING | CUT | CONFLICT:
        return TryAgainError(
            f"{root}: {endpoint} answers {operation} with {answer} again and again: tasks try again meanwhile"
        )
    return ConfigurationError(f"{root}: {endpoint} refuses {operation} ({answer}): correct its address")


def no_answer(root: str, operation: str, error: Exception) -> AnemoneError:
    """Return what it means that `operation` got no answer, or none that can be read, but `error`."""
    if failure := credentials_failure(error, root):
        return failure
    line = " ".join(str(error).split()).rstrip(".")
    match error:
        case exceptions.ParamValidationError():
            return ConfigurationError(f"{root}: {line}; correct it")
        case exceptions.NoRegionError():
            return ConfigurationError(f"{root}: no region is given: set AWS_DEFAULT_REGION")
        case exceptions.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return ConfigurationError(
                f"{root}: the certificate of its endpoint is not trusted ({line}): name its authority in AWS_CA_BUNDLE"
            )
    return TryAgainError(
        f"{root} gives no whole answer to {operation} ({line}): check its endpoint; tasks try again meanwhile"
    )
