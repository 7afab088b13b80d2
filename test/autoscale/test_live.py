"""ZigZag: every layer of every batch once and in order, and more served than without it."""

from __future__ import annotations

import random

import pytest

from chitu_like.autoscale.live import ZigZag


@pytest.mark.parametrize("seed", range(50))
def test_every_batch_passes_every_layer_once_in_order(seed: int):
    rng = random.Random(seed)
    num_layers = rng.randint(1, 12)
    queue: ZigZag[list[int]] = ZigZag(num_layers)
    batches: list[list[int]] = []
    running: tuple[list[int], range] | None = None
    started_by_old: list[int] = []
    for _ in range(300):
        event = rng.randrange(5)
        if event == 0 and len(batches) < 30:
            batches.append([])
            queue.add(batches[-1])
        elif event == 1 and queue.num_ready < num_layers and rng.random() < 0.3:
            queue.land(queue.num_ready + 1)
        elif event == 2 and running is None:
            running = queue.next_for_new()
            if running is not None:
                assert running[1].start == len(running[0])
                assert len(running[1]) > 0
        elif event == 3 and running is not None:
            batch, layers = running
            batch += layers
            assert queue.computed(batch, layers) == (len(batch) == num_layers)
            running = None
        elif event == 4 and (found := queue.next_for_old()):
            batch, layers = found
            assert layers == range(len(batch), num_layers)
            assert running is None or batch is not running[0]
            batch += layers
            started_by_old.append(next(i for i, b in enumerate(batches) if b is batch))
    for batch in batches:
        assert batch == list(range(len(batch)))


def test_the_new_instance_goes_back_to_the_oldest_when_a_layer_lands():
    queue: ZigZag[str] = ZigZag(4)
    queue.add("a")
    queue.add("b")
    assert queue.next_for_new() is None
    queue.land(1)
    assert queue.next_for_new() == ("a", range(0, 1))
    queue.computed("a", range(0, 1))
    assert queue.next_for_new() == ("b", range(0, 1))
    queue.land(2)
    queue.computed("b", range(0, 1))
    assert queue.next_for_new() == ("a", range(1, 2))
    assert queue.next_for_old() == ("b", range(1, 4))  # the oldest that rests
    queue.computed("a", range(1, 2))
    assert queue.next_for_old() == ("a", range(2, 4))
    assert queue.next_for_old() is None


def test_layers_never_leave():
    queue: ZigZag[str] = ZigZag(4)
    queue.land(3)
    with pytest.raises(ValueError, match="2 layers are ready after 3 of 4"):
        queue.land(2)
