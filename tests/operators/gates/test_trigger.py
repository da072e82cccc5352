from __future__ import annotations

import asyncio

from operators.gates.trigger import ArtifactTrigger


def test_an_artifact_is_waited_for(store, commit):
    async def scenario():
        event = asyncio.create_task(anext(ArtifactTrigger(uri=store.uri("x-1"), poll_seconds=0.05).run()))
        await asyncio.sleep(0.2)
        assert not event.done()
        await asyncio.to_thread(commit, "x-1", {"a": "1"})
        return (await asyncio.wait_for(event, 2)).payload

    assert asyncio.run(scenario()) == {"artifact": store.uri("x-1")}
