from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os

import pytest

from include.artifacts.naming import content_digest
from include.artifacts.store import Store
from include.platforms import load_platform
from operators.arrivals import arrival, trigger
from operators.arrivals.arrival import Arrival, arrivals_of_platform
from operators.arrivals.trigger import DatasetArrivalTrigger

RECIPE = "demo/0.8M_lora_cpu"


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory, monkeypatch):
    root = tmp_path_factory.mktemp("store")
    platform = load_platform("laptop").model_copy(update={"store": f"file://{root}"})
    monkeypatch.setattr(arrival, "current_platform", lambda: platform)
    return root


class AssetState(dict):
    """The two calls of Airflow's asset state store that a watcher makes."""

    async def aget(self, key, default=None):
        return json.loads(self[key]) if key in self else default

    async def aset(self, key, value):
        self[key] = json.dumps(value)


LOOKS = []
"""Each look of a watcher into its folder."""


@pytest.fixture(autouse=True)
def count_looks(monkeypatch):
    real = trigger._snapshot
    monkeypatch.setattr(trigger, "_snapshot", lambda folder: LOOKS.append(folder) or real(folder))


def watch(folder, state=None, recipe=RECIPE, settle_seconds=0.0):
    watcher = DatasetArrivalTrigger(folder=str(folder), settle_seconds=settle_seconds, poll_seconds=0.01, recipe=recipe)
    watcher.asset_state_store = state
    return watcher.run()


async def events(stream):
    """What a watcher announces until it has looked a dozen times without finding more."""
    found = []
    event, since = asyncio.ensure_future(anext(stream)), len(LOOKS)
    while len(LOOKS) - since < 12:
        if (await asyncio.wait([event], timeout=0.01))[0]:
            found.append(event.result().payload)
            event, since = asyncio.ensure_future(anext(stream)), len(LOOKS)
    event.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await event
    return found


def pending():
    announcements = arrivals_of_platform()
    return [announcements.read(key) for key in announcements.pending()]


def start_all():
    """What a pass does with what is pending."""
    announcements = arrivals_of_platform()
    for key in announcements.pending():
        found = announcements.read(key)
        announcements.note_start(found.run, found)
        announcements.settle(key)


def test_the_same_bytes_are_pending_once_under_any_name(tmp_path):
    for name in ("a.jsonl", "b.jsonl", ".hidden.jsonl", "c.txt"):
        (tmp_path / name).write_text("{}\n")
    found = asyncio.run(events(watch(tmp_path)))
    assert found[0]["source"] == str(tmp_path / "a.jsonl")
    assert found[0]["bytes"] == 3
    assert [one.model_dump() for one in pending()] == found[:1]


@pytest.mark.parametrize("count", [1, 5, 50])
def test_each_that_arrives_is_written_down_before_its_event(tmp_path, count):
    for number in range(count):
        (tmp_path / f"{number}.jsonl").write_text(f"{number}\n")

    async def scenario():
        stream = watch(tmp_path)
        for number in range(count):
            arrived = Arrival(**(await anext(stream)).payload)
            assert arrivals_of_platform().read(arrived.key) == arrived, number
        await stream.aclose()

    asyncio.run(scenario())
    assert sorted(one.source for one in pending()) == sorted(str(path) for path in tmp_path.glob("*.jsonl"))


def test_what_is_no_file_or_cannot_be_read_does_not_stop_the_others(tmp_path, monkeypatch):
    (tmp_path / "a-folder.jsonl").mkdir()
    (tmp_path / "b-dangling.jsonl").symlink_to(tmp_path / "nothing")
    (tmp_path / "c-unreadable.jsonl").write_text("{}\n")
    (tmp_path / "d.jsonl").write_text("{ }\n")
    real = trigger.file_digest

    def digest(path):
        if path.name == "c-unreadable.jsonl":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(trigger, "file_digest", digest)
    assert [event["source"] for event in asyncio.run(events(watch(tmp_path)))] == [str(tmp_path / "d.jsonl")]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_file_that_cannot_be_read_for_a_while_is_delayed_and_not_lost(tmp_path, monkeypatch, capsys, number):
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    tries = []
    real = trigger.file_digest

    def digest(path):
        tries.append(path)
        if len(tries) < 4:
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(trigger, "file_digest", digest)
    assert [event["source"] for event in asyncio.run(events(watch(tmp_path)))] == [str(path)]
    assert len(tries) == 4
    assert capsys.readouterr().out.count(f"{path} has arrived and is announced later: [Errno {number}]") == 1


def test_a_store_that_is_away_delays_an_announcement_and_loses_none(tmp_path, own_store, monkeypatch, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f"{name}\n")
    away = own_store.with_name("away")
    tries = []
    real = DatasetArrivalTrigger._announce
    monkeypatch.setattr(DatasetArrivalTrigger, "_announce", lambda self, one: tries.append(one) or real(self, one))

    async def scenario():
        own_store.rename(away)
        stream = watch(tmp_path)
        first = asyncio.create_task(anext(stream))
        while len(tries) < 5:
            await asyncio.sleep(0.02)
        assert not own_store.exists()
        away.rename(own_store)
        told = [await first, await anext(stream)]
        return [event.payload["source"] for event in told]

    told = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert sorted(told) == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    log = capsys.readouterr().out
    assert log.count(f"{tmp_path / 'a.jsonl'} has arrived and is announced later: the store") == 1


