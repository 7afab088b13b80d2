from __future__ import annotations

import itertools
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from chitu_like.cli import main
from chitu_like.cli.checkup import check_up
from chitu_like.cli.fit import fit_memory
from chitu_like.config.device_facts import GIB, DeviceFacts
from chitu_like.config.load import load_config
from chitu_like.config.resolve import resolve
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.instance import runner_options
from chitu_like.layout import placement_of
from chitu_like.model_files import read_model_files
from chitu_like.worker import device
from chitu_like.worker.memory_profile import plan_memory
from chitu_like.worker.model_runner import ModelRunner

FACTS = DeviceFacts(
    device="cpu",
    name="a small box",
    memory_bytes=24 * GIB,
    free_bytes=16 * GIB,
    host_free_bytes=16 * GIB,
    num_devices=1,
    num_cpu_cores=4,
    supports_bf16=True,
)
TWO_GPUS = replace(
    FACTS, device="cuda", name="H", memory_bytes=80 * GIB, free_bytes=70 * GIB, num_devices=2
)
PORT = "serve.port=0"


@pytest.fixture(autouse=True)
def _small_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own memory must not decide a test."""
    monkeypatch.setattr(device, "device_facts", lambda *arguments: FACTS)


def test_tiny_chat_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", PORT, "infer.max_reqs=3"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("tiny-chat fits: 3 requests at once")
    for word in ("a small box", "16.0 of 24.0 GiB free", "none missing", "a chat template"):
        assert word in printed
    assert "auto: usual on cpu" not in printed  # infer.max_reqs was set
    assert "auto: the checkpoint's" in printed


def test_a_model_that_is_too_large_is_exit_code_2_and_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "models=llama-2-70b", PORT]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("chitu-like: llama-2-70b does not fit: no room for one KV block")
    assert "128.48 GiB" in printed.out
    assert "0 blocks" in printed.out


def test_a_named_model_needs_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "models=qwen2.5-0.5b", PORT]) == 0
    assert "none are read (models.load_format=dummy)" in capsys.readouterr().out


def test_a_length_that_the_cache_cannot_hold_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["infer.num_blocks=2", "infer.block_size=16", "infer.max_seq_len=512"]
    assert main(["doctor", PORT, *words]) == 2
    assert "the KV cache holds 32 tokens" in capsys.readouterr().err


def test_a_model_that_is_not_named_enough_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "models=auto"]) == 2
    assert "models.ckpt_dir" in capsys.readouterr().err


def test_a_port_in_use_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["doctor", f"serve.port={taken.getsockname()[1]}"]) == 2
    printed = capsys.readouterr()
    assert "would not start (port)" in printed.err
    assert "!! 127.0.0.1:" in printed.out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model, to be damaged."""
    config = load_config(["models=tiny-chat"])
    return Path(shutil.copytree(str(config.models.ckpt_dir), tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "content", "check"),
    [
        ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00garbage", "weights"),
        ("model.safetensors", None, "weights"),
        ("tokenizer.json", b"{", "tokenizer"),
    ],
)
def test_a_damaged_checkpoint_is_found(
    folder: Path, name: str, content: bytes | None, check: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert main(["doctor", "models=auto", f"models.ckpt_dir={folder}", PORT]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"would not start ({check})" in line


def test_weights_of_another_shape_are_found_from_headers_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (folder / "config.json").read_text()
    assert '"num_hidden_layers": 8' in config
    wrong = config.replace('"num_hidden_layers": 8', '"num_hidden_layers": 9')
    (folder / "config.json").write_text(wrong)
    assert main(["doctor", "models=auto", f"models.ckpt_dir={folder}", PORT]) == 2
    assert "missing (model.layers.8" in capsys.readouterr().err


def test_secrets_are_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHITU_LIKE_API_KEYS", "verysecret")
    assert main(["doctor", PORT]) == 0
    printed = capsys.readouterr()
    assert "verysecret" not in printed.out + printed.err
    assert "***" in printed.out


def test_the_estimate_is_what_the_runner_plans() -> None:
    """On a CPU both are formulas: given the same memory they must agree."""
    from chitu_like import LLM

    overrides = ["models=tiny-chat", "infer.device=cpu", "infer.memory_utilization=0.9"]
    config = load_config(overrides)
    spec = read_model_files(config).spec
    fit = fit_memory(resolve(config, FACTS, spec), spec, FACTS)
    with LLM(*overrides, progress=False) as llm:
        assert [llm.info.num_blocks] == [memory.num_blocks for memory in fit.memories]
        assert (llm.info.max_reqs, llm.info.max_seq_len) == (
            fit.resolved.max_reqs,
            fit.resolved.max_seq_len,
        )


def test_every_check_has_its_finding() -> None:
    config = load_config(["models=tiny-chat", PORT])
    files = read_model_files(config)
    options = runner_options(resolve(config, FACTS, files.spec), files.spec)
    names = [finding.name for finding in check_up(config, files, options, FACTS)]
    assert names == [
        "architecture",
        "ranks",
        "weights",
        "tokenizer",
        "scheduler",
        "port",
        "log_dir",
    ]


def test_on_cuda_what_others_hold_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda = TWO_GPUS
    monkeypatch.setattr(device, "device_facts", lambda *arguments: cuda)
    config = load_config(["models=llama-3-8b", "models.load_format=dummy"])
    spec = read_model_files(config).spec
    resolved = resolve(config, cuda, spec)
    (memory,) = fit_memory(resolved, spec, cuda).memories
    assert memory.other_bytes == 10 * GIB
    taken = memory.weight_bytes + memory.activation_bytes + memory.other_bytes
    assert memory.kv_bytes + taken <= 72 * GIB < memory.kv_bytes + taken + memory.bytes_per_block
    assert main(["doctor", "models=llama-3-8b", PORT]) == 0
    printed = capsys.readouterr().out
    assert "cuda: H" in printed
    assert "2 visible" in printed
    assert "4.00 GiB" in printed  # the swap space


def test_every_rank_is_planned_with_its_own_share() -> None:
    """Weights and blocks are what the rank's own runner finds, stage by stage."""
    keys = ["infer.tp_size=2", "infer.pp_size=2", "infer.pp_layer_partition=[5,3]"]
    config = load_config(["models=tiny-chat", "infer.device=cpu", *keys])
    spec = read_model_files(config).spec
    resolved = resolve(config, FACTS, spec)
    planned = fit_memory(resolved, spec, FACTS).memories
    instance = placement_of(config, spec).instances[0]
    found = []
    for pp_rank, tp_rank in itertools.product(range(2), range(2)):
        place = ParallelContext.detached(instance, pp_rank=pp_rank, tp_rank=tp_rank)
        runner = ModelRunner.build(replace(runner_options(resolved, spec), parallel=place))
        runner.load(load_format="none")
        memory = plan_memory(runner)
        found.append((memory.weight_bytes, memory.bytes_per_block))
    assert [(memory.weight_bytes, memory.bytes_per_block) for memory in planned] == found
    assert len(set(found)) == 2


def test_replicas_on_a_cpu_share_its_memory() -> None:
    small = replace(FACTS, free_bytes=GIB)
    blocks = []
    for replicas in (1, 3):
        config = load_config(["models=tiny-chat", f"deploy.replicas={replicas}"])
        spec = read_model_files(config).spec
        (memory,) = fit_memory(resolve(config, small, spec), spec, small).memories
        blocks.append(memory.num_blocks)
    assert 3 * blocks[1] * memory.bytes_per_block < GIB
    assert blocks[1] < blocks[0]


def test_a_model_that_one_device_cannot_hold_fits_on_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "device_facts", lambda *arguments: TWO_GPUS)
    words = ["doctor", "models=llama-2-70b", PORT, "infer.max_seq_len=4096"]
    assert main(words) == 2
    assert "the weights take 128.48 GiB" in capsys.readouterr().err
    assert main([*words, "infer.tp_size=2", "infer.pp_size=2", "deploy.replicas=2"]) == 0
    printed = capsys.readouterr().out
    assert (
        "8: 2 instances, tp 2 x pp 2 (40+40 layers), a GPU each: on 4 nodes like this one"
        in printed
    )
    assert "memory on cuda, each of 4 ranks" in printed
    assert printed.rstrip().endswith("in each of 2 instances")
    assert main([*words, "infer.tp_size=3"]) == 2
    assert "use 1, 2, 4, 8" in capsys.readouterr().err
