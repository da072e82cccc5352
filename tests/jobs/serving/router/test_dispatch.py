"""Requests whose arm fails: their answers, and how they are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.jobs.serving.router.conftest import CANARY, CHAMPION, Router
from tests.jobs.serving.router.triton_double import GARBAGE

QUICK = ("--first-token-seconds", "0.5", "--between-tokens-seconds", "0.5", "--total-seconds", "1")


@pytest.mark.parametrize(
    ("mode", "status"),
    [
        ("error_500", 502),
        ("error_200", 502),
        ("nonsense", 502),
        ("cut", 502),
        ("busy", 503),
        ("absent", 503),
        ("hang", 504),
        ("rejects", 400),
        *((garbage, 502) for garbage in GARBAGE),
    ],
)
def test_the_champion_rescues_what_the_canary_fails(with_router: Callable[..., None], mode: str, status: int) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CANARY] = mode
        await router.route(canary=CANARY, weight=1.0, sample=1.0)
        answered, answer = await router.ask()
        assert (answered, answer["choices"][0]["text"]) == (200, "echo list pods")
        assert [release for release, _ in router.triton.asked] == [CANARY, CHAMPION]
        counts = await router.counts()
        canary = counts["canary"]
        assert (canary["assigned"], canary["finished"], canary["failed"], canary["rescued"]) == (1, 1, 1, 1)
        assert canary["statuses"] == {str(status): 1}
        assert canary["total"] == [] and canary["in_flight"] == 0
        assert counts["champion"]["assigned"] == counts["champion"]["finished"] == 0
        (sample,) = (await router.samples())["samples"]
        assert (sample["arm"], sample["failed"], sample["answer"]) == ("canary", True, None)

    with_router(body, *QUICK)


@pytest.mark.parametrize("mode", ["error_500", "error_200", "cut", "hang", "absent", *GARBAGE])
def test_a_stream_that_has_not_begun_is_rescued(with_router: Callable[..., None], mode: str) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CANARY] = mode
        await router.route(canary=CANARY, weight=1.0)
        status, events = await router.stream()
        assert status == 200 and events[-1] == "[DONE]"
        assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "one two three"
        canary = (await router.counts())["canary"]
        assert (canary["finished"], canary["failed"], canary["rescued"]) == (1, 1, 1)

    with_router(body, *QUICK)


@pytest.mark.parametrize("mode", ["error_midway", "cut_midway", "ends_midway", "pause_midway"])
def test_a_stream_that_breaks_ends_with_an_error_event(with_router: Callable[..., None], mode: str) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CANARY] = mode
        await router.route(canary=CANARY, weight=1.0)
        status, events = await router.stream()
        assert status == 200
        assert events[0]["choices"][0]["text"] == "one "
        assert events[-1]["error"]["type"] == "server_error"
        canary = (await router.counts())["canary"]
        assert (canary["finished"], canary["failed"], canary["rescued"]) == (1, 1, 0)

    with_router(body, *QUICK)


def test_without_a_canary_the_failure_is_told_and_names_no_release(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        for mode, status, message in (
            ("error_500", 502, "the model failed to answer: try again"),
            ("error_200", 502, "the model failed to answer: try again"),
            ("busy", 503, "the model cannot answer now: try again"),
            ("hang", 504, "the model took too long: try again"),
            ("rejects", 400, "the prompt of kubectl is too long"),
        ):
            router.triton.modes[CHAMPION] = mode
            for path, body in (
                ("/v1/completions", {"model": "kubectl", "prompt": "x"}),
                ("/v2/models/kubectl/generate", {"text_input": "x"}),
                ("/v2/models/kubectl/generate_stream", {"text_input": "x"}),
            ):
                answered, document = await router.post(path, body)
                message_sent = document["error"]["message"] if path.startswith("/v1") else document["error"]
                assert (answered, message_sent) == (status, message), path
        champion = (await router.counts())["champion"]
        assert champion["assigned"] == 15
        assert champion["finished"] == champion["failed"] == 12
        assert champion["statuses"] == {"400": 3, "502": 6, "503": 3, "504": 3}

    with_router(body, *QUICK)


def test_both_arms_failing_is_the_canarys_failure(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes |= {CANARY: "error_500", CHAMPION: "busy"}
        await router.route(canary=CANARY, weight=1.0)
        assert (await router.ask())[0] == 503
        counts = await router.counts()
        assert (counts["canary"]["failed"], counts["canary"]["rescued"]) == (1, 0)
        assert counts["champion"]["assigned"] == 0

    with_router(body)


def test_what_both_arms_refuse_is_the_clients_mistake(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes |= {CANARY: "rejects", CHAMPION: "rejects"}
        await router.route(canary=CANARY, weight=1.0)
        status, document = await router.ask()
        assert (status, document["error"]["message"]) == (400, "the prompt of kubectl is too long")
        canary = (await router.counts())["canary"]
        assert (canary["assigned"], canary["finished"], canary["failed"]) == (1, 0, 0)

    with_router(body)


def test_a_broken_connection_to_the_champion_is_tried_once_more(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "cut"
        assert (await router.ask())[0] == 502
        assert len(router.triton.asked) == 2
        champion = (await router.counts())["champion"]
        assert (champion["assigned"], champion["failed"]) == (1, 1)

    with_router(body)


def test_a_second_try_does_not_undo_a_failure_of_the_champion_either(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "cut_once"
        assert (await router.ask())[0] == 200
        champion = (await router.counts())["champion"]
        assert (champion["assigned"], champion["finished"]) == (1, 1)
        assert (champion["failed"], champion["rescued"], champion["statuses"]) == (1, 1, {"502": 1})

    with_router(body)


def test_a_client_that_gives_up_on_a_hanging_canary_is_evidence(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CANARY] = "hang"
        await router.route(canary=CANARY, weight=1.0, slow_seconds={"first_token": 0.2, "total": None})
        asked = asyncio.create_task(router.ask(stream=True))
        await router.triton.begun.wait()
        await asyncio.sleep(0.3)
        asked.cancel()
        while (canary := (await router.counts())["canary"])["in_flight"]:
            await asyncio.sleep(0.01)
        assert (canary["finished"], canary["failed"], canary["slow"], canary["statuses"]) == (1, 0, 1, {"499": 1})

    with_router(body)


def test_a_request_is_counted_under_the_route_it_was_assigned_by(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CANARY] = "slow"
        await router.route(canary=CANARY, weight=1.0, slow_seconds={"first_token": None, "total": 0.1})
        asked = asyncio.create_task(router.ask())
        while (await router.counts())["canary"]["in_flight"] == 0:
            await asyncio.sleep(0.01)
        await router.route(canary=None, champion=CANARY)
        assert (await asked)[0] == 200
        generations = (await router.admin("GET", "/targets/kubectl/counts"))[1]["generations"]
        before, after = generations[-2:]
        assert (before["canary"]["finished"], before["canary"]["slow"], before["canary"]["tokens"]) == (1, 1, 3)
        ((bound, number),) = before["canary"]["total"]
        assert number == 1 and 0.3 <= bound < 0.6
        assert after["champion"]["assigned"] == 0

    with_router(body)


def test_empty_answers_are_counted(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        await router.route(sample=1.0)
        router.triton.modes[CHAMPION] = "empty"
        await router.ask()
        await router.stream()
        router.triton.modes[CHAMPION] = "echo"
        await router.ask(temperature=0.5)
        champion = (await router.counts())["champion"]
        assert (champion["finished"], champion["empty"], champion["failed"]) == (3, 2, 0)
        samples = (await router.samples(after=1))["samples"]
        assert [(sample["seq"], sample["empty"], sample["greedy"]) for sample in samples] == [
            (2, True, True),
            (3, False, False),
        ]
        assert samples[1]["answer"] == "echo list pods" and samples[1]["prompt"] == "list pods"

    with_router(body)


def test_a_client_that_goes_away_ends_the_generation_and_is_no_failure(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        for mode, fields in (("hang", {}), ("pause_midway", {"stream": True})):
            router.triton.modes[CHAMPION] = mode
            router.triton.begun.clear()
            router.triton.gone.clear()
            asked = asyncio.create_task(router.ask(**fields))
            await router.triton.begun.wait()
            asked.cancel()
            await asyncio.wait_for(router.triton.gone.wait(), 5)
        while (champion := (await router.counts())["champion"])["in_flight"]:
            await asyncio.sleep(0.01)
        assert router.triton.broken_off == [CHAMPION, CHAMPION]
        assert (champion["assigned"], champion["finished"], champion["failed"]) == (2, 0, 0)
        assert champion["statuses"] == {"499": 2}

    with_router(body)


def test_one_request_too_many_is_sent_away(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "slow"
        asked = [asyncio.create_task(router.ask()) for _ in range(2)]
        while len(router.triton.asked) < 2:
            await asyncio.sleep(0.01)
        body = {"model": "kubectl", "prompt": "x"}
        async with router.session.post(f"{router.url}/v1/completions", json=body) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200]
        assert (await router.ask())[0] == 200
        champion = (await router.counts())["champion"]
        assert (champion["assigned"], champion["failed"]) == (3, 0)

    with_router(body, "--max-requests", "2")


def test_weights_change_under_load_without_a_failure(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        answers: list[int] = []
        changing = True

        async def client(streaming: bool) -> None:
            while changing:
                answers.append((await (router.stream() if streaming else router.ask()))[0])

        clients = [asyncio.create_task(client(number % 4 == 0)) for number in range(8)]
        for weight in (0.05, 0.25, 0.5, 0.75, 1.0, 0.0) * 5:
            await router.route(canary=CANARY, weight=weight)
            seen = len(answers)
            while len(answers) < seen + 20:
                await asyncio.sleep(0.005)
        changing = False
        await asyncio.gather(*clients)
        assert set(answers) == {200} and len(answers) >= 600
        generations = (await router.admin("GET", "/targets/kubectl/counts"))[1]["generations"]
        arms = [part[arm] for part in generations for arm in ("champion", "canary") if part[arm]]
        assert sum(arm["finished"] for arm in arms) == sum(arm["assigned"] for arm in arms) == len(answers)
        assert sum(arm["failed"] for arm in arms) == 0
        for part in generations:
            if part["weight"] in (0.0, 1.0):
                unused = "canary" if part["weight"] == 0 else "champion"
                assert part[unused] is None or part[unused]["assigned"] == 0

    with_router(body)