def test_a_restarted_triggerer_neither_repeats_itself_nor_hashes_again(tmp_path, monkeypatch):
    state = AssetState()
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert len(asyncio.run(events(watch(tmp_path, state)))) == 1
    start_all()
    (tmp_path / "b.jsonl").write_text('{"new": 1}\n')
    hashed = []
    real = trigger.file_digest
    monkeypatch.setattr(trigger, "file_digest", lambda path: hashed.append(path) or real(path))
    again = asyncio.run(events(watch(tmp_path, state)))
    assert [event["source"] for event in again] == [str(tmp_path / "b.jsonl")]
    assert hashed == [tmp_path / "b.jsonl"]


def test_an_event_that_died_with_its_triggerer_is_sent_by_the_next(tmp_path):
    """Airflow keeps it in memory for a while; the file was taken, and is never looked at again."""
    state = AssetState()
    (tmp_path / "a.jsonl").write_text("{}\n")
    first = asyncio.run(events(watch(tmp_path, state)))
    assert json.loads(state["files"]).keys() == {"a.jsonl"}
    assert asyncio.run(events(watch(tmp_path, state))) == first
    start_all()
    assert asyncio.run(events(watch(tmp_path, state))) == []


def test_what_was_started_is_not_announced_again_though_airflow_forgot_everything(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert len(asyncio.run(events(watch(tmp_path, AssetState())))) == 1
    start_all()
    (tmp_path / "copy.jsonl").write_text("{}\n")
    assert asyncio.run(events(watch(tmp_path, AssetState()))) == []
    assert pending() == []


def test_what_version_0_1_had_announced_is_not_announced_again(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.jsonl").write_text('{"new": 1}\n')
    state = AssetState(announced=json.dumps([trigger._dataset_digest(tmp_path / "a.jsonl")]))
    assert [event["source"] for event in asyncio.run(events(watch(tmp_path, state)))] == [str(tmp_path / "b.jsonl")]


def test_another_recipe_takes_what_arrives_from_then_on(tmp_path):
    state = AssetState()
    (tmp_path / "a.jsonl").write_text("{}\n")
    asyncio.run(events(watch(tmp_path, state)))
    start_all()
    assert asyncio.run(events(watch(tmp_path, state, recipe="own/0.8M_lora_cpu"))) == []
    (tmp_path / "again.jsonl").write_text("{}\n")
    [found] = asyncio.run(events(watch(tmp_path, state, recipe="own/0.8M_lora_cpu")))
    assert (found["source"], found["recipe"]) == (str(tmp_path / "again.jsonl"), "own/0.8M_lora_cpu")


def test_files_that_are_gone_are_forgotten(tmp_path):
    state = AssetState()
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f"{name}\n")
    asyncio.run(events(watch(tmp_path, state)))
    (tmp_path / "a.jsonl").unlink()
    asyncio.run(events(watch(tmp_path, state)))
    assert json.loads(state["files"]).keys() == {"b.jsonl"}


def test_a_trigger_of_version_0_1_takes_the_platforms_recipe(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    [found] = asyncio.run(events(watch(tmp_path, recipe=None)))
    assert found["recipe"] == load_platform("laptop").arrivals.recipe


def test_a_damaged_announcement_keeps_no_watcher_from_its_work(tmp_path, own_store):
    Store(f"file://{own_store}").create("announced/arrived_datasets/pending/0.json", b"\x00")
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert len(asyncio.run(events(watch(tmp_path)))) == 1


def test_a_file_that_still_grows_is_not_taken(tmp_path):
    path = tmp_path / "a.jsonl"

    async def scenario():
        async def grow():
            for _ in range(8):
                with path.open("a") as stream:
                    stream.write("{}\n")
                await asyncio.sleep(0.08)

        writer = asyncio.create_task(grow())
        stream = watch(tmp_path, settle_seconds=0.5)
        first = await anext(stream)
        assert writer.done()
        return first.payload

    assert asyncio.run(scenario())["bytes"] == 8 * 3


def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path):
    async def scenario():
        stream = watch(tmp_path / "later")
        event = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.2)
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "a.jsonl").write_text("{}\n")
        return (await asyncio.wait_for(event, 3)).payload

    assert asyncio.run(scenario())["bytes"] == 3


def test_the_digest_is_the_one_that_ingest_gives(tmp_path, store, commit):
    (tmp_path / "a.jsonl").write_text("{}\n")
    manifest = commit("ingest-1", {"data.jsonl": "{}\n"})
    assert content_digest(manifest.files) == asyncio.run(events(watch(tmp_path)))[0]["digest"]
