from __future__ import annotations

import asyncio
import contextlib
import json

from include.artifacts.naming import content_digest
from operators.arrivals import trigger
from operators.arrivals.trigger import DatasetArrivalTrigger


class AssetState(dict):
    """The two calls of Airflow's asset state store that a watcher makes."""

    async def aget(self, key, default=None):
        return json.loads(self[key]) if key in self else default

    async def aset(self, key, value):
        self[key] = json.dumps(value)


def watch(folder, state=None):
    watcher = DatasetArrivalTrigger(folder=str(folder), settle_seconds=0.15, poll_seconds=0.05)
    watcher.asset_state_store = state
    return watcher.run()


async def events(stream, seconds=0.6):
    """What a watcher announces within a time."""
    found = []

    async def collect():
        async for event in stream:
            found.append(event.payload)

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(collect(), seconds)
    return found


def test_the_same_bytes_are_announced_once_under_any_name(tmp_path):
    for name in ("a.jsonl", "b.jsonl", ".hidden.jsonl", "c.txt"):
        (tmp_path / name).write_text("{}\n")
    found = asyncio.run(events(watch(tmp_path)))
    assert [event["source"] for event in found] == [str(tmp_path / "a.jsonl")]
    assert found[0]["bytes"] == 3


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


def test_the_watermark_follows_the_event_only_when_airflow_has_surely_kept_it(tmp_path):
    state = AssetState()
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert len(asyncio.run(events(watch(tmp_path, state)))) == 1
    assert state == {}
    assert len(asyncio.run(events(watch(tmp_path, state)))) == 1


def test_a_restarted_triggerer_does_not_repeat_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(trigger, "_SAVE_AFTER_SECONDS", 0.1)
    state = AssetState()
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert len(asyncio.run(events(watch(tmp_path, state)))) == 1
    (tmp_path / "b.jsonl").write_text('{"new": 1}\n')
    again = asyncio.run(events(watch(tmp_path, state)))
    assert [event["source"] for event in again] == [str(tmp_path / "b.jsonl")]


def test_a_file_that_still_grows_is_not_taken(tmp_path):
    path = tmp_path / "a.jsonl"

    async def scenario():
        async def grow():
            for _ in range(8):
                with path.open("a") as stream:
                    stream.write("{}\n")
                await asyncio.sleep(0.08)

        writer = asyncio.create_task(grow())
        stream = watch(tmp_path)
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
