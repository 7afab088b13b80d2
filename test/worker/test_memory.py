from pathlib import Path

import pytest
import torch
from tiny_model import tiny_runner, tiny_spec

from chitu_like.core.errors import CapacityError
from chitu_like.kvcache.spec import KVCacheSpec
from chitu_like.worker import device, memory
from chitu_like.worker.memory_profile import plan_memory

GIB = memory.GIB
SPEC = KVCacheSpec(
    layers=tuple(range(8)), num_kv_heads=4, head_dim=64, dtype_bytes=2, block_size=16
)


def plan(**changes: object) -> memory.MemoryPlan:
    values: dict[str, object] = {
        "total_bytes": 10 * GIB,
        "other_bytes": GIB,
        "weight_bytes": 3 * GIB,
        "activation_bytes": GIB,
        "graph_bytes": 0,
        "memory_utilization": 0.9,
    }
    return memory.plan_blocks(SPEC, **(values | changes))


def test_blocks_fill_what_the_rest_leaves() -> None:
    planned = plan()
    assert planned.num_blocks == 4 * GIB // SPEC.bytes_per_block
    assert planned.kv_bytes == planned.num_blocks * SPEC.bytes_per_block
    assert "90%" in planned.reason


def test_the_cache_takes_no_more_than_its_limit() -> None:
    assert plan(kv_limit_bytes=GIB).num_blocks == GIB // SPEC.bytes_per_block
    assert plan(kv_limit_bytes=9 * GIB) == plan()


def test_a_fixed_pool_may_go_beyond_the_share_but_not_beyond_the_memory() -> None:
    most = 5 * GIB // SPEC.bytes_per_block
    assert plan(num_blocks=most).num_blocks == most
    with pytest.raises(CapacityError, match=r"infer\.num_blocks"):
        plan(num_blocks=most + 1)


def test_no_room_is_an_error_that_says_what_takes_it() -> None:
    with pytest.raises(CapacityError, match=r"weights take 8\.00 GiB") as error:
        plan(weight_bytes=8 * GIB)
    assert "\n" not in str(error.value)


def test_estimate_grows_with_tokens_and_holds_the_samplers_copies_of_the_logits() -> None:
    few, many = (
        memory.estimate_activation_bytes(
            tiny_spec(), dtype=torch.float32, num_tokens=n, num_samples=4
        )
        for n in (100, 1000)
    )
    per_token = (many - few) // 900
    assert per_token >= 4 * (2 * tiny_spec().hidden_size + 3 * tiny_spec().intermediate_size)
    assert few - 100 * per_token >= 4 * (4 * tiny_spec().vocab_size * 4)


def test_facts_of_the_cpu_are_those_of_this_machine() -> None:
    facts = device.device_facts("cpu")
    assert facts.device == "cpu"
    assert facts.name
    assert 0 < facts.free_bytes == pytest.approx(device.available_host_bytes(), rel=0.2)
    assert facts.free_bytes <= facts.memory_bytes
    assert facts.num_cpu_cores == device.count_cores()


def test_facts_of_a_gpu_are_what_cuda_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "is_available": True,
        "device_count": 4,
        "mem_get_info": (14 * GIB, 15 * GIB),
        "get_device_name": "Tesla T4",
        "get_device_capability": (7, 5),
    }
    for name, answer in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    facts = device.device_facts("auto", 1, num_local_ranks=4)
    assert (facts.device, facts.name, facts.num_devices) == ("cuda", "Tesla T4", 4)
    assert (facts.free_bytes, facts.memory_bytes) == (14 * GIB, 15 * GIB)
    assert facts.compute_capability == (7, 5)
    assert not facts.supports_bf16


def test_a_cpu_runner_plans_within_the_memory_that_there_is() -> None:
    runner = tiny_runner()
    planned = plan_memory(runner, 0.5)
    assert 0 < planned.kv_bytes <= min(memory.CPU_KV_BYTES, device.available_host_bytes())
    assert plan_memory(runner, num_blocks=7).num_blocks == 7


def test_threads_are_shared_by_the_ranks_of_a_node() -> None:
    before = torch.get_num_threads()
    try:
        assert device.set_thread_count() == device.count_cores() == torch.get_num_threads()
        assert device.set_thread_count(10**6) == 1
        assert device.set_thread_count(weight_bytes=11 << 20) == 1
        assert device.set_thread_count(weight_bytes=1 << 40) == device.count_cores()
    finally:
        torch.set_num_threads(before)


def test_a_cgroup_quota_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert device.count_cores() == 16
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert device.count_cores() == 16
    (tmp_path / "cpu.max").write_text("350000 100000\n")
    assert device.count_cores() == 3
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert device.count_cores() == 1


def test_a_cgroup_limit_bounds_the_memory_but_for_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert device.available_host_bytes() > 1 << 20
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\nactive_file 50\n")
    assert device.available_host_bytes() == 450
