"""What JSON cannot say, minus infinity, is spelled as a number in all three spellings."""

from __future__ import annotations

import math

import msgspec

from chitu_like.core.output import TokenLogprobs
from chitu_like.server.logprobs import LOWEST, LogprobSpeller


def test_minus_infinity_is_a_number_in_every_spelling() -> None:
    entry = TokenLogprobs(7, -math.inf, 3, [(5, -0.5), (6, -math.inf)])
    speller = LogprobSpeller(None)
    (chat,) = speller.chat([entry], 2).content
    assert (chat.token, chat.logprob) == ("token_id:7", LOWEST)
    assert [top.logprob for top in chat.top_logprobs] == [-0.5, LOWEST]
    legacy = speller.legacy([entry], [0], 2)
    assert legacy.token_logprobs == [LOWEST]
    assert legacy.top_logprobs == [{"token_id:5": -0.5, "token_id:6": LOWEST, "token_id:7": LOWEST}]
    first, second = speller.prompt([entry])
    assert first is None
    assert second is not None
    assert [second[name].logprob for name in ("5", "6", "7")] == [-0.5, LOWEST, LOWEST]
    written = msgspec.json.decode(msgspec.json.encode([chat, legacy, second]))
    assert written[0]["logprob"] == LOWEST  # msgspec writes an infinity as null
