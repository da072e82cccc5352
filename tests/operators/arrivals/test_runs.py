from __future__ import annotations

from types import SimpleNamespace

from operators.arrivals.runs import announced_runs


def announcement(*events):
    found = [SimpleNamespace(extra={"payload": {"source": source, "digest": digest}}) for source, digest in events]
    return {"triggering_asset_events": {"arrived": found}}


def test_events_that_airflow_merged_or_doubled_give_one_run_each():
    events = announcement(("/in/a.jsonl", "a" * 64), ("/in/b.jsonl", "b" * 64), ("/in/again.jsonl", "a" * 64))
    started = announced_runs(events)
    assert len(started) == 2
    assert len({run["run_id"] for run in started}) == 2
    assert announced_runs(announcement(("/elsewhere.jsonl", "a" * 64)))[0]["run_id"] == started[0]["run_id"]
