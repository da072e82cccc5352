"""Unmodified clients, through the router, before a real tritonserver with tiny real engines."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openai
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from include.artifacts.store import Store
from jobs.serving.triton.repository import install
from tests.jobs.serving.router.conftest import TOKEN, Router
from tests.jobs.serving.router.triton_double import TritonDouble
from tests.jobs.serving.triton.conftest import Server, release
from tests.jobs.serving.triton.conftest import running as triton_running
from tests.jobs.serving.triton.engine_fixture import PROMPTS, commit_engine, make_engine
from tests.ports import free_ports


@dataclass
class Served:
    """A tritonserver with two releases, what the first answers to each prompt, and one whose answers are very long."""

    triton: Server
    champion: str
    canary: str
    endless: str
    golden: dict[str, str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("router")
    store = Store(f"file://{folder}/store")
    engines = [make_engine(folder / f"engine-{seed}", seed) for seed in (1, 2)]
    engines.append(make_engine(folder / "endless", ends=False))
    rows = map(json.loads, (engines[0] / "golden.jsonl").read_text().splitlines())
    golden = {row["messages"][0]["content"]: row["answer"] for row in rows}
    with triton_running(folder / "serving") as triton:
        names = [
            install(triton.folder, release(commit_engine(store, f"engine-{version}", engine), version))
            for version, engine in enumerate(engines, 1)
        ]
        triton.load(*names)
        yield Served(triton, *names, golden)


@asynccontextmanager
async def routed(served: Served, folder: Path) -> AsyncIterator[Router]:
    (folder / "token").write_text(TOKEN)
    router = Router(folder, *free_ports(2), TritonDouble())
    await router.start(f"http://127.0.0.1:{served.triton.http}")
    try:
        await router.route(champion=served.champion, sample=1.0)
        yield router
    finally:
        await router.stop()


@pytest.fixture
def with_routed(served: Served, tmp_path: Path) -> Callable[..., None]:
    def run(body: Callable[[Router], Awaitable[None]]) -> None:
        async def work() -> None:
            async with asyncio.timeout(90), routed(served, tmp_path) as router:
                await body(router)

        asyncio.run(work())

    return run


def test_the_openai_client(with_routed: Callable[..., None], served: Served) -> None:
    async def body(router: Router) -> None:
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ["kubectl"]
            for prompt, answer in served.golden.items():
                messages = [{"role": "user", "content": prompt}]
                chat = await client.chat.completions.create(model="kubectl", messages=messages)
                (choice,) = chat.choices
                assert (choice.message.role, choice.message.content) == ("assistant", answer)
                assert choice.finish_reason in ("stop", "length") and chat.model == "kubectl"
                assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
                stream = await client.chat.completions.create(
                    model="kubectl", messages=messages, stream=True, stream_options={"include_usage": True}
                )
                chunks = [chunk async for chunk in stream]
                texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
                assert "".join(texts) == answer and len([text for text in texts if text]) > 1
                assert chunks[-2].choices[0].finish_reason == choice.finish_reason
                assert chunks[-1].usage == chat.usage
            whole = await client.completions.create(model="kubectl", prompt="kubectl get", max_tokens=5)
            assert whole.usage.completion_tokens == 5 and whole.choices[0].finish_reason == "length"
            stream = await client.completions.create(model="kubectl", prompt="kubectl get", max_tokens=5, stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text
            stop = whole.choices[0].text[2:4]
            stopped = await client.completions.create(model="kubectl", prompt="kubectl get", max_tokens=5, stop=[stop])
            assert stopped.choices[0].text == whole.choices[0].text.split(stop)[0]
            assert stopped.choices[0].finish_reason == "stop"
            with pytest.raises(openai.BadRequestError) as refused:
                await client.completions.create(model="kubectl", prompt="x", n=2)
            assert refused.value.param == "n"
            with pytest.raises(openai.BadRequestError) as refused:
                await client.completions.create(model="kubectl", prompt="x", max_tokens=4000)
            assert served.champion not in str(refused.value) and "max_tokens" in str(refused.value)
            with pytest.raises(openai.NotFoundError):
                await client.completions.create(model=served.champion, prompt="x")
        champion = (await router.counts())["champion"]
        assert champion["failed"] == champion["in_flight"] == 0 and champion["statuses"]["400"] == 1

    with_routed(body)


def test_the_triton_client(with_routed: Callable[..., None], served: Served) -> None:
    def use(router: Router) -> None:
        client = triton_http.InferenceServerClient(f"127.0.0.1:{router.port}", concurrency=4, network_timeout=20)
        try:
            assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("kubectl")
            assert not client.is_model_ready(served.champion)
            metadata = client.get_model_metadata("kubectl")
            assert metadata["outputs"][0]["name"] == "text_output"
            prompts = list(served.golden)
            messages = [json.dumps([{"role": "user", "content": prompt}]) for prompt in prompts]
            for binary in (True, False):
                tensor = triton_http.InferInput("messages", [len(messages), 1], "BYTES")
                array = np.array([text.encode() if binary else text for text in messages], dtype=np.object_)
                tensor.set_data_from_numpy(array.reshape(-1, 1), binary_data=binary)
                wanted = [triton_http.InferRequestedOutput(name, binary_data=binary) for name in ("text_output",)]
                for outputs in (None, wanted):
                    result = client.infer("kubectl", [tensor], outputs=outputs, request_id="7")
                    texts = result.as_numpy("text_output")
                    assert texts.shape == (len(prompts), 1)
                    decoded = [text.decode() if isinstance(text, bytes) else text for text in texts.flatten()]
                    assert decoded == list(served.golden.values())
                    assert result.get_response()["id"] == "7"
            compressed = client.infer("kubectl", [tensor], request_compression_algorithm="gzip")
            assert compressed.as_numpy("completion_tokens").dtype == np.int32
            requests = [client.async_infer("kubectl", [tensor]) for _ in range(8)]
            assert all((pending.get_result().as_numpy("prompt_tokens") > 0).all() for pending in requests)
            for call in (client.get_model_repository_index, lambda: client.unload_model(served.champion)):
                with pytest.raises(InferenceServerException, match="no such path"):
                    call()
            with pytest.raises(InferenceServerException, match="does not exist"):
                client.infer(served.champion, [tensor])
        finally:
            client.close()

    async def body(router: Router) -> None:
        # gevent keeps a loop of its own for each thread.
        outcome: list[BaseException] = []

        def guarded() -> None:
            try:
                use(router)
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.02)
        if outcome:
            raise outcome[0]
        assert (await router.counts())["champion"]["failed"] == 0

    with_routed(body)


def test_generate_streams(with_routed: Callable[..., None], served: Served) -> None:
    async def body(router: Router) -> None:
        for prompt, answer in served.golden.items():
            asked = {"messages": json.dumps([{"role": "user", "content": prompt}])}
            status, document = await router.post("/v2/models/kubectl/generate", asked)
            assert (status, document["text_output"], document["model_name"]) == (200, answer, "kubectl")
            async with router.session.post(f"{router.url}/v2/models/kubectl/generate_stream", json=asked) as response:
                lines = (await response.text()).split("\n\n")
            pieces = [json.loads(line[6:]) for line in lines if line]
            assert "".join(piece["text_output"] for piece in pieces) == answer
            assert {piece["model_name"] for piece in pieces} == {"kubectl"}
        samples = (await router.samples())["samples"]
        assert [sample["answer"] for sample in samples[::2]] == list(served.golden.values())
        assert samples[0]["messages"] == [{"role": "user", "content": PROMPTS[0]}]

    with_routed(body)


def test_a_stream_that_is_left_frees_the_model(with_routed: Callable[..., None], served: Served) -> None:
    async def body(router: Router) -> None:
        await router.route(champion=served.endless)
        asked = {"model": "kubectl", "prompt": "go on", "stream": True, "max_tokens": 4000}
        async with router.session.post(f"{router.url}/v1/completions", json=asked) as response:
            assert await response.content.readline()
        status, _ = await asyncio.wait_for(router.ask(max_tokens=1), 5)
        assert status == 200
        champion = (await router.counts())["champion"]
        assert (champion["statuses"], champion["finished"], champion["failed"]) == ({"200": 1, "499": 1}, 1, 0)

    with_routed(body)


def test_a_release_that_is_not_loaded_is_rescued_and_not_named(
    with_routed: Callable[..., None], served: Served
) -> None:
    async def body(router: Router) -> None:
        absent = "kubectl-v9-99999999"
        await router.route(champion=served.champion, canary=absent, weight=1.0)
        for streaming in (False, True):
            status, _ = await (router.stream() if streaming else router.ask())
            assert status == 200
        canary = (await router.counts())["canary"]
        assert (canary["failed"], canary["rescued"], canary["statuses"]) == (2, 2, {"503": 2})
        await router.route(champion=absent, canary=None)
        for streaming in (False, True):
            status, answer = await (router.stream() if streaming else router.ask())
            assert status == 503 and absent not in json.dumps(answer)
        async with router.session.get(f"{router.url}/v2/models/kubectl/ready") as response:
            assert response.status == 503

    with_routed(body)


def test_weights_change_and_releases_change_places_under_load(with_routed: Callable[..., None], served: Served) -> None:
    async def body(router: Router) -> None:
        statuses: list[int] = []
        changing = True

        async def client(number: int) -> None:
            while changing:
                streaming = number % 3 == 0
                status, _ = await (router.stream(max_tokens=20) if streaming else router.ask(max_tokens=20))
                statuses.append(status)

        clients = [asyncio.create_task(client(number)) for number in range(6)]
        champion, canary = served.champion, served.canary
        for _ in range(2):
            for weight in (0.05, 0.5, 1.0):
                await router.route(champion=champion, canary=canary, weight=weight)
                seen = len(statuses)
                while len(statuses) < seen + 50:
                    await asyncio.sleep(0.01)
            champion, canary = canary, champion
            await router.route(champion=champion, canary=None)
        changing = False
        await asyncio.gather(*clients)
        assert set(statuses) == {200} and len(statuses) >= 300
        generations = (await router.admin("GET", "/targets/kubectl/counts"))[1]["generations"]
        arms = [part[arm] for part in generations for arm in ("champion", "canary") if part[arm]]
        assert sum(arm["failed"] for arm in arms) == 0
        assert sum(arm["finished"] for arm in arms) == len(statuses)

    with_routed(body)
