"""Why a process has no identity with which it could ask S3: told apart from what S3 itself refuses."""

from __future__ import annotations

import os

from botocore import exceptions

from include.errors import AnemoneError, ConfigurationError, TryAgainError

_PASSING = {"IDPCommunicationError", "InternalFailure", "ServiceUnavailable", "Throttling", "ThrottlingException"}
_TOKEN_FILES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
_EXPIRED = {"ExpiredToken", "ExpiredTokenException"}


def no_identity(error: Exception, root: str) -> AnemoneError | None:
    """What it means where `error` comes from the way to an identity; None where it does not.

    Args:
        error: of botocore's, or from a file with a token that it was told to read.
        root: URI of the store that was asked for.
    """
    match error:
        case exceptions.ClientError() if error.operation_name.startswith("AssumeRole"):
            return _not_assumed(error, root)
        case exceptions.CredentialRetrievalError():
            return TryAgainError(
                f"{root}: {_agent()} gives this pod no credentials ({_line(error)}): see to that agent, and to the "
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
                f"{root}: the token of this process's identity cannot be read ({error.strerror}: {error.filename}): "
                "see that the cluster mounts it for the pod's service account, or correct AWS_WEB_IDENTITY_TOKEN_FILE "
                "or AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
            )
    return None


def _not_assumed(error: exceptions.ClientError, root: str) -> AnemoneError:
    code = error.response["Error"].get("Code", "")
    said = f"{code}: {error.response['Error'].get('Message', '')}".strip(": .")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    role, token = os.environ.get("AWS_ROLE_ARN"), os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    by_token = error.operation_name == "AssumeRoleWithWebIdentity"
    who = f"the role {role}" if by_token and role else "the role of its configuration"
    how = f" with the token in {token}" if by_token and token else ""
    if status >= 500 or code in _PASSING:
        return TryAgainError(f"{root}: STS could not give this process {who}{how} ({said}): tasks try again meanwhile")
    if code in _EXPIRED:
        return TryAgainError(
            f"{root}: STS does not give this process {who}{how}, which has expired ({said}): the next try reads a new "
            "one; if it happens again, see whether kubelet renews it"
        )
    what = (
        "let the role's trust policy name the cluster's OIDC provider and the pod's service account, or correct the "
        "role in the service account's annotation eks.amazonaws.com/role-arn"
        if by_token
        else "let the role's trust policy name this identity, or correct the role in the profile or in Airflow's "
        "connection"
    )
    return ConfigurationError(f"{root}: this process may not be {who}{how} ({said}): {what}")


def _agent() -> str:
    where = os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    return f"the pod identity agent at {where}" if where else "the source of its identity"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
