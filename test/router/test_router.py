from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

import pytest

from chitu_like.core.errors import CapacityError, PeerError, RequestError
from chitu_like.core.output import FinishReason, RequestDelta
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.messages import (
    AddRequest,
    EngineInfo,
    EngineStats,
    Failed,
    Ready,
    StepMessage,
    ToFrontEnd,
)
from chitu_like.router.admission import Refused
from chitu_like.router.inbox import MAX_PENDING_DELTAS
from chitu_like.router.policy import Policy, make_policy
from chitu_like.router.router import Router, RouterState


class ScriptedEngine:
    """An engine that says what the test puts into it."""

    def __init__(self, max_reqs: int = 2) -> None:
        self.said: asyncio.Queue[ToFrontEnd] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.added: list[AddRequest] = []
        self.aborted: list[str] = []
        self.is_deaf = False
        self.was_shut_down = False
        self.is_closed = False
        self.said.put_nowait(Ready(EngineInfo(100, max_reqs, 10, 16, 50)))

    def add(self, request: AddRequest) -> None:
        if self.is_deaf:
            raise CapacityError("deaf")
        self.added.append(request)

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids

    def shutdown(self) -> None:
        self.was_shut_down = True

    def close(self) -> None:
        self.is_closed = True

    async def messages(self) -> AsyncIterator[ToFrontEnd]:
        while True:
            yield await self.said.get()

    async def wait_gone(self) -> None:
        await self.gone.wait()

    def step(self, *deltas: RequestDelta) -> None:
        self.said.put_nowait(StepMessage(list(deltas), EngineStats()))


def request(name: str, num_tokens: int = 3) -> AddRequest:
    return AddRequest(name, [1] * num_tokens, SamplingParams(max_tokens=4))


def token(name: str, *, last: bool = False) -> RequestDelta:
    return RequestDelta(name, [7], finish_reason=FinishReason.STOP if last else None)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


Scenario = Callable[[Router, list[ScriptedEngine]], Coroutine[None, None, None]]


def play(
    scenario: Scenario,
    num_engines: int = 1,
    queued: int = 2,
    tokens: int = 1000,
    policy: Policy | None = None,
) -> None:
    """Run a scenario on a router that is ready."""

    async def run() -> None:
        engines = [ScriptedEngine() for _ in range(num_engines)]
        router = Router(
            engines, max_queued_requests=queued, max_queued_tokens=tokens, policy=policy
        )
        running = asyncio.ensure_future(router.run())
        assert router.state is RouterState.LOADING
        with pytest.raises(Refused, match="loading"):
            router.submit([request("early")])
        await turn()
        assert router.state is RouterState.READY
        await asyncio.wait_for(scenario(router, engines), 10)
        running.cancel()

    asyncio.run(run())


def test_deltas_reach_the_inbox_of_their_call() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        first, second = router.submit([request("a")]), router.submit([request("b")])
        engines[0].step(token("a"), token("b"), token("nobody"))
        engines[0].step(token("a", last=True))
        await turn()
        assert [delta.request_id for delta in await first.get()] == ["a", "a"]
        assert [delta.request_id for delta in await second.get()] == ["b"]
        assert await second.get(timeout_s=0.01) == []
        assert router.num_open == 1

    play(scenario)


def test_a_full_service_refuses_all_of_a_call_and_recovers() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        router.submit([request("a"), request("b"), request("c")])
        with pytest.raises(Refused, match="full") as caught:
            router.submit([request("d"), request("e")])
        assert caught.value.code == "overloaded"
        assert [r.request_id for r in engines[0].added] == ["a", "b", "c"]
        engines[0].step(token("a", last=True))
        await turn()
        router.submit([request("d"), request("e")])
        with pytest.raises(RequestError, match="5 requests"):
            router.submit([request(str(i)) for i in range(5)])

    play(scenario)


def test_waiting_tokens_are_bounded_but_one_large_prompt_is_let_in() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        router.submit([request("large", 90)])
        with pytest.raises(Refused):
            router.submit([request("small", 1)])
        engines[0].step(token("large"))
        await turn()
        router.submit([request("small", 1)])

    play(scenario, tokens=10)


