"""Rollouts from their request to their end, by a real controller, in virtual time."""

from __future__ import annotations

import asyncio
import json

import pytest

from include.artifacts.store import Store
from include.release.rollouts import CanaryPolicy, Quality, RolloutStatus
from jobs.serving.canary.analysis.observation import Observation
from jobs.serving.canary.analysis.runs import AnalysisRun, read, replay
from jobs.serving.canary.controller import RefusedError
from jobs.serving.canary.rollout import runner
from tests.jobs.serving.canary.world import POLICY, QUICK, TARGET, Clients, Life, World, run_virtually, with_champion

SEEDS = pytest.mark.parametrize("world", range(5), indirect=True)
"""What chance could decide is tried with traffic that is drawn several times."""


def policy(**changes: object) -> CanaryPolicy:
    return CanaryPolicy.model_validate({**POLICY.model_dump(), **changes})


async def first_release(life: Life) -> None:
    status = await life.release(life.world.request(1))
    assert status is not None and status.outcome == "promoted", status


def release(world: World, *, rate: int = 20, before=None, **changes: object):
    """Version 1 is live, version 2 is released; returns how that ended and the target."""

    async def work():
        async with Life(world) as life, Clients(world, rate):
            await first_release(life)
            if before:
                before()
            status = await life.release(world.request(2, 1, **changes))
            await asyncio.sleep(5)
            return status, life.controller.target(TARGET)

    return run_virtually(work())


def test_the_first_release_is_live_once_it_has_proven_itself(world):
    async def work():
        async with Life(world) as life:
            await first_release(life)
            await life.until(lambda: life.controller.target(TARGET).healthy)
            return life.controller.target(TARGET)

    target = run_virtually(work())
    assert target.champion.release.version == "1"
    assert target.rollout is None
    assert world.router.routes[TARGET]["champion"] == world.name(1)
    assert world.weights == [0.0]


@SEEDS
def test_a_good_canary_is_led_through_its_steps_and_promoted(world):
    status, target = release(world)
    assert status.outcome == "promoted"
    assert target.champion.name == world.name(2)
    assert [live.name for live in target.previous] == [world.name(1)]
    assert world.weights == [0.0, 0.0, 0.1, 0.5, 0.0]
    assert world.triton.loaded == {world.name(1), world.name(2)}, "the former champion stays warm"
    assert world.lost == 0
    messages = [note.message for note in status.notes]
    assert "step 1 of 2: 0.1 of the traffic" in messages
    assert messages[-1] == "finished: promoted"


@SEEDS
def test_every_analysis_run_is_kept_and_decided_alike_again(world):
    status, _ = release(world)
    store, name = Store.of(status.evidence)
    heading, runs = read(store.read_bytes(name, "looks.jsonl"), "log")
    assert heading.policy == POLICY
    assert runs[-1].action == "promote"
    assert [again.difference for again in replay(heading, runs)] == [None] * len(runs)
    assert runs[-1].figures == status.figures
    assert store.read_json(name, "status.json")["outcome"] == "promoted"
    assert "# Release on kubectl: promoted" in store.read_bytes(name, "report.md").decode()


def test_a_drill_that_nobody_notices_never_becomes_the_champion(world):
    """Nothing misbehaves in this world, so the judges would promote it."""
    status, target = release(world, drill="slow")
    assert status.outcome == "rolled_back"
    assert "the drill 'slow' went unnoticed" in status.reasons[0]
    assert target.champion.name == world.name(1)
    assert world.lost == 0


@pytest.mark.remedy("raise canary.step_seconds or canary.min_requests")
@pytest.mark.parametrize(
    "raised", [{"step_seconds": 60}, {"min_requests": 1000}], ids=lambda raised: next(iter(raised))
)
def test_a_drill_that_went_unnoticed_is_noticed_by_a_longer_look(world, raised):
    """It misbehaves from its thirtieth second on."""

    async def drill(life, number, changes):
        found = QUICK.model_dump() | changes
        request = world.request(2, 1, id=f"drill-{number}", drill="failing", policy=CanaryPolicy.model_validate(found))
        await life.controller.submit(request)
        await life.until(lambda: world.router.weight(TARGET) > 0)
        begins = asyncio.get_running_loop().call_later(30, world.failing.update, {f"{world.name(2)}-failing": 0.5})
        status = await life.until_ended(request.id)
        begins.cancel()
        world.failing.clear()
        return status

    async def work():
        async with Life(world) as life, Clients(world):
            await first_release(life)
            return await drill(life, 1, {}), await drill(life, 2, raised)

    unnoticed, noticed = run_virtually(work())
    assert unnoticed.reasons[0].endswith("; raise canary.step_seconds or canary.min_requests")
    assert noticed.outcome == "rolled_back" and noticed.reasons[0].startswith("errors: ")


