"""Send planned requests at their times, and wait for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from chitu_like.bench.client import StreamRecord
from chitu_like.simulator.workload import PlannedRequest

Send = Callable[[PlannedRequest], Awaitable[StreamRecord]]


async def run_load(
    requests: Sequence[PlannedRequest],
    send: Send,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    max_concurrency: int | None = None,
    when_done: Callable[[StreamRecord], None] = lambda record: None,
) -> tuple[float, list[StreamRecord]]:
    """Send each request when it is due.

    Args:
        requests: in order of arrival.
        send: sends one and waits for its answer.
        clock: seconds that never go back.
        sleep: waits that many of the clock's seconds.
        max_concurrency: requests on their way at most; later ones wait here, which is not part of
            their times.
        when_done: told of each answer.

    Returns: when it began, and the records in the order of the requests.
    """
    gate: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
    if max_concurrency is not None:
        gate = asyncio.Semaphore(max_concurrency)

    async def send_one(request: PlannedRequest) -> StreamRecord:
        async with gate:
            record = await send(request)
        when_done(record)
        return record

    start_s = clock()
    tasks: list[asyncio.Task[StreamRecord]] = []
    try:
        for request in requests:
            wait_s = start_s + request.arrival_s - clock()
            if wait_s > 0:
                await sleep(wait_s)
            tasks.append(asyncio.create_task(send_one(request)))
        return start_s, list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
