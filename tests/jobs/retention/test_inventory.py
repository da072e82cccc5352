from __future__ import annotations

from jobs.retention.inventory import take_inventory


def test_what_was_announced_is_nothing_to_delete_and_what_a_crash_left_of_it_is(store):
    for path in ("pending/a.json", "started/b.json", "refused/c.json"):
        store.create(f"announced/candidate/{path}", b"{}")
    store.touch("announced/candidate/pending/.draft")
    inventory = take_inventory(store, lambda _: [])
    assert inventory.artifacts == [] and inventory.damaged == []
    [left] = inventory.auxiliary
    assert (left.kind, left.path) == ("temporary file", "announced/candidate/pending/.draft")
