"""What a step of decodes computes with; the kernel is held to the same by test_kernels.py."""

from ops.decode_inputs_cases import by_shape, check

from chitu_like.ops.decode_inputs import decode_inputs


@by_shape
def test_inputs_are_what_the_slots_hold(num_reqs: int, max_blocks: int, block_size: int) -> None:
    check(decode_inputs, num_reqs, max_blocks, block_size, "cpu")
