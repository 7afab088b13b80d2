"""One conversation in the terminal: turns, commands, and what an answer cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from rich.console import Console

from chitu_like.cli.chat_source import ChatSource, Message
from chitu_like.core.errors import ChituError

HELP = """\
/help           this
/reset          forget the conversation
/system TEXT    set the system prompt and begin anew; without TEXT: none
/quit           leave (so does Ctrl-D)
Ctrl-C          stop the answer; at the prompt: leave"""


class ChatSession:
    """Reads turns, streams answers, keeps the conversation.

    Args:
        source: who answers; closed by its owner.
        screen: where answers go.
        remarks: where everything else goes; standard error where the answers are piped.
        system: the system prompt, or None.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        source: ChatSource,
        screen: Console,
        remarks: Console,
        *,
        system: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._source = source
        self._screen = screen
        self._remarks = remarks
        self._system = system
        self._clock = clock
        self._turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """The conversation, system prompt first."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self._turns]

    def run(self, read_turn: Callable[[], str | None]) -> int:
        """Talk until the input ends or the user leaves.

        Args:
            read_turn: gets the user's next turn; None at the end of the input.

        Returns: how many turns failed.
        """
        num_failed = 0
        while (turn := read_turn()) is not None:
            text = turn.strip()
            if text in ("/quit", "/exit"):
                break
            if text.startswith("/"):
                self._obey(text)
            elif text:
                num_failed += not self.say(text)
        return num_failed

    def say(self, text: str) -> bool:
        """Send a turn and show the answer.

        Returns: False if it could not be answered; the turn is then taken back.
        """
        self._turns.append({"role": "user", "content": text})
        answer = _Answer(self._clock)
        try:
            with closing(self._source.answer(self.messages)) as pieces:
                for piece in pieces:
                    answer.take(piece.text, piece.num_tokens)
                    self._screen.out(piece.text, end="", highlight=False)
        except KeyboardInterrupt:
            answer.was_stopped = True
        except ChituError as error:
            self._screen.out("" if not answer.text else "\n", end="")
            self._remark(f"{error}", style="red")
            self._turns.pop()
            return False
        self._turns.append({"role": "assistant", "content": answer.text})
        self._screen.out("")
        self._remark(answer.cost(), style="dim")
        return True

    def _obey(self, text: str) -> None:
        command, _, rest = text.partition(" ")
        if command == "/reset":
            self._turns.clear()
            self._remark("the conversation is forgotten", style="dim")
        elif command == "/system":
            self._system = rest.strip() or None
            self._turns.clear()
            said = "no system prompt" if self._system is None else "the system prompt is set"
            self._remark(f"{said}; the conversation begins anew", style="dim")
        elif command == "/help":
            self._remark(HELP)
        else:
            self._remark(f"{command} is no command\n{HELP}")

    def _remark(self, text: str, style: str | None = None) -> None:
        self._remarks.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


class _Answer:
    """What came so far, and when."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.text = ""
        self.was_stopped = False
        self._clock = clock
        self._num_tokens = 0
        self._start_s = clock()
        self._first_s: float | None = None
        self._last_s = self._start_s

    def take(self, text: str, num_tokens: int) -> None:
        """Add a piece."""
        self.text += text
        self._num_tokens += num_tokens
        if num_tokens > 0 or text:
            self._last_s = self._clock()
            self._first_s = self._last_s if self._first_s is None else self._first_s

    def cost(self) -> str:
        """Tokens, tokens/s after the first, and the time to the first."""
        stopped = " (stopped)" if self.was_stopped else ""
        if self._first_s is None:
            return f"no tokens{stopped}"
        words = [f"{self._num_tokens} token{'s' * (self._num_tokens != 1)}{stopped}"]
        decode_s = self._last_s - self._first_s
        if self._num_tokens > 1 and decode_s > 0:
            words.append(f"{(self._num_tokens - 1) / decode_s:.1f} tokens/s")
        words.append(f"first after {self._first_s - self._start_s:.2f} s")
        return ", ".join(words)
