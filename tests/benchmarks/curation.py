"""The curate job against the same stages of NeMo Curator on Ray, and against datatrove: CPU seconds and recall.

    .anemone/venvs/bench/bin/python tests/benchmarks/curation.py      # about eight minutes

The work: mend and normalise texts, drop by heuristics, drop exact duplicates, drop near duplicates (MinHash, 14 bands
of 8 over shingles of 5 words). Documents of 200 to 370 words, of which a tenth are copies of another with one to three
words replaced (Jaccard similarity .84 to .98) and 2% exact copies. Ours is the whole job as a process: start,
checksums, reading, the work, commit. On Ray run Curator's own classes, without what the job has quicker.

The other sides would need half an hour at ours' size: they run at two smaller ones, and a line through both gives their
start and their cost a document. Both lines are in the row; the ratio is what they give at the size of ours.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import frame

from include.artifacts.store import Store
from include.job_plan import JobPlan

ROWS, SIZES, TURNS = 100_000, (5_000, 10_000), 3
SMALL_ROWS, SMALL_SIZES, SMALL_TURNS = 2_000, (200, 400), 1
VOCABULARY = 20_000
NEAR, EXACT = 0.10, 0.02
CONFIG = {"pii": {"action": "keep"}, "heldout_fraction": 0.0}
"""Of the curate job: what the other sides have no counterpart for is off."""


@dataclass(frozen=True)
class Run:
    """One side's run: CPU and wall seconds, and the share of planted near duplicates that it removed."""

    cpu: float
    wall: float
    recall: float


@dataclass(frozen=True)
class Line:
    """Cost by number of rows: CPU seconds to start, and a row."""

    start: float
    row: float

    @classmethod
    def through(cls, sizes: Sequence[int], costs: Sequence[float]) -> Line:
        row = (costs[1] - costs[0]) / (sizes[1] - sizes[0])
        return cls(costs[0] - row * sizes[0], row)

    def at(self, rows: int) -> float:
        return self.start + self.row * rows


def measure(small: bool) -> list[frame.Row]:
    rows, sizes, turns = (SMALL_ROWS, SMALL_SIZES, SMALL_TURNS) if small else (ROWS, SIZES, TURNS)
    with tempfile.TemporaryDirectory(dir=frame.scratch()) as name:
        folder = Path(name)
        planted = {count: write_rows(folder / f"{count}.jsonl", count) for count in (rows, *sizes)}
        ours = [curate_job(folder, rows, planted[rows], turn) for turn in range(turns)]
        found = []
        for what, side in (("NeMo Curator's stages on Ray", "ray"), ("datatrove", "datatrove")):
            runs = [other(side, folder, count, planted[count]) for count in sizes]
            found.append(row(what, rows, sizes, ours, runs))
        size = (folder / f"{rows}.jsonl").stat().st_size / 1e6
    shown = f"{rows:,} rows, {size:.0f} MB, {len(ours)} turns"
    recall = frame.figure(
        "curate job: near duplicates found", [run.recall for run in ours], unit="", aim=(">=", 0.93),
        conditions=f"{shown}; a tenth of the rows are copies with one to three words replaced",
    )  # fmt: skip
    wall = frame.figure("curate job: wall", [run.wall for run in ours], unit="s", conditions=shown)
    return [*found, recall, wall]


def row(what: str, rows: int, sizes: Sequence[int], ours: Sequence[Run], runs: Sequence[Run]) -> frame.Row:
    line = Line.through(sizes, [run.cpu for run in runs])
    theirs = line.at(rows)
    costs = [run.cpu for run in ours]
    return frame.Row(
        f"curate job / {what}",
        "CPU s",
        statistics.median(costs),
        theirs,
        theirs / statistics.median(costs),
        (theirs / max(costs), theirs / min(costs)),
        (">=", 25.0),
        f"{rows:,} rows; theirs from {sizes[0]:,} and {sizes[1]:,} rows: "
        f"{runs[0].cpu:.0f} and {runs[1].cpu:.0f} CPU s, "
        f"a line of {line.start:.0f} s + {1000 * line.row:.2f} ms a row; near duplicates found: ours "
        f"{ours[0].recall:.3f}, theirs {runs[1].recall:.3f}; "
        + frame.versions("nemo-curator", "ray", "datatrove", "polars", "rensa"),
        {"theirs": [vars(run) for run in runs], "ours": [vars(run) for run in ours]},
    )


