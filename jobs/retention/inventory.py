"""The inventory of a store."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from include.announcements import ANNOUNCED
from include.artifacts.backend import ATTEMPTS, Entry
from include.artifacts.manifest import MANIFEST, Manifest
from include.artifacts.store import SPECS, USES, Store, split_uri
from include.artifacts.uses import RUNS
from include.errors import ArtifactError, ConfigurationError
from include.retention import AuxiliaryFiles, DamagedArtifact, Inventory, RootSet, StoredArtifact


def take_inventory(store: Store, find_roots: Callable[[Sequence[StoredArtifact]], Sequence[RootSet]]) -> Inventory:
    """Return everything that is in `store` now, with the roots that `find_roots` finds among its artifacts.

    Raises:
        TryAgainError: the store cannot be reached.
    """
    store.check_reachable()
    below: dict[str, list[Entry]] = defaultdict(list)
    for entry in store.listing():
        below[entry.path.split("/")[0]].append(entry)
    uses, runs, specs, announced = (below.pop(folder, []) for folder in (USES, RUNS, SPECS, ANNOUNCED))
    used: dict[str, datetime] = {}
    for entry in uses:
        if not entry.is_folder:
            name = entry.path.split("/")[1]
            used[name] = max(entry.modified, used.get(name, entry.modified))
    artifacts: list[StoredArtifact] = []
    damaged: list[DamagedArtifact] = []
    auxiliary = [*_notes(uses), *_records(runs), *_specs(specs), *_unfinished(announced)]
    opened = _open_paths(store)
    for name, entries in below.items():
        if not any(entry.path.startswith(f"{name}/") for entry in entries):
            continue  # A file, a link or an empty folder at the root is not ours.
        if any(entry.path == f"{name}/{MANIFEST}" for entry in entries):
            size = sum(entry.bytes for entry in entries)
            try:
                manifest = store.manifest(name)
            except ArtifactError as error:
                damaged.append(DamagedArtifact(name, size, str(error), _mentions(store, name, below)))
                continue
            if manifest is not None:
                committed = f"{name}/{ATTEMPTS}/{manifest.attempt}/"
                size = sum(entry.bytes for entry in entries if entry.path.startswith(committed))
                artifacts.append(_artifact(store, manifest, size, used.get(name)))
                entries = [entry for entry in entries if not f"{entry.path}/".startswith(committed)]
        auxiliary += _attempts(name, entries, opened)
        auxiliary += _temporaries(name, entries)
    return Inventory(artifacts=artifacts, roots=find_roots(artifacts), damaged=damaged, auxiliary=auxiliary)


def _artifact(store: Store, manifest: Manifest, size: int, last_used: datetime | None) -> StoredArtifact:
    return StoredArtifact(
        name=manifest.name,
        job=manifest.job,
        bytes=size,
        created=manifest.provenance.finished,
        inputs=tuple(name for entry in manifest.inputs.values() if (name := name_in(store, entry.uri)) is not None),
        last_used=last_used,
    )


def name_in(store: Store, uri: str) -> str | None:
    """Return the name of the artifact at `uri`; None where that is in another store."""
    try:
        root, name = split_uri(uri)
    except ConfigurationError:
        return None
    return name if root == store.root else None


def _mentions(store: Store, name: str, known: dict[str, list[Entry]]) -> tuple[str, ...]:
    """Return what a damaged artifact may have been made from: all whose names are in its manifest's bytes."""
    try:
        data = store.read_file(f"{name}/{MANIFEST}")
    except OSError:
        return ()
    return tuple(other for other in known if other != name and other.encode() in data)


def _attempts(name: str, entries: Sequence[Entry], opened: set[str]) -> list[AuxiliaryFiles]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        parts = entry.path.split("/")
        if len(parts) > 2 and parts[1] == ATTEMPTS:
            found["/".join(parts[:3])].append(entry)
    return [
        AuxiliaryFiles(
            kind="failed attempt",
            path=path,
            artifact=name,
            bytes=sum(entry.bytes for entry in inside),
            # A folder's own time does not count: a deletion that a crash cut short changes it, too.
            modified=max(entry.modified for entry in [entry for entry in inside if not entry.is_folder] or inside),
            open=any(other == path or other.startswith(f"{path}/") for other in opened),
        )
        for path, inside in found.items()
    ]


def _temporaries(name: str, entries: Sequence[Entry]) -> list[AuxiliaryFiles]:
    return [
        AuxiliaryFiles("temporary file", entry.path, entry.bytes, entry.modified, artifact=name)
        for entry in entries
        if not entry.is_folder and entry.path.count("/") == 1 and entry.path.split("/")[1].startswith(".")
    ]


def _notes(entries: Sequence[Entry]) -> list[AuxiliaryFiles]:
    files = [(entry, entry.path.split("/")) for entry in entries if not entry.is_folder]
    return [
        AuxiliaryFiles("note of a use", entry.path, entry.bytes, entry.modified, artifact=parts[1], run=parts[2])
        for entry, parts in files
        if len(parts) == 3
    ]


def _records(entries: Sequence[Entry]) -> list[AuxiliaryFiles]:
    return [
        AuxiliaryFiles("temporary file", entry.path, entry.bytes, entry.modified)
        if (name := entry.path.split("/")[-1]).startswith(".")
        else AuxiliaryFiles("record of a run", entry.path, entry.bytes, entry.modified, run=name.removesuffix(".json"))
        for entry in entries
        if not entry.is_folder
    ]


def _unfinished(entries: Sequence[Entry]) -> list[AuxiliaryFiles]:
    """Return what a crash left of announcements, which are never deleted themselves."""
    return [
        AuxiliaryFiles("temporary file", entry.path, entry.bytes, entry.modified)
        for entry in entries
        if not entry.is_folder and entry.path.split("/")[-1].startswith(".")
    ]


def _specs(entries: Sequence[Entry]) -> list[AuxiliaryFiles]:
    files: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if not entry.is_folder and entry.path.count("/") == 2:
            files[entry.path.split("/")[1]].append(entry)
    return [
        AuxiliaryFiles(
            "spec",
            f"{SPECS}/{name}",
            sum(entry.bytes for entry in inside),
            max(entry.modified for entry in inside),
            artifact=name,
        )
        for name, inside in files.items()
    ]


def _open_paths(store: Store) -> set[str]:
    """Return the paths, relative to the store's root, that processes of this user and machine have open.

    A job holds its attempt's event log open for as long as it runs, even while it writes nothing.
    """
    if not store.is_local:
        return set()
    root = os.path.realpath(store.root.removeprefix("file://"))
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith(f"{root}/"):
            found.add(target.removeprefix(f"{root}/"))
    return found