def test_a_drill_with_nothing_to_go_back_to_is_refused(world):
    async def work():
        async with Life(world) as life:
            return await life.release(world.request(1, drill="slow"))

    status = run_virtually(work())
    assert status.outcome == "refused"
    assert "a drill needs a champion" in status.reasons[0]
    assert world.triton.loads == []


@SEEDS
@pytest.mark.parametrize(
    ("misbehave", "says"),
    [
        (lambda world, name: world.failing.update({name: 0.3}), "errors: "),
        (lambda world, name: world.slow.update({name: 0.8}), "latency: "),
        (lambda world, name: world.garbled_live.add(name), "quality: "),
    ],
    ids=["failing", "slow", "garbled"],
)
def test_a_canary_that_misbehaves_live_goes_back_and_says_why(world, misbehave, says):
    status, target = release(world, before=lambda: misbehave(world, world.name(2)))
    assert status.outcome == "rolled_back"
    assert status.reasons[0].startswith(says), status.reasons
    assert target.champion.name == world.name(1)
    assert world.router.routes[TARGET]["canary"] is None
    assert world.triton.loaded == {world.name(1)} == world.installed()
    assert world.lost == 0, "the champion answers for it"


def test_a_canary_whose_process_dies_goes_back_while_the_champion_answers(world):
    async def work():
        async with Life(world) as life, Clients(world, 1):
            await first_release(life)
            await life.controller.submit(world.request(2, 1))
            await life.until(lambda: 0.1 in world.weights)
            world.dead_stubs.add(world.name(2))
            return await life.until_ended("release-2")

    status = run_virtually(work())
    assert status.outcome == "rolled_back"
    assert any("unanswered, while the champion answered" in reason for reason in status.reasons)


def test_golden_prompts_that_change_under_traffic_send_it_back(world):
    async def work():
        async with Life(world) as life, Clients(world, 1):
            await first_release(life)
            await life.controller.submit(world.request(2, 1, policy=policy(quality=Quality(check_references=False))))
            await life.until(lambda: 0.1 in world.weights)
            world.garbled.add(world.name(2))
            return await life.until_ended("release-2")

    status = run_virtually(work())
    assert status.outcome == "rolled_back"
    assert status.reasons[0].startswith("golden prompts: 0 of 4")


def test_a_release_that_fails_its_golden_prompts_never_gets_traffic(world):
    status, _ = release(world, before=lambda: world.garbled.add(world.name(2)))
    assert status.outcome == "rolled_back"
    assert "0 of 4 golden prompts" in status.reasons[0]
    assert set(world.weights) == {0.0}
    assert world.installed() == {world.name(1)}


def test_a_release_that_does_not_load_goes_back_with_tritons_reason(world):
    status, _ = release(world, before=lambda: world.unloadable.add(world.name(2)))
    assert status.outcome == "rolled_back"
    assert "avx512_vnni" in status.reasons[0]
    assert world.triton.loaded == {world.name(1)} == world.installed()


@pytest.mark.remedy(
    "compare it with that one first (where MLflow's champion is not version … yet, clear the task promote"
)
def test_the_wrong_champion_refuses_and_the_one_that_is_live_does_not(world):
    async def work():
        async with Life(world) as life, Clients(world):
            await first_release(life)
            refused = await life.release(world.request(2, 7))
            return refused, await life.release(world.request(2, 1, id="compared-again"))

    status, again = run_virtually(work())
    assert status.outcome == "refused" and again.outcome == "promoted"
    assert "was compared with version 7, but version 1 is live by now" in status.reasons[0]
    assert "where MLflow's champion is not version 1 yet, clear the task promote" in status.reasons[0]


@pytest.mark.remedy("run release of this version, which builds it again")
def test_an_engine_that_is_gone_refuses_until_it_is_built_again(world):
    async def work():
        async with Life(world) as life, Clients(world):
            await first_release(life)
            request = world.request(2, 1)
            (world.folder / "store" / "engine-2" / "manifest.json").unlink()
            refused = await life.release(request)
            return refused, await life.release(world.request(2, 1, id="built-again"))

    status, again = run_virtually(work())
    assert status.outcome == "refused" and again.outcome == "promoted"
    assert "is gone: run release of this version, which builds it again" in status.reasons[0]


