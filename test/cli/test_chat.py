from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Generator, Iterable

import pytest
from bench import fake_openai
from bench.fake_openai import Body, FakeOpenAI, Write, serving
from rich.console import Console

from chitu_like.cli import main
from chitu_like.cli.chat_session import ChatSession
from chitu_like.cli.chat_source import Message, Piece
from chitu_like.core.errors import RequestError

TINY = ("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=64")


class Script:
    """Answers with given pieces; notes what it was asked, and whether it was closed."""

    name = "script"

    def __init__(self, *answers: Iterable[Piece | BaseException]) -> None:
        self.asked: list[list[Message]] = []
        self.num_closed = 0
        self._answers = iter(answers)

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        self.asked.append(list(messages))
        try:
            for piece in next(self._answers):
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.num_closed += 1

    def close(self) -> None:
        """Nothing is held."""


def piece(text: str, num_tokens: int = 1) -> Piece:
    return Piece(text=text, num_tokens=num_tokens)


def session_of(
    source: Script, clock: Callable[[], float] | None = None
) -> tuple[ChatSession, io.StringIO, io.StringIO]:
    screen, remarks = io.StringIO(), io.StringIO()
    ticks = itertools.count(0.0, 0.5)
    session = ChatSession(
        source,
        Console(file=screen),
        Console(file=remarks, width=200),
        clock=clock or (lambda: next(ticks)),
    )
    return session, screen, remarks


def typed(*turns: str) -> Callable[[], str | None]:
    left = iter(turns)
    return lambda: next(left, None)


def test_an_answer_streams_and_its_cost_is_told() -> None:
    session, screen, remarks = session_of(Script([piece("Hel"), piece("lo", 2), piece(" [b]", 3)]))
    assert session.run(typed("hi\n")) == 0
    assert screen.getvalue() == "Hello [b]\n"
    # asked at 0, pieces at 0.5, 1.0 and 1.5: 5 tokens in the second after the first
    assert remarks.getvalue() == "6 tokens, 5.0 tokens/s, first after 0.50 s\n"


def test_the_conversation_grows_and_reset_forgets_it() -> None:
    source = Script([piece("A")], [piece("B")], [piece("C")])
    session, _, _ = session_of(source)
    session.run(typed("one", "two", "/reset", "three"))
    assert [[message["content"] for message in asked] for asked in source.asked] == [
        ["one"],
        ["one", "A", "two"],
        ["three"],
    ]


def test_a_system_prompt_begins_anew_and_stands_first() -> None:
    source = Script([piece("A")], [piece("B")], [piece("C")])
    session, _, _ = session_of(source)
    session.run(typed("one", "/system Be brief.", "two", "/system", "three"))
    assert source.asked[1][0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in source.asked[1]] == ["system", "user"]
    assert [message["role"] for message in source.asked[2]] == ["user"]


def test_ctrl_c_stops_the_answer_and_keeps_it() -> None:
    source = Script([piece("Once upon"), KeyboardInterrupt()], [piece("B")])
    session, screen, remarks = session_of(source)
    assert session.run(typed("a story", "go on")) == 0
    assert source.num_closed == 2
    assert source.asked[1][1] == {"role": "assistant", "content": "Once upon"}
    assert screen.getvalue() == "Once upon\nB\n"
    assert "1 token (stopped)" in remarks.getvalue()


def test_a_turn_that_fails_is_taken_back() -> None:
    source = Script([RequestError("too long")], [piece("B")])
    session, _, remarks = session_of(source)
    assert session.run(typed("one", "two")) == 1
    assert "too long" in remarks.getvalue()
    assert [message["content"] for message in source.asked[1]] == ["two"]


def test_commands_help_and_quit() -> None:
    source = Script()
    session, _, remarks = session_of(source)
    session.run(typed("/help", "/frob", "", "   ", "/quit", "never read"))
    assert source.asked == []
    assert "/system TEXT" in remarks.getvalue()
    assert "/frob is no command" in remarks.getvalue()


def test_a_pipe_chats_with_the_model_in_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n/reset\nhi\n"))
    assert main(["chat", "--temperature", "0", "--max-tokens", "12", *TINY]) == 0
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()
    assert first == second != ""
    assert printed.err.count("tokens/s, first after") == 2


def test_a_pipe_says_with_its_exit_code_that_a_turn_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 5000 + "\nhi\n"))
    assert main(["chat", "--max-tokens", "4", *TINY]) == 1
    printed = capsys.readouterr()
    assert "infer.max_seq_len" in printed.err
    assert len(printed.out.splitlines()) >= 1


async def talk(body: Body, write: Write) -> None:
    await write(fake_openai.HEAD)
    for content in ("", "Hi ", "there"):
        delta = {"role": "assistant", "content": content}
        await write(fake_openai.event({"choices": [{"index": 0, "delta": delta}]}))
    await write(fake_openai.usage_event(3, 7) + fake_openai.DONE)


def test_a_pipe_chats_with_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeOpenAI(talk)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    with serving(fake) as url:
        words = ["--url", url, "--api-key", "k", "--seed", "5", "--system", "Be kind."]
        assert main(["chat", *words]) == 0
    printed = capsys.readouterr()
    assert printed.out == "Hi there\n"
    assert "7 tokens" in printed.err
    (body,) = fake.bodies
    assert (body["model"], body["seed"], body["stream"]) == ("fake", 5, True)
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello"},
    ]
    assert all("Authorization: Bearer k" in head for head in fake.headers)


async def refuse(body: Body, write: Write) -> None:
    await write(fake_openai.plain("503 Busy", {"error": {"message": "the queue is full"}}))


async def break_off(body: Body, write: Write) -> None:
    delta = {"content": "Hi"}
    await write(fake_openai.HEAD + fake_openai.event({"choices": [{"delta": delta}]}))


async def fail_midway(body: Body, write: Write) -> None:
    error = fake_openai.event({"error": {"message": "the engine died"}})
    await write(fake_openai.HEAD + error)


@pytest.mark.parametrize(
    ("script", "fault"),
    [(refuse, "the queue is full"), (break_off, "broke off"), (fail_midway, "the engine died")],
)
def test_a_servers_failure_is_told(
    script: Callable[..., object],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    with serving(FakeOpenAI(script)) as url:  # type: ignore[arg-type]
        assert main(["chat", "--url", url, "--model", "m"]) == 1
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "ftp://x", "http://", "http://x:y"])
def test_a_url_that_leads_nowhere_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", url]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
