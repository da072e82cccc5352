"""The artifact store from Airflow's side: on S3 through the connection that the platform names, if it names one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from include.artifacts.store import Store, split_uri
from include.errors import TryAgainError
from include.platforms import Platform, current_platform

if TYPE_CHECKING:
    from include.artifacts.s3 import Access


def platform_store(platform: Platform) -> Store:
    """Return the platform's store, which exists."""
    return Store(platform.store, existing=True, access=_access(platform.store, platform.store_connection))


def store_of(uri: str) -> tuple[Store, str]:
    """Return the store that holds the artifact at `uri`, and the artifact's name."""
    root, name = split_uri(uri)
    connection = current_platform().store_connection if root.startswith("s3://") else None
    return Store(root, existing=True, access=_access(root, connection)), name


def _access(root: str, connection: str | None) -> Access | None:
    if connection is None or not root.startswith("s3://"):
        return None
    from include.artifacts.s3 import Access

    return Access(client=partial(_client, connection))


def _client(connection: str, access: Access) -> Any:
    """Return a client by the amazon provider's hook, which alone sees the credentials, region and endpoint.

    Raises:
        TryAgainError: there is no such connection. The hook itself would continue without credentials.
    """
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        AwsBaseHook.get_connection(connection)
    except AirflowNotFoundException:
        raise TryAgainError(
            f"Airflow's connection {connection!r}, which the platform names for its store, was not found: create it "
            "(type aws), or check Airflow's API server; tasks try again meanwhile"
        ) from None
    hook = AwsBaseHook(connection, client_type="s3")
    return hook.get_client_type(region_name=hook.region_name, config=access.config.merge(hook.config))