def test_a_release_that_is_live_already_is_promoted_at_once(world):
    async def work(life):
        return await life.release(world.request(1, 1, id="again")), life.controller.target(TARGET)

    status, target = with_champion(world, work)
    assert status.outcome == "promoted"
    assert any("is live already" in note.message for note in status.notes)
    assert target.previous == ()


@SEEDS
@pytest.mark.parametrize("fault", ["no traffic", "both bad", "no counts"])
def test_want_of_evidence_never_promotes(world, fault):
    def before() -> None:
        if fault == "both bad":
            world.failing.update({world.name(1): 0.1, world.name(2): 0.1})
        world.router.counting = fault != "no counts"

    status, target = release(world, rate=0 if fault == "no traffic" else 20, before=before)
    assert status.outcome == "inconclusive"
    assert "not enough evidence after 30" in status.reasons[0]
    assert any({"no counts": "counts could not be read"}.get(fault, "of the canary's") in why for why in status.reasons)
    assert target.champion.name == world.name(1)
    assert world.triton.loaded == {world.name(1)}


@pytest.mark.remedy(
    "Clear this task once there are more requests, or run release of this version with a lower canary.min_requests "
    "or a higher canary.max_seconds among its overrides."
)
@pytest.mark.parametrize(
    ("rate", "changes"),
    [(20, {}), (2, {"min_requests": 200}), (2, {"max_seconds": 3000})],
    ids=["more requests", "min_requests", "max_seconds"],
)
def test_what_was_inconclusive_is_decided_by_each_thing_that_its_task_names(world, rate, changes):
    few = {"min_requests": 1000}

    async def work():
        async with Life(world) as life:
            async with Clients(world, 2):
                await first_release(life)
                before = await life.release(world.request(2, 1, policy=policy(**few)))
            async with Clients(world, rate):
                return before, await life.release(world.request(2, 1, id="again", policy=policy(**few | changes)))

    before, again = run_virtually(work())
    assert before.outcome == "inconclusive" and again.outcome == "promoted", again.reasons


def runs_of(status: RolloutStatus) -> list[AnalysisRun]:
    """As they are in the evidence, decided again."""
    store, name = Store.of(status.evidence)
    heading, runs = read(store.read_bytes(name, "looks.jsonl"), "log")
    assert [again.difference for again in replay(heading, runs)] == [None] * len(runs)
    return runs


def test_a_canary_whose_latency_was_never_judged_is_not_promoted(world):
    status, _ = release(world, policy=policy(baseline_requests=100_000))
    assert status.outcome == "inconclusive"
    assert any(
        "latency is not judged yet" in why and "of 100000 answers of the champion" in why for why in status.reasons
    )
    assert not any(run.evidence.latency_judged for run in runs_of(status))


def test_times_that_the_router_cannot_count_are_not_judged_and_never_promote(world):
    world.beyond_count = True
    status, _ = release(world)
    assert status.outcome == "inconclusive"
    assert any("latency is not judged: the champion's own times are beyond" in why for why in status.reasons)


@SEEDS
@pytest.mark.parametrize(("slow", "outcome"), [(0.05, "promoted"), (0.8, "rolled_back")])
def test_latency_is_judged_as_soon_as_the_champion_has_answered_enough(world, slow, outcome):
    late = policy(baseline_requests=200, baseline_seconds=2)
    status, _ = release(world, policy=late, before=lambda: world.slow.update({world.name(2): slow}))
    assert status.outcome == outcome, status.reasons
    assert world.weights[:4] == [0.0, 0.0, 0.1, 0.1], "the limit is set within the first step"
    judged = [run.evidence.latency_judged for run in runs_of(status)]
    assert not judged[0] and judged[-1]
    if outcome == "rolled_back":
        assert status.reasons[0].startswith("latency: ")


def test_an_extension_is_told_and_lasts_as_long_again(world):
    status, _ = release(world, rate=0, policy=policy(inconclusive="extend"))
    assert status.outcome == "inconclusive"
    assert status.figures["seconds"] >= 600
    assert sum("extended" in note.message for note in status.notes) == 1


