"""What draws tokens, compiled while weights are loaded.

The kernels of ops/triton/draw.py come in many forms, one after the other the longest part of a first
start. Compiling is mostly done outside of Python's lock, so threads share it; later starts find all
of it on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from chitu_like.ops.draw import NUM_PARAMS
from chitu_like.ops.triton.draw_tiling import row_counts
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.sampler import Sampler


@contextmanager
def draws_beside(runner: ModelRunner) -> Iterator[None]:
    """Draw once in every form that batches may need, in threads beside the block; waits at its end.

    Ranks that draw no tokens, and devices for which nothing is compiled, draw none.
    """
    options = runner.options
    sampler = Sampler(runner.device, options.op_impl)
    if not (runner.samples and sampler.is_capturable):
        yield
        return
    max_rows = min(options.max_reqs, options.max_num_batched_tokens)
    forms = [  # as in the profile run: a simple batch has the model's dtype, any other float32
        (num_rows, dtype)
        for num_rows in row_counts(max_rows)
        for dtype in dict.fromkeys((options.torch_dtype, torch.float32))
    ]
    with ThreadPoolExecutor(len(forms), "compile", _use_device, (runner.device,)) as pool:
        draws = [
            pool.submit(
                _draw_once, sampler, runner.device, num_rows, options.spec.vocab_size, dtype
            )
            for num_rows, dtype in forms
        ]
        yield
        for draw in draws:
            draw.result()  # raises what the compiler did


def _use_device(device: torch.device) -> None:
    if device.index is not None:  # each thread has a current one of its own
        torch.cuda.set_device(device)


def _draw_once(
    sampler: Sampler, device: torch.device, num_rows: int, vocab_size: int, dtype: torch.dtype
) -> None:
    """Greedily, from logits of zero; all dtypes are those of `Sampler.sample`."""
    slots = torch.arange(num_rows, dtype=torch.int32, device=device)
    sampler.draw(
        logits=torch.zeros(num_rows, vocab_size, dtype=dtype, device=device),
        slots=slots,
        output_positions=torch.zeros_like(slots),
        params=torch.zeros(num_rows, NUM_PARAMS, dtype=torch.int32, device=device),
        last_sampled=torch.zeros(num_rows, dtype=torch.int64, device=device),
    )
