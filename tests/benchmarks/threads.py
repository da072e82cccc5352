"""The threads that a job chooses against one thread: tokens a second of fine-tuning and of greedy answers.

    .anemone/venvs/jobs/bin/python tests/benchmarks/threads.py      # about fifteen minutes on two quiet cores

Random Llamas of the demo's shape, of 5, 30 and 135 million weights (SmolLM2-135M's shape), on all cores that this
process may use. A process each for the number of threads that the model's size gives and for one, in turns; the
smallest has one thread either way, and is measured with two. Every training step is 4 rows of 128 tokens, forwards and
backwards, in float32; an answer is 16 tokens after 32.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import frame
import models

from jobs.common.threads import cores, threads_for

SHAPES = {
    "0.8M": models.SHAPES["0.8M"],
    "5M": models.SHAPES["5M"],
    "30M": models.Shape(vocabulary=8000, hidden=512, intermediate=1408, layers=8, heads=8),
    "135M": models.Shape(vocabulary=49152, hidden=576, intermediate=1536, layers=30, heads=9),
}
ROWS, TOKENS, ASKED, ANSWERED = 4, 128, 32, 16
SECONDS, TURNS = 6.0, 3
SMALL_SECONDS, SMALL_TURNS = 0.5, 1


def measure(small: bool) -> list[frame.Row]:
    import torch

    seconds, turns = (SMALL_SECONDS, SMALL_TURNS) if small else (SECONDS, TURNS)
    here = cores()
    rows = []
    for name, shape in SHAPES.items():
        with torch.device("meta"):
            parameters = models.llama(shape).num_parameters()
        chosen = threads_for(parameters, here)
        compared = max(chosen, 2)
        found: dict[int, list[dict[str, float]]] = {compared: [], 1: []}
        for _ in range(turns):
            for threads, runs in found.items():
                told = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
                cost = frame.spend([sys.executable, __file__, "--work", name, str(seconds)], told)
                runs.append(json.loads(cost.output.splitlines()[-1]))
        shown = f"{chosen} chosen on {here} cores, {turns} turns of {seconds:g} s, {frame.versions('torch')}"
        for kind in ("fine-tune", "greedy"):
            rows.append(
                frame.against(
                    f"{name}, {kind}: {compared} threads / one",
                    *([run[kind] for run in found[threads]] for threads in (compared, 1)),
                    unit="tokens/s",
                    more_is_better=True,
                    aim=1.6 if (name, kind) == ("135M", "fine-tune") and here > 1 else None,
                    conditions=shown,
                )
            )
    return rows


def work(name: str, seconds: float) -> dict[str, Any]:
    """Tokens a second of training and of answering, by whatever number of threads the environment names."""
    import torch

    shape = SHAPES[name]
    model = models.llama(shape)
    ids = torch.randint(3, shape.vocabulary, (ROWS, TOKENS))

    def train() -> int:
        model.train()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()
        return ids.numel()

    def answer() -> int:
        model.eval()
        with torch.inference_mode():
            model.generate(
                ids[:, :ASKED], max_new_tokens=ANSWERED, min_new_tokens=ANSWERED, do_sample=False, pad_token_id=0
            )
        return ROWS * ANSWERED

    speeds = {}
    for kind, step in (("fine-tune", train), ("greedy", answer)):
        step()
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            done += step()
        speeds[kind] = done / (time.perf_counter() - began)
    return speeds


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(work(sys.argv[2], float(sys.argv[3]))))
    else:
        frame.main(__doc__, measure)