def write_rows(path: Path, count: int) -> list[tuple[int, int]]:
    """Rows of {"prompt", "completion"}; returns planted near duplicates as pairs of line numbers."""
    draw = random.Random(count)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = sorted({"".join(draw.choices(letters, range(26, 0, -1), k=draw.randint(2, 9))) for _ in range(VOCABULARY)})
    near = range(count - round(NEAR * count), count)
    exact = range(near.start - round(EXACT * count), near.start)
    rows: list[list[list[str]]] = []
    planted = []
    for number in range(count):
        if number in exact or number in near:
            origin = draw.randrange(exact.start)
            texts = [list(text) for text in rows[origin]]
            if number in near:
                planted.append((origin + 1, number + 1))
                for place in draw.sample(range(len(texts[1])), draw.randint(1, 3)):
                    texts[1][place] = draw.choice(words)
        else:
            texts = [draw.choices(words, k=draw.randint(20, 50)), draw.choices(words, k=draw.randint(180, 320))]
        rows.append(texts)
    with path.open("w", encoding="utf-8") as stream:
        for number, (prompt, completion) in enumerate(rows, start=1):
            stream.write(
                json.dumps({"id": str(number), "prompt": prose(prompt), "completion": prose(completion)}) + "\n"
            )
    return planted


def prose(words: Sequence[str]) -> str:
    """Sentences of twelve words, paragraphs of five sentences."""
    sentences = [" ".join(words[start : start + 12]).capitalize() + "." for start in range(0, len(words), 12)]
    return "\n".join(" ".join(sentences[start : start + 5]) for start in range(0, len(sentences), 5))


def recall(planted: Sequence[tuple[int, int]], kept: set[int]) -> float:
    return sum(not (a in kept and b in kept) for a, b in planted) / len(planted)


def curate_job(folder: Path, rows: int, planted: Sequence[tuple[int, int]], turn: int) -> Run:
    store = Store(f"file://{folder}/store")
    data = store.uri(f"data-{rows}")
    if store.manifest(f"data-{rows}") is None:
        from merge import commit

        with store.attempt(f"data-{rows}") as attempt:
            os.link(folder / f"{rows}.jsonl", attempt.files / "data.jsonl")
            commit(attempt)
    plan = JobPlan.prepare("curate", config=CONFIG, inputs={"data": data}, store=store, refresh=f"turn {turn}")
    cost = frame.spend([sys.executable, "-m", "jobs.curate", "--spec", plan.write_spec()], {"POLARS_MAX_THREADS": "2"})
    manifest = plan.conclude(0, None)
    files = folder / "store" / plan.name / "attempts" / manifest.attempt / "files"
    removed = {json.loads(line)["line"] for line in (files / "removed.jsonl").open(encoding="utf-8")}
    return Run(cost.cpu, cost.wall, recall(planted, set(range(1, rows + 1)) - removed))


def other(side: str, folder: Path, rows: int, planted: Sequence[tuple[int, int]]) -> Run:
    kept, used = folder / f"{side}-{rows}.kept", folder / f"{side}-{rows}.used"
    command = [sys.executable, __file__, f"--{side}", str(folder / f"{rows}.jsonl"), str(kept), str(used)]
    cost = frame.spend(command)
    spent = float(used.read_text()) if used.exists() else cost.cpu
    return Run(spent, cost.wall, recall(planted, set(json.loads(kept.read_text()))))


def on_ray(source: Path, kept: Path, used: Path) -> None:
    """The job's stages, those of a row on Ray and as Curator has them, those that need all rows after it."""
    with tempfile.TemporaryDirectory(prefix="ray") as temporary:
        # Without a token Ray leaves one in the user's home.
        os.environ.update(RAY_TMPDIR=temporary, RAY_AUTH_TOKEN=secrets.token_hex(32))
        meter = Meter(temporary)
        meter.start()
        import pandas as pd
        import ray
        from nemo_curator.backends.ray_data import RayDataExecutor
        from nemo_curator.pipeline import Pipeline

        from include.specs.curate import Config
        from jobs.curate import heuristics, normalise
        from jobs.curate.curation import _frame
        from jobs.curate.parsing import Line as TextLine
        from jobs.curate.parsing import parse
        from jobs.curate.pipeline import as_batch, run_stages, steps

        heuristics.QuickMeanWordLengthFilter = heuristics.MeanWordLengthFilter
        heuristics.QuickSymbolsToWordsFilter = heuristics.SymbolsToWordsFilter
        heuristics.AnyScriptNonAlphaNumericFilter = heuristics.NonAlphaNumericFilter
        normalise.QuickUnicodeReformatter = normalise.UnicodeReformatter
        normalise.QuickNewlineNormalizer = normalise.NewlineNormalizer
        config = Config.model_validate(CONFIG)
        columns = _columns()
        lines = [
            TextLine(source.name, number, json.loads(line))
            for number, line in enumerate(source.open(encoding="utf-8"), start=1)
        ]
        rows = [parse(line, columns) for line in lines]
        plan = list(steps(config, []))
        whole = [step for step in plan if step.name in ("exact_duplicate", "near_duplicate")]
        alone = [part for step in plan if step not in whole for part in (*step.stages, step.filter) if part is not None]
        pipeline = Pipeline(name="curation", stages=alone)
        size = max(1, len(rows) // 8)
        batches = [as_batch(_frame(rows[start : start + size])) for start in range(0, len(rows), size)]
        ray.init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, logging_level="error")
        done = pipeline.run(RayDataExecutor(), initial_tasks=batches) or []
        batch = as_batch(pd.concat([part.to_pandas() for part in done], ignore_index=True))
        for step in whole:
            batch = run_stages([*step.stages, step.filter], batch)
        places = [int(place.rpartition(" ")[2]) for place in batch.to_pandas()["place"]]
        kept.write_text(json.dumps(places))
        ray.shutdown()
        used.write_text(str(meter.stop() + time.process_time()))


