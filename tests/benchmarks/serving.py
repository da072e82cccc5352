"""What an answer costs: router, Triton and CTranslate2 against FastAPI and transformers, in CPU seconds a request.

    .anemone/venvs/serving/bin/python tests/benchmarks/serving.py     # after `make demo`; about three minutes

The same questions as chat completions to both, greedily, by 1, 4 and 16 clients that each wait for their answer: to the
demo's newest merged model, whose answers end by themselves, and to a random Llama of 5M with the demo's tokenizer that
writes 64 tokens. The other side is what one writes in an afternoon: an endpoint that tokenises, calls `generate` in
float32 with the key-value cache, and decodes, one thread of torch a request. Counted is the CPU time of all processes
of a side, from before the first request to after the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import frame

SECONDS = 6.0
AIMS = {1: 6.0, 4: 12.0, 16: 20.0}
PROMPTS = 64
NEW_TOKENS = {"demo": 48, "5M": 64}


@dataclass(frozen=True)
class Side:
    """A running service: where it answers chat completions, and its processes."""

    url: str
    pids: list[int]


def measure(small: bool) -> list[frame.Row]:
    if small:
        global SECONDS
        SECONDS = 1.0
    with tempfile.TemporaryDirectory() as scratch:
        jobs_python("--prepare", scratch).check_returncode()
        return asyncio.run(compare(Path(scratch)))


def jobs_python(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(jobs_command(*arguments), env=quiet_environment())


def jobs_command(*arguments: str) -> list[str]:
    from include.laptop.home import python_of

    return [str(python_of("jobs")), __file__, *arguments]


def quiet_environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def prepare(scratch: Path) -> None:
    """Below `scratch`, for each model: `model/` as transformers reads it, `engine/` as serving does; and the questions.

    Runs in the environment of the jobs.
    """
    from models import SHAPES, demo_model

    from include.platforms import current_platform
    from jobs.common.engine_runtime.text import GENERATION, TEMPLATE, TOKENIZER
    from jobs.engine.ctranslate2 import CTranslate2Builder

    demo = demo_model(scratch / "random", 1)
    if not demo.trained:
        sys.exit(f"no merged model in {current_platform().store}: run `make demo` first")
    shutil.copytree(demo.folder, scratch / "demo" / "model")
    random_llama(demo.folder, SHAPES["5M"], scratch / "5M" / "model")
    for name, longest in NEW_TOKENS.items():
        folder = scratch / name / "artifact"
        folder.mkdir()
        build = CTranslate2Builder("int8").build(scratch / name / "model", folder / "engine")
        (folder / "build.json").write_text(json.dumps(build))
        for part in (TOKENIZER, TEMPLATE):
            shutil.copyfile(demo.folder / part, folder / part)
        settings = {"end_ids": [end_of(demo.folder)], "max_tokens": 256, "max_new_tokens": longest}
        (folder / GENERATION).write_text(json.dumps(settings))
    (scratch / "questions.json").write_text(json.dumps(questions(demo.folder)))


def random_llama(like: Path, shape: Any, folder: Path) -> None:
    """Make a Llama of this shape with random weights and the tokenizer of `like`, which never ends an answer."""
    from models import write_llama
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(like)
    write_llama(
        shape,
        folder,
        pad=tokenizer.pad_token_id,
        begin=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
        # What has no text: special tokens, and those that the tokenizer does not have.
        mute=[*tokenizer.added_tokens_decoder, *range(len(tokenizer), shape.vocabulary)],
    )
    for path in like.iterdir():
        if path.name.startswith("tokenizer") or path.suffix == ".jinja" or path.name == "special_tokens_map.json":
            shutil.copyfile(path, folder / path.name)


def end_of(model: Path) -> int:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model).eos_token_id


def questions(model: Path) -> list[list[dict[str, str]]]:
    """Messages of held-out rows of the data that the model was trained on."""
    from include.artifacts.store import Store
    from jobs.common.heldout import read_rows

    store, name = Store.of(f"file://{model.parents[3]}")
    manifest = store.manifest(name)
    assert manifest is not None
    data_store, data = Store.of(manifest.inputs["data"].uri)
    with data_store.open_files(data) as curated:
        return [row["messages"][:-1] for row in read_rows(curated / "heldout.jsonl", PROMPTS)]


def serve_baseline(model: Path, port: int) -> None:
    """FastAPI and transformers, in the environment of the jobs, until the process is ended."""
    import torch
    import uvicorn
    from fastapi import Body, FastAPI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    llm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    application = FastAPI()

    # Not async, so FastAPI runs it in its pool of threads.
    @application.post("/v1/chat/completions")
    def complete(request: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        prompt = tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            written = llm.generate(
                **prompt,
                do_sample=False,
                max_new_tokens=request["max_tokens"],
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )[0, prompt["input_ids"].shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True).strip()
        tokens = int((written != tokenizer.eos_token_id).sum())
        return {"choices": [{"message": {"content": text}}], "usage": {"completion_tokens": tokens}}

    uvicorn.run(application, host="127.0.0.1", port=port, log_level="error")


async def compare(scratch: Path) -> list[frame.Row]:
    asked = json.loads((scratch / "questions.json").read_text())
    print(
        "| model | clients | CPU s a request, FastAPI + transformers | Anemone | ratio | aim | requests/s | same |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    rows = []
    for name, longest in NEW_TOKENS.items():
        async with baseline(scratch / name / "model") as theirs, anemone(scratch / name) as ours:
            requests = [{"model": "kubectl", "messages": messages, "max_tokens": longest} for messages in asked]
            answers = [[await ask(side, request) for request in requests[:16]] for side in (theirs, ours)]
            same = agreement(name, *answers)
            for clients, aim in AIMS.items():
                their_cost, their_rate = await cost(theirs, requests, clients)
                our_cost, our_rate = await cost(ours, requests, clients)
                print(
                    f"| {name} | {clients} | {their_cost:.4f} | {our_cost:.5f} | **{their_cost / our_cost:.1f}** | "
                    f"≥ {aim:g} | {their_rate:.0f} → {our_rate:.0f} | {same} |",
                    flush=True,
                )
                rows.append(
                    frame.against(
                        f"serving / FastAPI + transformers: {name}, {clients} clients", [our_cost], [their_cost],
                        unit="CPU s a request", aim=aim,
                        conditions=f"{SECONDS:g} s a side, {longest} new tokens at most, the same answers: {same}; "
                        f"{their_rate:.0f} → {our_rate:.0f} requests/s",
                    )
                )  # fmt: skip
    print()
    return rows


def agreement(name: str, theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    """Count answers of the same text; of a random model, whose text depends on rounding, those of the same length."""
    if name == "demo":
        same = sum(text_of(one) == text_of(other) for one, other in zip(theirs, ours, strict=True))
        return f"{same}/{len(ours)} texts"
    lengths = [answer["usage"]["completion_tokens"] for answer in (*theirs, *ours)]
    return f"{lengths.count(NEW_TOKENS[name])}/{len(lengths)} of {NEW_TOKENS[name]} tokens"


@asynccontextmanager
async def baseline(model: Path) -> AsyncIterator[Side]:
    from tests.ports import free_ports

    (port,) = free_ports(1)
    log = model.parent / "baseline.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            jobs_command("--baseline", str(model), "--port", str(port)), env=quiet_environment(), stderr=output
        )
    try:
        while not await listens(port):
            assert process.poll() is None, log.read_text()
            await asyncio.sleep(0.2)
        yield Side(f"http://127.0.0.1:{port}", [process.pid])
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def anemone(folder: Path) -> AsyncIterator[Side]:
    from include.artifacts.store import Store
    from jobs.serving.triton.repository import install
    from tests.jobs.serving.router.conftest import TOKEN, Router
    from tests.jobs.serving.router.triton_double import TritonDouble
    from tests.jobs.serving.triton.conftest import release, running
    from tests.jobs.serving.triton.engine_fixture import commit_engine
    from tests.ports import free_ports

    engine = commit_engine(Store(f"file://{folder}/store"), "engine", folder / "artifact")
    triton = await asyncio.to_thread((context := running(folder / "serving")).__enter__)
    try:
        model = install(triton.folder, release(engine))
        await asyncio.to_thread(triton.load, model)
        (triton.folder / "token").write_text(TOKEN)
        router = Router(triton.folder, *free_ports(2), TritonDouble())
        await router.start(f"http://127.0.0.1:{triton.http}")
        try:
            await router.route(champion=model)
            yield Side(router.url, [router.process.pid, triton.process.pid])
        finally:
            await router.stop()
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def text_of(document: dict[str, Any]) -> str:
    return document["choices"][0]["message"]["content"]


async def ask(side: Side, request: dict[str, Any]) -> dict[str, Any]:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        return await answer(session, side, request)


async def answer(session: Any, side: Side, request: dict[str, Any]) -> dict[str, Any]:
    """Return the body that answers a chat completion."""
    async with session.post(f"{side.url}/v1/chat/completions", json=request) as response:
        document = await response.json()
        assert response.status == 200, document
        return document


async def cost(side: Side, requests: list[dict[str, Any]], clients: int) -> tuple[float, float]:
    """CPU seconds a request, and requests a second."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client(first: int, end: float) -> int:
            number = 0
            while time.monotonic() < end:
                await answer(session, side, requests[(first + number * clients) % len(requests)])
                number += 1
            return number

        await asyncio.gather(*(client(first, time.monotonic() + 0.5) for first in range(clients)))
        before, began = cpu_seconds(side.pids), time.monotonic()
        answered = sum(await asyncio.gather(*(client(first, began + SECONDS) for first in range(clients))))
        return (cpu_seconds(side.pids) - before) / answered, answered / (time.monotonic() - began)


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes and their children that live."""
    total, left = 0.0, list(pids)
    while left:
        process = Path(f"/proc/{left.pop()}")
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        left += [int(child) for task in process.glob("task/*/children") for child in task.read_text().split()]
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--port", type=int)
    arguments, _ = parser.parse_known_args()
    if arguments.prepare:
        prepare(arguments.prepare)
    elif arguments.baseline:
        serve_baseline(arguments.baseline, arguments.port)
    else:
        frame.main(__doc__, measure)
