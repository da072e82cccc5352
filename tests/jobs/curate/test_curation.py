"""The whole of curation: no row is lost without a trace, and none is invented."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from include.errors import DataError
from include.specs.curate import Config
from jobs.curate.curation import curate
from jobs.curate.output import write
from jobs.curate.parsing import read_rows

TEXT = (
    st.sampled_from(["show the pods", "SHOW the pods!", "kubectl get pods", "", "\u200b", "kim@example.com"])
    | st.text()
)
ROW = st.one_of(
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}, optional={"kind": TEXT | st.floats() | st.none()}),
    st.dictionaries(st.sampled_from(["prompt", "completion", "other"]), TEXT | st.integers() | st.lists(TEXT)),
    st.integers(),
    st.none(),
)
LINE = ROW.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=20).filter(lambda line: b"\n" not in line)


@settings(max_examples=40)
@given(st.lists(LINE, max_size=25), st.sampled_from(["redact", "drop", "keep"]))
def test_removed_and_kept_are_what_was_read(found: list[bytes], action: str) -> None:
    data = [b'{"prompt": "describe the node", "completion": "kubectl describe node", "kind": "describe"}', *found]
    config = Config.model_validate({"pii": {"action": action}, "mapping": {"label": "kind"}})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data.jsonl").write_bytes(b"\n".join(data))
        rows = read_rows(folder, config.mapping, where="data set")
        assert [row.line.number for row in rows] == [n for n, line in enumerate(data, 1) if line.strip()]
        try:
            curated = curate(rows, config, [], on_step=lambda step, **fields: None)
        except DataError:
            return
        funnel = write(curated, folder, config)
        kept = Counter({split: len(_read(folder / f"{split}.jsonl")) for split in ("train", "validation", "heldout")})
        removed = _read(folder / "removed.jsonl")
    assert funnel["read"] == len(rows) == sum(kept.values()) + len(removed)
    assert funnel["splits"] == dict(kept)
    assert funnel["removed"] == dict(Counter(row["reason"] for row in removed))
    assert len({row["line"] for row in removed}) == len(removed)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
