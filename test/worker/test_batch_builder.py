import time

import torch
from tiny_model import sampling_row

from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch, SlotRow
from chitu_like.worker.batch_builder import build_forward_batch
from chitu_like.worker.slots import Slots

CPU = torch.device("cpu")


def make_slots(max_reqs: int, max_blocks: int) -> Slots:
    return Slots(max_reqs=max_reqs, max_blocks=max_blocks, vocab_size=100, device=CPU)


def test_a_mixed_batch_becomes_the_tensors_of_the_contract() -> None:
    slots = make_slots(8, 6)
    slots.last_sampled[2] = 77
    rows = [
        SlotRow(2, 5, [9], sampling_row(), []),
        SlotRow(6, 9, [4, 3], sampling_row(), []),
        SlotRow(0, 7, [], sampling_row(), []),
    ]
    batch = ScheduledBatch(
        step_id=0,
        slots=[2, 6, 0],
        num_tokens=[1, 3, 4],
        num_computed=[6, 7, 0],
        samples=[True, False, True],
        token_ids=[SAMPLED_LAST, 11, 12, 13, 21, 22, 23, 24],
        new_blocks=[[8], [5], [1]],
        rows=rows,
        swap_out=[],
        swap_in=[],
        num_decodes=1,
    )
    slots.apply(batch)
    forward = build_forward_batch(batch, slots, {}, block_size=4, device=CPU)
    assert forward.input_ids.tolist() == [77, 11, 12, 13, 21, 22, 23, 24]
    assert forward.positions.tolist() == [6, 7, 8, 9, 0, 1, 2, 3]
    assert forward.slot_mapping.tolist() == [34, 15, 20, 21, 4, 5, 6, 7]
    assert forward.slot_mapping.tolist()[1] == 3 * 4 + 3
    assert forward.block_tables.tolist() == [[9, 8, 0], [4, 3, 5], [1, 0, 0]]
    assert forward.block_tables.dtype == torch.int32
    assert forward.query_lens == [1, 3, 4]
    assert forward.context_lens == [7, 10, 4]
    assert forward.logits_indices.tolist() == [0, 7]
    assert forward.num_decodes == 1


def test_a_row_forgets_the_blocks_of_its_slots_last_request() -> None:
    slots = make_slots(1, 4)
    for blocks in ([7, 8, 9], [3]):
        row = SlotRow(0, 2, blocks, sampling_row(), [])
        batch = ScheduledBatch(0, [0], [2], [0], [True], [1, 2], [[]], [row], [], [], 0)
        slots.apply(batch)
    assert slots.block_tables[0].tolist() == [3, 0, 0, 0]


def test_host_work_of_64_decodes_stays_small() -> None:
    slots = make_slots(64, 256)
    rows = [SlotRow(i, 10, list(range(128)), sampling_row(), []) for i in range(64)]
    batch = ScheduledBatch(
        step_id=0,
        slots=list(range(64)),
        num_tokens=[1] * 64,
        num_computed=[2000] * 64,
        samples=[True] * 64,
        token_ids=[SAMPLED_LAST] * 64,
        new_blocks=[[]] * 64,
        rows=rows,
        swap_out=[],
        swap_in=[],
        num_decodes=64,
    )
    slots.apply(batch)
    batch = ScheduledBatch(**{f: getattr(batch, f) for f in batch.__struct_fields__} | {"rows": []})
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        slots.apply(batch)
        build_forward_batch(batch, slots, {}, block_size=16, device=CPU)
        seconds.append(time.perf_counter() - start)
    # The least of many: what it costs where nobody else wants the core. Measured: 0.03 ms.
    assert min(seconds) < 300e-6
