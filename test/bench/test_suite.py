from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from chitu_like.bench.model_floor import ModelFloor
from chitu_like.bench.offline import run
from chitu_like.bench.roof import Roof
from chitu_like.bench.suite import FORWARD_STEPS, Figure, Suite, SuiteRun, Workloads
from chitu_like.bench.suite_report import read_peer, suite_table
from chitu_like.cli.command_line import run_reporting
from chitu_like.config.load import load_config
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.model_files import read_model_files

NANO_INPUT, NANO_OUTPUT, DIGEST = 138_511, 145_319, "a3bd5de8c17c8f9c"
H200 = Roof(read_bytes_per_s=4.5e12, matmul_flops_per_s=800e12)
SMALL = Suite(
    nano_requests=3,
    nano_lengths=(2, 5),
    batches=(1, 2),
    prompt_len=8,
    output_len=5,
    forwards=((2, 4),),
)


def spec_of(model: str) -> ModelSpec:
    overrides = [f"models={model}", "models.load_format=dummy"]
    return read_model_files(load_config(overrides, environ={})).spec


def floor_of(model: str) -> ModelFloor:
    return ModelFloor(spec=spec_of(model), roof=H200, dtype_bytes=2)


class FakeRun:
    """An engine that takes 1 s for prefill and 10 ms a decode step, whatever the batch."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[list[int]], list[int]]] = []

    def outputs(
        self, prompts: Sequence[Sequence[int]], num_tokens: Sequence[int]
    ) -> tuple[float, list[object]]:
        self.asked.append(([list(prompt) for prompt in prompts], list(num_tokens)))
        return 1.0 + 0.01 * (max(num_tokens) - 1), []


def figures_of(suite: Suite) -> dict[str, Figure]:
    measured = SuiteRun(FakeRun(), suite, 1000, floor_of("llama-3-8b"))  # type: ignore[arg-type]
    found = [*measured.steps(), *measured.forwards(), *measured.nano()]
    return {figure.name: figure for figure in found}


def test_the_figures_are_what_their_names_say() -> None:
    found = figures_of(SMALL)
    assert found["tpot1_ms"].value == pytest.approx(10.0)
    assert found["prefill2_tok_s"].value == pytest.approx(16.0)
    assert found["fwd2x4_prefill_ms"].value == pytest.approx(1000.0)
    assert found["fwd2x4_decode_ms"].value == pytest.approx(10.0)
    work = Workloads(SMALL, 1000).nano
    elapsed_s = 1.0 + 0.01 * (max(work.output_lens) - 1)
    assert found["nano_out_tok_s"].value == pytest.approx(sum(work.output_lens) / elapsed_s)


def test_the_requests_are_those_that_published_tables_were_measured_with() -> None:
    """A change of one token makes every table measured before worthless."""
    work = Workloads(Suite(), 128_256)
    assert (len(work.nano.prompts), sum(map(len, work.nano.prompts))) == (256, NANO_INPUT)
    assert sum(work.nano.output_lens) == NANO_OUTPUT
    everything = [
        work.nano.prompts,
        work.nano.output_lens,
        *(steps.prompts for steps in work.steps.values()),
        *(forward.prompts for forward in work.forwards.values()),
    ]
    assert hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16] == DIGEST


def test_prompts_with_one_and_with_many_tokens_out_are_the_same() -> None:
    engine = FakeRun()
    measured = SuiteRun(engine, SMALL, 1000, floor_of("llama-3-8b"))  # type: ignore[arg-type]
    list(measured.forwards())
    first, *_, last = engine.asked
    assert first[0] == last[0]
    assert (first[1], last[1]) == ([1, 1], [1 + FORWARD_STEPS] * 2)


@pytest.mark.parametrize(
    ("batch", "floor_ms"), [(1, 3.3), (8, 3.6), (32, 4.4), (128, 7.4), (256, 11.5)]
)
def test_a_decode_step_reads_weights_and_cache_once(batch: int, floor_ms: float) -> None:
    assert floor_of("llama-3-8b").decode_s(batch, 1024 + 64) * 1e3 == pytest.approx(
        floor_ms, rel=0.03
    )


def test_a_tied_head_is_read_whole() -> None:
    assert floor_of("qwen3-0.6b").decode_s(1, 1088) * 1e3 == pytest.approx(0.29, abs=0.01)


def test_prefill_is_bound_by_the_matrices() -> None:
    floor = floor_of("llama-3-8b")
    spec = floor.spec
    layers = 2 * spec.num_layers * spec.layer_parameters()
    heads = 2 * spec.vocab_size * spec.hidden_size
    pairs = 4 * spec.num_layers * spec.num_heads * spec.head_dim * 1024 * 1025 // 2
    flops = 8 * (1024 * (layers + 2 * spec.hidden_size) + heads + pairs)
    assert floor.prefill_s(8, 1024) == pytest.approx(flops / 800e12)


def test_a_peers_figures_stand_beside_ours(tmp_path: Path) -> None:
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps({"engine": "vllm", "tpot1_ms": 4.0, "startup_s": 40, "x": "y"}))
    peer = read_peer(path)
    assert peer == ("vllm", {"tpot1_ms": 4.0})
    ours = [Figure(name="tpot1_ms", value=3.0, floor=2.0), Figure(name="nano_out_tok_s", value=9.0)]
    columns = [list(column.cells) for column in suite_table(ours, peer).columns]
    assert columns[1:] == [["3", "9"], ["2", "-"], ["1.50x", "-"], ["4", "-"], ["0.75x", "-"]]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"figures": 3}'])
def test_a_file_without_figures_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peer.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_peer(path)


def test_a_run_writes_figures_that_another_run_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="extra: plot")
    monkeypatch.setattr("chitu_like.bench.offline.Suite", lambda: SMALL)
    monkeypatch.setattr("chitu_like.bench.roof.READ_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("chitu_like.bench.roof.MATMUL_SIZE", {"cpu": 64})
    path = tmp_path / "ours.json"
    command = ["suite", "--batches", "1,2", "--json", str(path), "models=tiny-chat"]
    command += ["--plot", str(tmp_path / "suite.png")]
    command += ["infer.device=cpu", "infer.num_blocks=64", "infer.max_reqs=4"]
    assert run("offline", [*command, "infer.max_seq_len=64"]) == 0
    name, figures = read_peer(path)
    assert name == "chitu_like"
    assert (tmp_path / "suite.png").read_bytes().startswith(b"\x89PNG")
    assert set(figures) == set(figures_of(SMALL))
    assert all(value > 0 for name, value in figures.items() if "prefill" in name)
    assert "of floor" in capsys.readouterr().out


def test_a_batch_that_is_left_out_changes_no_other() -> None:
    engines = FakeRun(), FakeRun()
    for engine, batches in zip(engines, (None, [2]), strict=True):
        floor = floor_of("llama-3-8b")
        measured = SuiteRun(engine, SMALL, 1000, floor, batches)  # type: ignore[arg-type]
        assert list(measured.steps())
    assert engines[0].asked[-len(engines[1].asked) :] == engines[1].asked


def test_a_batch_without_prompts_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reporting("x", lambda: run("x", ["suite", "--batches", "7"])) == 2
    assert "1, 8, 32, 128, 256" in capsys.readouterr().err


def test_an_unknown_part_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reporting("x", lambda: run("x", ["suite", "--parts", "steps,nanoo"])) == 2
    assert "nanoo" in capsys.readouterr().err