def test_calls_spread_over_instances_and_siblings_stay_together() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        prompt = [1, 2, 3]
        params = SamplingParams(max_tokens=1)
        router.submit([AddRequest(f"n{i}", prompt, params) for i in range(2)])
        router.submit([request("x"), request("y")])
        assert [r.request_id for r in engines[0].added] == ["n0", "n1"]
        assert [r.request_id for r in engines[1].added] == ["x", "y"]
        assert router.info is not None
        assert (router.info.max_reqs, router.info.max_seq_len) == (4, 100)

    play(scenario, num_engines=2)


def test_aborting_tells_the_engine_and_frees_the_place() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        inbox = router.submit([request("a"), request("b")])
        router.abort_requests(["a", "unknown"])
        assert engines[0].aborted == ["a"]
        router.abort(inbox)
        router.abort(inbox)
        assert engines[0].aborted == ["a", "b"]
        assert router.num_open == 0

    play(scenario)


def test_an_engine_that_does_not_take_a_request_leaves_nothing_behind() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        engines[0].is_deaf = True
        with pytest.raises(CapacityError):
            router.submit([request("a")])
        assert router.num_open == 0

    play(scenario)


def test_a_reader_that_sleeps_is_cut_off_alone() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        sleeper, reader = router.submit([request("s")]), router.submit([request("r")])
        for _ in range(MAX_PENDING_DELTAS + 1):
            engines[0].step(token("s"), token("r"))
            await turn()
            await reader.get()
        assert sleeper.closed.is_set()
        assert engines[0].aborted == ["s"]
        assert len(await sleeper.get()) == MAX_PENDING_DELTAS
        with pytest.raises(CapacityError, match="does not read"):
            await sleeper.get()
        assert router.num_open == 1

    play(scenario)


@pytest.mark.parametrize("cause", ["failed", "gone"])
def test_a_failure_reaches_every_inbox_after_what_came_before(cause: str) -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        inbox = router.submit([request("a")])
        engines[0].step(token("a"))
        if cause == "failed":
            engines[0].said.put_nowait(Failed("broken"))
        else:
            engines[0].gone.set()
        await router.failed.wait()
        assert len(await inbox.get()) == 1
        with pytest.raises(PeerError):
            await inbox.get()
        with pytest.raises(PeerError):
            router.submit([request("b")])
        assert router.state is RouterState.FAILED
        assert router.num_open == 0

    play(scenario)


def test_progress_is_counted_only_while_work_is_open() -> None:
    async def run() -> None:
        engine = ScriptedEngine()
        seconds = 0.0
        router = Router([engine], max_queued_requests=9, max_queued_tokens=99, now=lambda: seconds)
        running = asyncio.ensure_future(router.run())
        await turn()
        seconds = 1000.0
        assert router.seconds_without_progress() == 0
        router.submit([request("a")])
        seconds = 1007.0
        assert router.seconds_without_progress() == 7
        engine.step(token("a"))
        await turn()
        assert router.seconds_without_progress() == 0
        running.cancel()

    asyncio.run(run())


def test_random_histories_leave_no_count_behind() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        chance = random.Random(5)
        open_names: dict[str, int] = {}
        inboxes = {}
        for number in range(600):
            act = chance.random()
            if act < 0.4:
                name = f"r{number}"
                try:
                    inboxes[name] = router.submit([request(name, chance.randint(1, 9))])
                except Refused:
                    continue
                index = next(
                    i for i, e in enumerate(engines) if e.added and e.added[-1].request_id == name
                )
                open_names[name] = index
            elif open_names and act < 0.8:
                name = chance.choice(sorted(open_names))
                last = chance.random() < 0.5
                engines[open_names[name]].step(token(name, last=last))
                if last:
                    del open_names[name]
            elif open_names:
                name = chance.choice(sorted(open_names))
                router.abort(inboxes[name])
                del open_names[name]
            await turn()
            assert router.num_open == len(open_names)
        for name in open_names:
            router.abort(inboxes[name])
        loads = [instance.load() for instance in router.instances]
        assert all(load.num_open == 0 and load.num_waiting_tokens == 0 for load in loads)

    play(scenario, num_engines=3, tokens=20)


# ---- several instances ----


