"""What sizing says a training needs against what one takes: its state, what is kept for the backward pass, the peak.

    .anemone/venvs/jobs/bin/python tests/benchmarks/sizing.py      # about two minutes

Random Llamas, every weight trained by AdamW, two steps of rows as long as `max_tokens`, on a CPU, where float32 and
bfloat16 take the bytes that they take on a GPU. The state and what autograd keeps are counted in tensors, the peak is
the process's resident memory less what it had before the model. A ratio above 1 would refuse what fits.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import frame
import models

from include.sizing import training_memory
from include.specs.finetune import Config

SHAPES = {
    "5M": models.SHAPES["5M"],
    "30M": models.Shape(vocabulary=8000, hidden=512, intermediate=1408, layers=8, heads=8),
    "110M": models.SHAPES["110M"],
}
ROWS, TOKENS = 4, 256
DTYPES = ("float32", "bfloat16")


def measure(small: bool) -> list[frame.Row]:
    names = list(SHAPES)[: 1 if small else len(SHAPES)]
    ratios: dict[str, list[float]] = {"state": [], "kept": [], "peak": []}
    with tempfile.TemporaryDirectory(dir=frame.scratch()) as scratch:
        for name in names:
            folder = Path(scratch) / name
            models.write_llama(SHAPES[name], folder, pad=0, begin=1, end=2, mute=())
            for dtype in DTYPES:
                config = Config(
                    method="sft", dtype=dtype, steps=2, learning_rate=1e-4, global_batch_size=ROWS,
                    local_batch_size=ROWS, max_tokens=TOKENS, chat_template="-",
                )  # fmt: skip
                shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                told = training_memory(config, shape, models.parameters(folder))
                done = frame.spend([sys.executable, __file__, "--train", folder, dtype])
                took = json.loads(done.output.splitlines()[-1])
                ratios["state"].append(told.state / took["state"])
                ratios["kept"].append(told.activations / took["kept"])
                ratios["peak"].append((told.state + told.activations) / took["peak"])
    shown = f"Llamas of {', '.join(names)} in {' and '.join(DTYPES)}, {ROWS} rows of {TOKENS} tokens; "
    shown += frame.versions("torch", "transformers")
    return [
        frame.figure("sizing: state told / state kept", ratios["state"], unit="", aim=("<=", 1.001), conditions=shown),
        frame.figure("sizing: activations told / kept", ratios["kept"], unit="", aim=("<=", 1), conditions=shown),
        frame.figure(
            "sizing: told / peak of resident memory", ratios["peak"], unit="", aim=("<=", 1), conditions=shown
        ),
    ]


def train(folder: Path, dtype: str) -> dict[str, Any]:
    """Two steps; bytes of the state, of what the last forward pass kept beside the weights, and of the peak."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    # What the first pass through a library takes is not the training's.
    torch.nn.Linear(8, 8)(torch.ones(2, 8)).sum().backward()
    before = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(3, model.config.vocab_size, (ROWS, TOKENS))
    for _ in range(2):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = model(input_ids=ids, use_cache=False).logits
            loss = cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        state = sum(
            tensor.nbytes
            for weight in model.parameters()
            for tensor in (weight, weight.grad, *(v for v in optimizer.state[weight].values() if v.dim()))
        )
        optimizer.zero_grad()
    # Autograd keeps probabilities only: the logits are the caller's, and their gradient comes with the backward pass.
    logit = 0 if logits.untyped_storage().data_ptr() in kept else logits.nbytes
    kept_bytes = sum(kept.values()) + logit + 4 * logits.numel()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"state": state, "kept": kept_bytes, "peak": peak}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        print(json.dumps(train(Path(sys.argv[2]), sys.argv[3])))
    else:
        frame.main(__doc__, measure)
