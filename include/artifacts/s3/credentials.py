"""Failures to obtain credentials for S3, as distinct from what S3 itself refuses."""

from __future__ import annotations

import os

from botocore import exceptions

from include.errors import AnemoneError, ConfigurationError, TryAgainError

_PASSING = {"IDPCommunicationError", "InternalFailure", "ServiceUnavailable", "Throttling", "ThrottlingException"}
_TOKEN_FILES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
_EXPIRED = {"ExpiredToken", "ExpiredTokenException"}


def credentials_failure(error: Exception, root: str) -> AnemoneError | None:
    """Return what `error` means where it arose while credentials were obtained; None where it did not.

    Args:
        error: raised by botocore, or by reading a file with a token that botocore was configured to read.
        root: URI of the store for which they were needed.
    """
    match error:
        case exceptions.ClientError() if error.operation_name.startswith("AssumeRole"):
            return _role_refused(error, root)
        case exceptions.CredentialRetrievalError():
            return TryAgainError(
                f"{root}: {_source()} gives this pod no credentials ({_line(error)}): check that agent, and the "
                "association of the pod's service account with a role; tasks try again meanwhile"
            )
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return ConfigurationError(
                f"{root}: this process has no credentials for it ({_line(error)}): give its pod a service account "
                "that may use it, or set AWS_PROFILE"
            )
        case exceptions.InvalidConfigError() | exceptions.ProfileNotFound() | exceptions.ConfigParseError():
            return ConfigurationError(f"{root}: {_line(error)}; correct it")
        case OSError() if error.filename is not None and str(error.filename) in map(os.environ.get, _TOKEN_FILES):
            return ConfigurationError(
                f"{root}: the token for this process's credentials cannot be read ({error.strerror}: "
                f"{error.filename}): see that the cluster mounts it for the pod's service account, or correct "
                "AWS_WEB_IDENTITY_TOKEN_FILE or AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
            )
    return None


def _role_refused(error: exceptions.ClientError, root: str) -> AnemoneError:
    code = error.response["Error"].get("Code", "")
    answer = f"{code}: {error.response['Error'].get('Message', '')}".strip(": .")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    arn, token_file = os.environ.get("AWS_ROLE_ARN"), os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    by_token = error.operation_name == "AssumeRoleWithWebIdentity"
    role = f"the role {arn}" if by_token and arn else "the role of its configuration"
    token = f" with the token in {token_file}" if by_token and token_file else ""
    if status >= 500 or code in _PASSING:
        return TryAgainError(
            f"{root}: STS could not give this process {role}{token} ({answer}): tasks try again meanwhile"
        )
    if code in _EXPIRED:
        return TryAgainError(
            f"{root}: STS does not give this process {role}{token}, which has expired ({answer}): the next try reads a "
            "new one; if it happens again, see whether kubelet renews it"
        )
    remedy = (
        "let the role's trust policy name the cluster's OIDC provider and the pod's service account, or correct the "
        "role in the service account's annotation eks.amazonaws.com/role-arn"
        if by_token
        else "let the role's trust policy name the principal that asks, or correct the role in the profile or in "
        "Airflow's connection"
    )
    return ConfigurationError(f"{root}: this process may not assume {role}{token} ({answer}): {remedy}")


def _source() -> str:
    url = os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    return f"the pod identity agent at {url}" if url else "the source of its credentials"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