def test_an_instance_fails_alone_and_the_others_go_on() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        lost: list[int] = []
        router.on_lost = lambda instance: lost.append(instance.number)
        inboxes = [router.submit([request(name)]) for name in "abc"]
        engines[1].gone.set()
        while not lost:
            await asyncio.sleep(0.01)
        await turn()
        assert (lost, router.state, router.failure) == ([1], RouterState.READY, None)
        assert engines[1].is_closed
        with pytest.raises(PeerError, match="cannot be finished"):
            await inboxes[1].get()
        engines[0].step(token("a", last=True))
        engines[2].step(token("c", last=True))
        await turn()
        assert [len(await inboxes[i].get()) for i in (0, 2)] == [1, 1]
        for name in "defg":
            router.submit([request(name)])
        assert [len(engine.added) for engine in engines] == [3, 1, 3]
        assert router.info is not None
        assert router.info.max_reqs == 4

    play(scenario, num_engines=3)


def test_the_service_fails_with_its_last_instance() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        engines[0].said.put_nowait(Failed("first"))
        await turn()
        assert router.state is RouterState.READY
        inbox = router.submit([request("a")])
        engines[1].said.put_nowait(Failed("second"))
        await router.failed.wait()
        assert router.failure == "second"
        with pytest.raises(PeerError):
            await inbox.get()

    play(scenario, num_engines=2)


def test_an_instance_lost_while_another_loads_is_the_failure_of_all() -> None:
    async def run() -> None:
        engines = [ScriptedEngine(), ScriptedEngine()]
        engines[1].said.get_nowait()  # it never becomes ready
        router = Router(engines, max_queued_requests=2, max_queued_tokens=9)
        running = asyncio.ensure_future(router.run())
        await turn()
        assert router.state is RouterState.LOADING
        engines[0].gone.set()
        await asyncio.wait_for(router.failed.wait(), 5)
        running.cancel()

    asyncio.run(run())


def test_a_call_that_loses_one_request_frees_the_others() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        inbox = router.submit([request("a"), request("b")])
        assert [[r.request_id for r in e.added] for e in engines] == [["a"], ["b"]]
        router.fail_instance(router.instances[0], "gone")
        assert engines[1].aborted == ["b"]
        assert engines[0].aborted == []
        assert router.num_open == 0
        with pytest.raises(PeerError):
            await inbox.get()

    play(scenario, num_engines=2)


def test_a_full_instance_is_passed_over_and_only_a_full_service_refuses() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        router.submit([request("large", 90)])
        router.submit([request(name) for name in "ab"])
        assert [[r.request_id for r in e.added] for e in engines] == [["large"], ["a", "b"]]
        with pytest.raises(Refused):
            router.submit([request("c"), request("d", 90)])
        assert router.num_open == 3

    play(scenario, num_engines=2, tokens=10, policy=make_policy("round_robin"))


def test_each_instance_has_a_clock_of_its_own() -> None:
    async def run() -> None:
        seconds = 0.0
        engines = [ScriptedEngine(), ScriptedEngine()]
        router = Router(engines, max_queued_requests=2, max_queued_tokens=9, now=lambda: seconds)
        running = asyncio.ensure_future(router.run())
        await turn()
        router.submit([request("a")])
        router.submit([request("b")])
        seconds = 6.0
        engines[0].step(token("a"))
        await turn()
        assert [instance.number for instance in router.stalled(5.0)] == [1]
        assert router.seconds_without_progress() == 0  # the service works
        router.fail_instance(router.instances[1], "no step")
        seconds = 12.0
        assert router.seconds_without_progress() == 6
        running.cancel()

    asyncio.run(run())


def test_gauges_of_a_lost_instance_fall_and_its_totals_stay() -> None:
    async def scenario(router: Router, engines: list[ScriptedEngine]) -> None:
        for engine in engines:
            stats = EngineStats(num_running=2, kv_usage=0.5, num_output_tokens=7)
            engine.said.put_nowait(StepMessage([], stats))
        await turn()
        router.fail_instance(router.instances[0], "gone")
        stats = router.stats
        assert (stats.num_running, stats.kv_usage, stats.num_output_tokens) == (2, 0.5, 14)

    play(scenario, num_engines=2)
