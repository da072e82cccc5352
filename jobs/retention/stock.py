"""What a store holds."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from include.artifacts.manifest import Manifest
from include.artifacts.store import ATTEMPTS, MANIFEST, SPECS, Entry, Store, split_uri
from include.artifacts.uses import RUNS, USES
from include.errors import ArtifactError, ConfigurationError
from include.retention import Damaged, Held, Leftover, Need, Stock


def take_stock(store: Store, needs: Callable[[Sequence[Held]], Sequence[Need]]) -> Stock:
    """Everything that is in `store` now, and what `needs` says of its artifacts.

    Raises:
        TryAgainError: the store is not there.
    """
    store.check_there()
    below: dict[str, list[Entry]] = defaultdict(list)
    for entry in store.listing():
        below[entry.path.split("/")[0]].append(entry)
    uses, runs, specs = (below.pop(folder, []) for folder in (USES, RUNS, SPECS))
    used: dict[str, datetime] = {}
    for entry in uses:
        if not entry.is_folder:
            name = entry.path.split("/")[1]
            used[name] = max(entry.modified, used.get(name, entry.modified))
    held: list[Held] = []
    damaged: list[Damaged] = []
    leftovers = [*_notes(uses), *_records(runs), *_specs(specs)]
    opened = _open_paths(store)
    for name, entries in below.items():
        if not any(entry.path.startswith(f"{name}/") for entry in entries):
            continue  # a file, a link or an empty folder at the root: none of ours
        if any(entry.path == f"{name}/{MANIFEST}" for entry in entries):
            size = sum(entry.bytes for entry in entries)
            try:
                manifest = store.manifest(name)
            except ArtifactError as error:
                damaged.append(Damaged(name, size, str(error), _mentions(store, name, below)))
                continue
            if manifest is not None:
                standing = f"{name}/{ATTEMPTS}/{manifest.attempt}/"
                size = sum(entry.bytes for entry in entries if entry.path.startswith(standing))
                held.append(_held(store, manifest, size, used.get(name)))
                entries = [entry for entry in entries if not f"{entry.path}/".startswith(standing)]
        leftovers += _attempts(store, name, entries, opened)
        leftovers += _temporaries(name, entries)
    return Stock(held=held, needs=needs(held), damaged=damaged, leftovers=leftovers)


def _held(store: Store, manifest: Manifest, size: int, used: datetime | None) -> Held:
    return Held(
        name=manifest.name,
        job=manifest.job,
        bytes=size,
        made=manifest.provenance.finished,
        inputs=tuple(name for entry in manifest.inputs.values() if (name := name_in(store, entry.uri)) is not None),
        used=used,
    )


def name_in(store: Store, uri: str) -> str | None:
    """The name of the artifact at `uri`, where that lies in this store."""
    try:
        root, name = split_uri(uri)
    except ConfigurationError:
        return None
    return name if root == store.root else None


def _mentions(store: Store, name: str, known: dict[str, list[Entry]]) -> tuple[str, ...]:
    """The artifacts that an unreadable manifest may have been made from: all whose names are in its bytes."""
    try:
        data = store.read_file(f"{name}/{MANIFEST}")
    except OSError:
        return ()
    return tuple(other for other in known if other != name and other.encode() in data)


def _attempts(store: Store, name: str, entries: Sequence[Entry], opened: set[str]) -> list[Leftover]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        parts = entry.path.split("/")
        if len(parts) > 2 and parts[1] == ATTEMPTS:
            found["/".join(parts[:3])].append(entry)
    return [
        Leftover(
            kind="failed attempt",
            path=path,
            name=name,
            bytes=sum(entry.bytes for entry in inside),
            # A folder's own time is that of a deletion that a crash cut short, too.
            newest=max(entry.modified for entry in [one for one in inside if not one.is_folder] or inside),
            open=any(one == path or one.startswith(f"{path}/") for one in opened),
        )
        for path, inside in found.items()
    ]


def _temporaries(name: str, entries: Sequence[Entry]) -> list[Leftover]:
    return [
        Leftover("temporary file", entry.path, entry.bytes, entry.modified, name=name)
        for entry in entries
        if not entry.is_folder and entry.path.count("/") == 1 and entry.path.split("/")[1].startswith(".")
    ]


def _notes(entries: Sequence[Entry]) -> list[Leftover]:
    files = [(entry, entry.path.split("/")) for entry in entries if not entry.is_folder]
    return [
        Leftover("note of a use", entry.path, entry.bytes, entry.modified, name=parts[1], run=parts[2])
        for entry, parts in files
        if len(parts) == 3
    ]


def _records(entries: Sequence[Entry]) -> list[Leftover]:
    return [
        Leftover("temporary file", entry.path, entry.bytes, entry.modified)
        if (name := entry.path.split("/")[-1]).startswith(".")
        else Leftover("record of a run", entry.path, entry.bytes, entry.modified, run=name.removesuffix(".json"))
        for entry in entries
        if not entry.is_folder
    ]


def _specs(entries: Sequence[Entry]) -> list[Leftover]:
    files: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if not entry.is_folder and entry.path.count("/") == 2:
            files[entry.path.split("/")[1]].append(entry)
    return [
        Leftover(
            "spec",
            f"{SPECS}/{name}",
            sum(entry.bytes for entry in inside),
            max(entry.modified for entry in inside),
            name=name,
        )
        for name, inside in files.items()
    ]


def _open_paths(store: Store) -> set[str]:
    """Paths, relative to the store's root, that a process of this machine has open; those of other users are not seen.

    A job holds its attempt's event log open for as long as it lives, however long it writes nothing.
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