def test_a_held_canary_keeps_its_weight_until_a_person_lets_it_go_on(world):
    async def work():
        async with Life(world) as life:
            await first_release(life)
            await life.controller.submit(world.request(2, 1, policy=policy(inconclusive="hold")))
            with pytest.raises(RefusedError, match="is not held"):
                life.controller.resume("release-2")
            await life.until(lambda: life.controller.rollout("release-2").state == "held")
            weight = world.router.weight(TARGET)
            async with Clients(world):
                await asyncio.sleep(200)
                held = life.controller.rollout("release-2")
                life.controller.resume("release-2")
                life.controller.resume("release-2")
                return weight, held, await life.until_ended("release-2")

    weight, held, status = run_virtually(work())
    assert weight == 0.1
    assert held.state == "held", "good evidence alone does not end it"
    assert status.outcome == "promoted"
    assert runs_of(status)[-1].evidence.resumes == 1, "said twice is once"


def test_a_held_canary_goes_back_when_nobody_comes(world):
    status, _ = release(world, rate=0, policy=policy(inconclusive="hold", hold_seconds=100))
    assert status.outcome == "inconclusive"
    assert "nobody said resume or abort" in status.reasons[0]


def test_a_held_canary_that_does_harm_goes_back_by_itself(world):
    async def work():
        async with Life(world) as life:
            await first_release(life)
            await life.controller.submit(world.request(2, 1, policy=policy(inconclusive="hold")))
            await life.until(lambda: life.controller.rollout("release-2").state == "held")
            world.failing[world.name(2)] = 0.5
            async with Clients(world):
                return await life.until_ended("release-2")

    assert run_virtually(work()).outcome == "rolled_back"


def test_abort_sends_it_back_and_leaves_nothing(world):
    async def work(life):
        await life.controller.submit(world.request(2, 1))
        await life.until(lambda: 0.1 in world.weights)
        await life.controller.abort("release-2", "I do not like it")
        await life.controller.abort("release-2", "twice is once")
        return await life.until_ended("release-2")

    status = with_champion(world, work)
    assert (status.outcome, status.reasons) == ("rolled_back", ("aborted: I do not like it",))
    assert world.triton.loaded == {world.name(1)} == world.installed()


def test_a_promoted_rollout_cannot_be_aborted(world):
    async def work():
        async with Life(world) as life:
            await first_release(life)
            with pytest.raises(RefusedError, match="ask for a rollback"):
                await life.controller.abort("release-1", "too late")

    run_virtually(work())


def test_back_and_forward_again_in_seconds(world):
    async def work(life):
        await life.release(world.request(2, 1))
        loads = len(world.triton.loads)
        began = asyncio.get_running_loop().time()
        back = await life.release(world.rollback("back"))
        took = asyncio.get_running_loop().time() - began
        reloaded = len(world.triton.loads) - loads
        forward = await life.release(world.rollback("forth", 2))
        return back, took, reloaded, forward, life.controller.target(TARGET)

    back, took, reloaded, forward, target = with_champion(world, work)
    assert reloaded == 0
    assert (back.outcome, forward.outcome) == ("promoted", "promoted")
    assert back.champion.release.version == "1"
    assert took < 5
    assert target.champion.name == world.name(2)
    assert [live.name for live in target.previous] == [world.name(1)]
    assert world.lost == 0


@pytest.mark.parametrize(("version", "says"), [(None, "nothing was live"), (9, "version 9 was never live")])
def test_a_rollback_to_nothing_is_refused(world, version, says):
    async def work():
        async with Life(world) as life:
            await first_release(life)
            return await life.release(world.rollback("back", version))

    status = run_virtually(work())
    assert status.outcome == "refused"
    assert says in status.reasons[0]


def test_a_rollback_supersedes_a_canary(world):
    async def work(life):
        await life.release(world.request(2, 1))
        await life.controller.submit(world.request(3, 2))
        await life.until(lambda: life.controller.rollout("release-3").state == "step")
        back = await life.release(world.rollback("back", 1))
        return back, life.controller.rollout("release-3"), life.controller.target(TARGET)

    back, canary, target = with_champion(world, work)
    assert back.outcome == "promoted"
    assert (canary.outcome, canary.reasons) == ("rolled_back", ("superseded by the rollback back",))
    assert target.champion.name == world.name(1)
    assert world.triton.loaded == {world.name(1), world.name(2)}
    assert world.lost == 0


