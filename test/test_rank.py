"""rank: what a follower does about its leader's end."""

from __future__ import annotations

import faulthandler
import os
import time

import pytest

from chitu_like import rank
from chitu_like.core.ending import FAILED, LAST_WORDS_S


def test_a_rank_that_loses_its_leader_lets_it_have_the_last_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A leader that cannot load closes the channel first, and says why with its front end gone."""
    done: list[object] = []
    monkeypatch.setattr(time, "sleep", done.append)
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda all_threads: done.append("stacks"))
    monkeypatch.setattr(os, "_exit", done.append)
    rank._end_without_leader(4, "connection closed")
    assert done == [LAST_WORDS_S, "stacks", FAILED]
    assert "rank 4, which leads this instance, is lost (connection closed)" in caplog.text
