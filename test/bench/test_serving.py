from __future__ import annotations

import asyncio
import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from bench import fake_openai
from bench.fake_openai import Body, FakeOpenAI, Write, serving

from chitu_like.bench import serving as serving_bench
from chitu_like.bench.client import Address, StreamClient, StreamRecord
from chitu_like.bench.latency import SentRequest, summarize
from chitu_like.bench.load import run_load
from chitu_like.cli import main
from chitu_like.core.errors import ConfigError
from chitu_like.simulator.workload import PlannedRequest

NUM_TOKENS = 4


class TurnedClock:
    """A clock that stands still until it is turned; counts how often it was read."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_reads = 0

    def __call__(self) -> float:
        self.num_reads += 1
        return self.now_s

    async def turn(self, delay_s: float) -> None:
        self.now_s += delay_s

    async def until_read(self, num_reads: int) -> None:
        while self.num_reads == num_reads:
            await asyncio.sleep(0)


class SlowServer:
    """Sends each token after a known delay of the clock, and waits until it was stamped."""

    def __init__(self, clock: TurnedClock, delays: list[list[float]]) -> None:
        self._clock = clock
        self._delays = iter(delays)

    async def __call__(self, body: Body, write: Write) -> None:
        await self._write(write, fake_openai.HEAD, 0.0)
        for delay_s in next(self._delays):
            await self._write(write, fake_openai.token_event(), delay_s)
        await self._write(write, fake_openai.usage_event(5, NUM_TOKENS) + fake_openai.DONE, 0.125)

    async def _write(self, write: Write, content: bytes, delay_s: float) -> None:
        await self._clock.turn(delay_s)
        num_reads = self._clock.num_reads
        await write(content)
        await self._clock.until_read(num_reads)


def planned(number: int, *, arrival_s: float = 0.0) -> list[PlannedRequest]:
    return [
        PlannedRequest(index=i, arrival_s=i * arrival_s, input_len=5, output_len=NUM_TOKENS)
        for i in range(number)
    ]


def test_known_delays_come_out_as_they_went_in() -> None:
    rng = random.Random(11)
    delays = [[rng.uniform(0.01, 2.0) for _ in range(NUM_TOKENS)] for _ in range(40)]
    clock = TurnedClock()

    async def measure() -> list[SentRequest]:
        server, url = await FakeOpenAI(SlowServer(clock, delays)).start()
        client = StreamClient(Address(url), {}, clock, 60.0)

        async def send(request: PlannedRequest) -> StreamRecord:
            return await client.stream("/v1/completions", {}, request.output_len)

        requests = planned(len(delays))
        start_s, records = await run_load(requests, send, clock=clock, max_concurrency=1)
        server.close()
        return [
            SentRequest(request=request, due_s=start_s, record=record)
            for request, record in zip(requests, records, strict=True)
        ]

    sent = asyncio.run(measure())
    summary = summarize(sent, clock.now_s, None)
    array = np.array(delays)
    expected = {
        "ttft_s": array[:, 0],
        "tpot_s": array[:, 1:].mean(axis=1),
        "itl_s": array[:, 1:].ravel(),
        "e2e_s": array.sum(axis=1) + 0.125,
    }
    for name, values in expected.items():
        spread = getattr(summary, name)
        assert spread.mean == pytest.approx(values.mean())
        for percentile in (50, 90, 99):
            found = getattr(spread, f"p{percentile}")
            assert found == pytest.approx(np.percentile(values, percentile)), name
    assert summary.num_failed == 0
    assert (summary.num_input_tokens, summary.num_output_tokens) == (200, 160)
    assert summary.output_tokens_per_s == pytest.approx(160 / (array.sum() + 40 * 0.125))


def test_requests_are_sent_when_they_are_due() -> None:
    clock = TurnedClock()

    async def send(request: PlannedRequest) -> StreamRecord:
        return StreamRecord(start_s=clock.now_s)

    async def measure() -> list[float]:
        clock.now_s = 100.0
        _, records = await run_load(
            planned(5, arrival_s=0.75), send, clock=clock, sleep=sleep_and_run
        )
        return [record.start_s for record in records]

    async def sleep_and_run(delay_s: float) -> None:
        await asyncio.sleep(0)  # what was sent before starts before the clock is turned
        await clock.turn(delay_s)

    assert asyncio.run(measure()) == pytest.approx([100.0, 100.75, 101.5, 102.25, 103.0])


async def stream_once(script: object, *, timeout_s: float = 10.0) -> StreamRecord:
    server, url = await FakeOpenAI(script).start()  # type: ignore[arg-type]
    client = StreamClient(Address(url), {}, asyncio.get_running_loop().time, timeout_s)
    record = await client.stream("/v1/completions", {"max_tokens": NUM_TOKENS}, NUM_TOKENS)
    server.close()
    return record


async def refuse(body: Body, write: Write) -> None:
    await write(fake_openai.plain("503 Service Unavailable", {"error": {"message": "full"}}))


async def break_off(body: Body, write: Write) -> None:
    await write(fake_openai.HEAD + fake_openai.token_event())


async def fail_midway(body: Body, write: Write) -> None:
    error = fake_openai.event({"error": {"message": "the engine died"}})
    await write(fake_openai.HEAD + fake_openai.token_event() + error)


async def say_nothing(body: Body, write: Write) -> None:
    await asyncio.sleep(5)


async def talk_nonsense(body: Body, write: Write) -> None:
    await write(fake_openai.HEAD + fake_openai.chunk(b"data: {nonsense\n\n"))


async def send_no_token(body: Body, write: Write) -> None:
    await write(fake_openai.HEAD + fake_openai.usage_event(1, 0) + fake_openai.DONE)


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (refuse, "status 503"),
        (break_off, "broke off before"),
        (fail_midway, "the engine died"),
        (say_nothing, "no answer within"),
        (talk_nonsense, "JSON is malformed"),
        (send_no_token, "brought no token"),
    ],
)
def test_what_went_wrong_is_in_the_record(script: object, fault: str) -> None:
    record = asyncio.run(stream_once(script, timeout_s=0.5))
    assert record.error is not None
    assert fault in record.error
    assert record.end_s >= record.start_s


def test_a_server_that_is_not_there_is_an_error_of_each_request() -> None:
    async def measure() -> StreamRecord:
        client = StreamClient(Address("http://127.0.0.1:9"), {}, lambda: 0.0, 5.0)
        return await client.stream("/v1/completions", {}, 1)

    record = asyncio.run(measure())
    assert record.error is not None
    assert "connection failed" in record.error


@pytest.mark.parametrize("empty_last", [True, False])
def test_empty_events_count_as_tokens_only_as_far_as_tokens_were_asked_for(
    empty_last: bool,
) -> None:
    async def script(body: Body, write: Write) -> None:
        await write(fake_openai.HEAD)
        for _ in range(NUM_TOKENS):  # texts are empty where the server has no tokenizer
            await write(fake_openai.token_event(""))
        if empty_last:
            await write(fake_openai.token_event("", "length"))
        await write(fake_openai.DONE)

    record = asyncio.run(stream_once(script))
    assert record.error is None
    assert (len(record.token_times), record.num_output_tokens) == (NUM_TOKENS, NUM_TOKENS)


def test_the_role_of_a_chat_is_no_token() -> None:
    async def script(body: Body, write: Write) -> None:
        await write(fake_openai.HEAD)
        for delta in ({"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}):
            await write(fake_openai.event({"choices": [{"index": 0, "delta": delta}]}))
        await write(fake_openai.DONE)

    assert len(asyncio.run(stream_once(script)).token_times) == 2


def test_the_command_measures_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeOpenAI()
    names = {kind: tmp_path / f"r.{kind}" for kind in ("json", "csv")}
    with serving(fake) as url:
        words = f"--base-url {url}/v1 --api-key s3cret --warmup 2 --num-requests 30 --input-len 7"
        words += " --output-len 5 --max-concurrency 4 --slo-ttft 60000"
        files = ["--json", str(names["json"]), "--csv", str(names["csv"])]
        code = main(["bench", "serving", *words.split(), *files])
    printed = capsys.readouterr().out
    assert code == 0
    assert "30, none failed" in printed
    assert "100.0% keep the SLO" in printed
    assert 1 < fake.peak <= 4
    bodies = fake.bodies
    assert len(bodies) == 32
    assert {len(body["prompt"]) for body in bodies} == {7}  # type: ignore[arg-type]
    assert len({json.dumps(body["prompt"]) for body in bodies}) == 32
    assert all(body["ignore_eos"] and body["max_tokens"] == 5 for body in bodies)
    assert all("Authorization: Bearer s3cret" in head for head in fake.headers)
    found = json.loads(names["json"].read_text())
    assert (found["num_requests"], found["num_output_tokens"]) == (30, 150)
    assert "s3cret" not in names["json"].read_text()
    with names["csv"].open() as file:
        assert len(list(csv.DictReader(file))) == 30


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="extra: plot")
    path = tmp_path / "r.png"
    with serving(FakeOpenAI()) as url:
        words = ["--base-url", url, "--num-requests", "3", "--plot", str(path)]
        assert main(["bench", "serving", *words]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "serving", "--plot", "x.png"]) == 2
    assert "chitu-like[plot]" in capsys.readouterr().err


def test_chitus_rounds_wait_for_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeOpenAI()
    with serving(fake) as url:
        words = ["--iterations", "3", "--batch-size", "2", "--seq-len", "4", "--warmup", "0"]
        assert main(["bench", "serving", "--base-url", url, "--model", "m", *words]) == 0
    assert fake.peak == 2
    assert [body["max_tokens"] for body in fake.bodies] == [4] * 6
    assert {body["model"] for body in fake.bodies} == {"m"}
    assert "/v1/models" not in fake.paths
    assert "6, none failed" in capsys.readouterr().out


def test_a_chat_endpoint_gets_messages() -> None:
    fake = FakeOpenAI()
    with serving(fake) as url:
        words = ["--endpoint", "chat", "--num-requests", "1", "--input-len", "3", "--stop-at-eos"]
        assert main(["bench", "serving", "--base-url", url, *words]) == 0
    assert fake.paths[-1] == "/v1/chat/completions"
    assert fake.bodies[-1]["messages"] == [{"role": "user", "content": "word word word"}]
    assert "ignore_eos" not in fake.bodies[-1]


def test_a_run_that_failed_whole_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeOpenAI(refuse)) as url:
        words = ["--base-url", url, "--num-requests", "3", "--warmup", "0"]
        assert main(["bench", "serving", *words]) == 1
    assert "3 x status 503" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--arrival", "poisson"],
        ["--arrival", "trace"],
        ["--trace", "x.csv"],
        ["--duration", "3"],
        ["--iterations", "3", "--num-requests", "4"],
        ["--rate", "-1"],
        ["--num-requests", "0"],
        ["--base-url", "ftp://x"],
        ["--base-url", "http://127.0.0.1:9"],
        ["--arrival", "trace", "--trace", "not-there.csv"],
        ["--lengths", "not-there.csv"],
        ["--frob"],
    ],
)
def test_mistakes_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serving", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1


def test_lengths_are_drawn_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("input_tokens,output_tokens\n3,4\n5,6\n7,8\n")
    parser = serving_bench.serving_parser("bench")
    options = parser.parse_args(["--lengths", str(path), "--num-requests", "9"])
    (plan,) = serving_bench.plan_rounds(options)
    assert sorted({(r.input_len, r.output_len) for r in plan}) == [(3, 4), (5, 6), (7, 8)]
    assert [(r.input_len, r.output_len) for r in plan[:3]] == [
        (r.input_len, r.output_len) for r in plan[3:6]
    ]


def test_a_plan_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = serving_bench.serving_parser("bench")
    words = ["--arrival", "poisson", "--rate", "0.001", "--duration", "0.001", "--model", "m"]
    options = parser.parse_args(words)
    with pytest.raises(ConfigError, match="nothing to send"):
        asyncio.run(serving_bench.generate_load(options, serving_bench.plan_rounds(options)))