def test_a_rollback_asked_for_while_a_promoted_release_drains_waits_for_it(world):
    async def work(life):
        world.in_flight[world.name(1)] = 1
        await life.controller.submit(world.request(2, 1))
        await life.until(lambda: life.controller.rollout("release-2").state == "promoted")
        await life.controller.submit(world.rollback("back"))
        waiting = life.controller.rollout("back").state
        world.in_flight.clear()
        back = await life.until_ended("back")
        return waiting, life.controller.rollout("release-2"), back, life.controller.target(TARGET)

    waiting, forward, back, target = with_champion(world, work)
    assert waiting == "pending"
    assert (forward.outcome, back.outcome) == ("promoted", "promoted")
    assert target.champion.name == world.name(1)
    assert world.lost == 0


def test_a_rollback_waits_for_no_request_in_flight_and_for_no_evidence(world, monkeypatch):
    monkeypatch.setattr(runner, "_EVIDENCE_TRIES", 300)

    async def work():
        async with Life(world) as life, Clients(world):
            await first_release(life)
            world.store_up = False
            world.in_flight[world.name(1)] = 1
            await life.controller.submit(world.request(2, 1))
            await life.until(lambda: life.controller.rollout("release-2").state == "promoted")
            began = asyncio.get_running_loop().time()
            await life.controller.submit(world.rollback("back"))
            await life.until(lambda: life.controller.rollout("back").state == "promoted")
            took = asyncio.get_running_loop().time() - began
            ended = life.controller.rollout("release-2")
            await asyncio.sleep(30)
            world.store_up = True
            await life.until(lambda: life.controller.rollout("release-2").evidence, 10)
            return took, ended, await life.until_ended("back")

    took, ended, back = run_virtually(work())
    assert took < 5
    assert (ended.state, ended.outcome, ended.evidence) == ("finished", "promoted", None)
    assert back.outcome == "promoted" and back.champion.name == world.name(1)
    assert world.lost == 0


def test_one_rollout_at_a_time_and_the_same_request_twice_is_one(world):
    async def work():
        async with Life(world) as life:
            await first_release(life)
            _, new = await life.controller.submit(world.request(2, 1))
            _, again = await life.controller.submit(world.request(2, 1))
            with pytest.raises(RefusedError, match="rollout release-2 goes on"):
                await life.controller.submit(world.request(3, 1))
            with pytest.raises(RefusedError, match="was used for another request"):
                await life.controller.submit(world.request(3, 1, id="release-2"))
            return new, again

    assert run_virtually(work()) == (True, False)


def test_a_warm_release_goes_when_its_time_is_over(world):
    async def work(life):
        await life.release(world.request(2, 1, policy=policy(warm_seconds=1e-6)))
        await asyncio.sleep(5)
        warm = set(world.triton.loaded)
        back = await life.release(world.rollback("back"))
        return warm, back

    warm, back = with_champion(world, work)
    assert warm == {world.name(2)}
    assert back.outcome == "promoted", "it is loaded again from its engine"


def test_retiring_takes_everything_away(world):
    async def work(life):
        await life.controller.submit(world.request(2, 1))
        await life.until(lambda: 0.1 in world.weights)
        assert await life.controller.retire(TARGET) is True
        assert await life.controller.retire(TARGET) is False
        assert (world.router.routes, world.triton.loaded, world.installed()) == ({}, set(), set())
        assert world.rollouts() == []
        await first_release(life)

    with_champion(world, work)


def test_what_a_retired_target_left_loaded_goes_when_triton_lets_it(world):
    async def work():
        async with Life(world) as life:
            await first_release(life)
            world.stuck.add(world.name(1))
            await life.controller.retire(TARGET)
            left = set(world.triton.loaded)
            world.stuck.clear()
            await asyncio.sleep(5)
            return left, world.triton.loaded, world.installed()

    left, loaded, installed = run_virtually(work())
    assert left == {world.name(1)}
    assert loaded == installed == set()


def test_a_fault_of_the_controller_is_called_one_and_ends_the_rollout(world, monkeypatch):
    async def update(_observation):
        raise AttributeError("no such thing")

    monkeypatch.setattr(Observation, "update", update)
    status, _ = release(world)
    assert (status.outcome, status.restarts) == ("rolled_back", 3)
    assert "a fault of the controller (AttributeError: no such thing)" in status.reasons[0]
    assert not any("interrupted" in note.message for note in status.notes)


def test_status_is_json_that_reads_back(world):
    status, target = release(world)
    assert type(status).model_validate_json(status.model_dump_json()) == status
    assert json.loads(target.model_dump_json())["healthy"] is True
