"""Steps to measure: all fit, none is twice, batches say what they are."""

from dataclasses import replace

import pytest

from chitu_like.bench.step_shapes import Room, StepShape, grid, held_out
from chitu_like.cluster.cost_model import BatchShape
from chitu_like.core.batch import SAMPLED_LAST
from chitu_like.core.errors import ConfigError

ROOMS = [
    Room(
        max_reqs=256,
        max_seq_len=8192,
        max_chunk=2048,
        max_tokens=2304,
        num_blocks=50_000,
        block_size=16,
    ),
    Room(max_reqs=8, max_seq_len=256, max_chunk=64, max_tokens=72, num_blocks=100, block_size=16),
]


@pytest.mark.parametrize("room", ROOMS)
def test_every_step_fits_and_every_kind_is_there(room: Room) -> None:
    fitted, checked = grid(room), held_out(room, 30, seed=1)
    assert all(map(room.holds, [*fitted, *checked]))
    assert len(set(fitted)) == len(fitted) < 400
    for kind in ("decodes", "prompts", "mixed"):
        assert sum(step.kind == kind for step in fitted) >= 4
        assert sum(step.kind == kind for step in checked) == 10
    assert not set(fitted) & set(checked)
    assert max(len(step.contexts) for step in fitted) > 0.6 * room.max_reqs
    assert max(sum(n for n, _ in step.chunks) for step in fitted) > 0.6 * room.max_chunk


def test_the_same_seed_gives_the_same_steps() -> None:
    room = ROOMS[0]
    assert grid(room, 3) == grid(room, 3) != grid(room, 4)
    assert held_out(room, 9, 3) == held_out(room, 9, 3) != held_out(room, 9, 4)


def test_batches_say_what_the_step_is() -> None:
    step = StepShape(contexts=(20, 33), chunks=((10, 0), (7, 32)))
    first, again = step.batches(16)
    shape = BatchShape(
        num_prefill_tokens=17,
        prefill_pairs=10 * 11 // 2 + 7 * 32 + 7 * 8 // 2,
        num_chunks=2,
        num_decodes=2,
        decode_context=53,
        prefill_context=32,
    )
    assert BatchShape.of(first) == BatchShape.of(again) == shape
    assert [row.slot for row in first.rows] == [0, 1, 2, 3]
    assert [row.slot for row in again.rows] == [2]  # only the new request brings its row again
    assert again.token_ids[:2] == [SAMPLED_LAST] * 2
    blocks = [block for row in first.rows for block in row.block_ids]
    assert sorted(blocks) == list(range(2 + 3 + 1 + 3))
    assert blocks != sorted(blocks)


def test_a_step_that_is_too_large_in_any_way_does_not_fit() -> None:
    room = ROOMS[1]
    assert room.holds(StepShape(contexts=(16,) * 8))
    assert not room.holds(StepShape(contexts=(16,) * 9))
    assert not room.holds(StepShape(contexts=(257,)))
    assert not room.holds(StepShape(chunks=((65, 0),)))
    assert not room.holds(StepShape(contexts=(256,) * 7))


@pytest.mark.parametrize("changes", [{"max_reqs": 1}, {"max_chunk": 4}, {"num_blocks": 0}])
def test_an_instance_without_room_for_such_steps_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="no room for steps to measure"):
        held_out(replace(ROOMS[0], **changes), 3, 0)