def _columns() -> Any:
    from jobs.curate.parsing import Columns

    return Columns(("prompt", "completion"), None)


class Meter(Thread):
    """CPU seconds of all processes that were started with a text in their environment, looked at twice a second.

    Ray's workers are nobody's children any more when it has ended, so they cannot be asked afterwards.
    """

    def __init__(self, text: str) -> None:
        super().__init__(daemon=True)
        self._text = text.encode()
        self._seen: dict[tuple[str, str], int] = {}
        self._ended = Event()

    def run(self) -> None:
        while not self._ended.wait(0.5):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if self._text in (process / "environ").read_bytes():
                        fields = (process / "stat").read_text().rpartition(")")[2].split()
                        # With the time of its start, as a number can be given twice.
                        self._seen[process.name, fields[19]] = int(fields[11]) + int(fields[12])

    def stop(self) -> float:
        self._ended.set()
        self.join()
        return sum(self._seen.values()) / os.sysconf("SC_CLK_TCK")


def on_datatrove(source: Path, kept: Path, _used: Path) -> None:
    """The same work by datatrove's own steps, one worker, as its examples put them together."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.exact_dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import FTFYFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.hashes import xxhash as hashes
    from xxhash import xxh64_intdigest

    from include.specs.curate import Filters

    # datatrove 0.10 hands text to xxhash, which from version 4 on (locked for the jobs) takes bytes only.
    hashes.xxhash64 = lambda text: xxh64_intdigest(text.encode("utf-8", "surrogatepass"))
    limits = Filters()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "in" / "data.jsonl").write_bytes(source.read_bytes())

        def run(*steps: Any, tasks: int = 1) -> None:
            LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, skip_completed=False, logging_dir=None).run()

        exact = ExactDedupConfig(content_getter=content, only_dedup_in_index=False)
        minhash = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
        run(
            JsonlReader(str(folder / "in"), adapter=as_document),
            FTFYFormatter(unescape_html=False, fix_line_breaks=True, normalization="NFC"),
            GopherQualityFilter(
                min_doc_words=limits.min_words,
                max_doc_words=limits.max_words,
                min_avg_word_length=limits.min_mean_word_length,
                max_avg_word_length=limits.max_mean_word_length,
                max_symbol_word_ratio=limits.max_symbol_to_word_ratio,
                max_bullet_lines_ratio=None,
                max_ellipsis_lines_ratio=None,
                max_non_alpha_words_ratio=None,
                min_stop_words=None,
            ),
            GopherRepetitionFilter(
                dup_line_frac=1 - limits.min_unique_line_fraction,
                dup_para_frac=None,
                dup_line_char_frac=None,
                dup_para_char_frac=None,
                top_n_grams=(),
                dup_n_grams=(),
            ),
            JsonlWriter(str(folder / "clean"), compression=None),
        )
        run(
            JsonlReader(str(folder / "clean")),
            ExactDedupSignature(str(folder / "exact"), config=exact),
        )
        run(ExactFindDedups(str(folder / "exact"), str(folder / "exact-found"), config=exact))
        run(
            JsonlReader(str(folder / "clean")),
            ExactDedupFilter(str(folder / "exact-found"), config=exact),
            JsonlWriter(str(folder / "unique"), compression=None),
        )
        run(
            JsonlReader(str(folder / "unique")),
            MinhashDedupSignature(str(folder / "signatures"), config=minhash),
        )
        run(
            MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=minhash),
            tasks=minhash.num_buckets,
        )
        run(MinhashDedupCluster(str(folder / "buckets"), str(folder / "clusters"), config=minhash))
        run(
            JsonlReader(str(folder / "unique")),
            MinhashDedupFilter(str(folder / "clusters")),
            JsonlWriter(str(folder / "kept"), compression=None),
        )
        lines = [json.loads(line) for path in (folder / "kept").glob("*.jsonl") for line in path.open(encoding="utf-8")]
    kept.write_text(json.dumps([int(line["id"]) for line in lines]))


def content(document: Any) -> str:
    return document.text


def as_document(_reader: Any, row: dict[str, Any], _path: str, _number: int) -> dict[str, Any]:
    return {"text": f"{row['prompt']}\n{row['completion']}", "id": row["id"], "media": [], "metadata": {}}


SIDES: dict[str, Callable[[Path, Path, Path], None]] = {"--ray": on_ray, "--datatrove": on_datatrove}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in SIDES:
        SIDES[sys.argv[1]](*map(Path, sys.argv[2:5]))
    else:
        frame.main(__doc__, measure)
