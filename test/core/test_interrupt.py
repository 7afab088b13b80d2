from __future__ import annotations

import os
import signal
import threading

import pytest

from chitu_like.core.interrupt import deferred_interrupt, noted_interrupt


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 the block is what is tested
        with deferred_interrupt():
            press()
            done.append("the rest of the block")
        done.append("behind it")
    assert done == ["the rest of the block"]


def test_a_second_ctrl_c_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():  # noqa: PT012
        press()
        press()
        done.append("the rest")
    assert done == []


def test_a_noted_ctrl_c_is_only_noted() -> None:
    with noted_interrupt() as was_pressed:
        assert not was_pressed()
        press()
        assert was_pressed()


def test_blocks_nest_and_the_outer_one_notes() -> None:
    with noted_interrupt() as was_pressed:
        with deferred_interrupt():
            press()
        assert was_pressed()


def test_afterwards_everything_is_as_before() -> None:
    with deferred_interrupt(), noted_interrupt():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        press()


def test_other_threads_change_nothing() -> None:
    seen = []

    def run() -> None:
        with deferred_interrupt(), noted_interrupt() as was_pressed:
            seen.append((signal.getsignal(signal.SIGINT), was_pressed()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(signal.default_int_handler, False)]
