"""What is frozen is one list a process, which several parts of it share."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from chitu_like.core.garbage import LoadedObjects, freeze_loaded_objects


class Node:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_the_last_to_end_thaws() -> None:
    first, second = LoadedObjects(), LoadedObjects()
    first.freeze()
    second.freeze()
    first.thaw()
    first.thaw()
    assert gc.get_freeze_count() > 0
    second.thaw()
    assert gc.get_freeze_count() == 0


def test_freezing_again_collects_what_has_become_garbage() -> None:
    node = Node()
    is_alive = weakref.ref(node)
    freeze_loaded_objects()
    del node
    gc.collect()
    assert is_alive() is not None
    freeze_loaded_objects()
    assert is_alive() is None
