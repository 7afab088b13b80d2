import numpy as np
import pytest
import torch

from chitu_like.kvcache.spec import KVCacheSpec
from chitu_like.worker import kv_pool
from chitu_like.worker.kv_pool import KVPool

SPEC = KVCacheSpec(layers=(4, 7), num_kv_heads=2, head_dim=3, dtype_bytes=2, block_size=5)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make_pool(device: str, num_blocks: int = 60, num_host_blocks: int = 50) -> KVPool:
    return KVPool(
        SPEC,
        num_blocks=num_blocks,
        num_host_blocks=num_host_blocks,
        dtype=torch.bfloat16,
        device=torch.device(device),
    )


def test_sizes_are_those_of_the_tensors() -> None:
    pool = make_pool("cpu", num_blocks=3, num_host_blocks=0)
    assert list(pool.layers) == [4, 7]
    held = sum(tensor.nbytes for cache in pool.layers.values() for tensor in cache)
    assert held == 3 * SPEC.bytes_per_block == 15 * SPEC.bytes_per_token
    assert [SPEC.blocks_for(n) for n in (0, 1, 5, 6)] == [0, 1, 1, 2]


@pytest.mark.parametrize("device", DEVICES)
def test_a_new_pool_holds_zeros(device: str) -> None:
    assert all((t == 0).all() for cache in make_pool(device).layers.values() for t in cache)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, kv_pool.COPY_BLOCKS, 2 * kv_pool.COPY_BLOCKS + 3])
def test_blocks_come_back_from_the_host_as_they_went(device: str, count: int) -> None:
    pool = make_pool(device)
    for cache in pool.layers.values():
        cache.k.normal_()
        cache.v.normal_()
    before = {layer: (c.k.cpu().clone(), c.v.cpu().clone()) for layer, c in pool.layers.items()}
    rng = np.random.default_rng(1)
    sources, targets = (rng.permutation(60)[:count].tolist() for _ in range(2))
    hosts = rng.permutation(50)[:count].tolist()
    pool.swap_out(list(zip(sources, hosts, strict=True)))
    for cache in pool.layers.values():
        cache.k[torch.tensor(sources)] = 9.0
        cache.v[torch.tensor(sources)] = 9.0
    pool.swap_in(list(zip(hosts, targets, strict=True)))
    untouched = sorted(set(range(60)) - set(sources) - set(targets))
    for layer, cache in pool.layers.items():
        for after, old in zip(cache, before[layer], strict=True):
            assert torch.equal(after.cpu()[targets], old[sources])
            assert torch.equal(after.cpu()[untouched], old[untouched])


def test_a_large_cpu_pool_takes_no_memory_before_it_is_used() -> None:
    def resident_bytes() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    before = resident_bytes()
    spec = KVCacheSpec(layers=(0,), num_kv_heads=8, head_dim=128, dtype_bytes=2, block_size=16)
    pool = KVPool(
        spec,
        num_blocks=(1 << 30) // spec.bytes_per_block,
        num_host_blocks=0,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    assert pool.layers[0].k.nbytes == 1 << 29
    assert resident_bytes() - before < 1 << 27
