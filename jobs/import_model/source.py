"""Locate a model's files, in a local folder or on a hub, and copy them."""

from __future__ import annotations

import shutil
from pathlib import Path

from include.errors import ConfigurationError, DataError, TryAgainError
from include.sources.model_folder import WANTED, fingerprint, fingerprints, model_files, refuse_code
from include.specs.import_model import Config


def locate(config: Config, scratch: Path) -> Path:
    """Return the folder to import from: the local one, or a download of the hub repository below `scratch`.

    Of a hub repository only `WANTED` files are downloaded, so no pickle ever arrives.

    Raises:
        DataError: a local folder that is missing, or brings code of its own; a hub repository or commit that does not
            exist.
        ConfigurationError: a hub repository on a platform without the network.
        TryAgainError: a hub that does not answer; a local folder that changed since the run was planned.
    """
    if not config.is_folder:
        return _download(config, scratch / "hub")
    folder = Path(config.source)
    present = fingerprints(config.source)
    if config.files and present != config.files:
        raise TryAgainError(f"{folder} changed since this run was planned: the next try plans anew")
    refuse_code(folder)
    return folder


def copy(folder: Path, target: Path) -> int:
    """Copy the model's files into the new folder `target`, and return how many other files were left out.

    Raises:
        TryAgainError: a file changed while it was read.
    """
    target.mkdir(parents=True)
    wanted = model_files(folder)
    for path in wanted:
        before = fingerprint(path)
        shutil.copyfile(path, target / path.name)
        if fingerprint(path) != before:
            raise TryAgainError(f"{path} changed while it was read: try again when it is finished")
    return sum(path.is_file() for path in folder.iterdir()) - len(wanted)


def _download(config: Config, target: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{config.source} at {config.revision}"
    try:
        folder = snapshot_download(
            config.source, revision=config.revision, allow_patterns=list(WANTED), local_dir=target
        )
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise DataError(f"{where} is not on the hub, or needs a token (HF_TOKEN) to be seen: check both") from None
    except OfflineModeIsEnabled:
        raise ConfigurationError(_offline(where)) from None
    except LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            raise ConfigurationError(_offline(where)) from None
        raise TryAgainError(f"the hub did not answer for {where}: try again when it can be reached") from None
    except HfHubHTTPError as error:
        raise TryAgainError(f"the hub answered {error} for {where}: try again later") from None
    return Path(folder)


def _offline(where: str) -> str:
    return (
        f"{where} is on the hub, and this platform works without the network (HF_HUB_OFFLINE): "
        "fetch it elsewhere, and give the local folder as source"
    )
