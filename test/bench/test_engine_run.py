from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from chitu_like import LLM
from chitu_like.bench.cpu_comparison import Case, Comparison, markdown
from chitu_like.bench.engine_run import NO_PREFIX_CACHE, EngineRun, with_defaults
from chitu_like.bench.provenance import Provenance
from chitu_like.bench.transformers_run import TransformersRun
from chitu_like.cli import main
from chitu_like.core.errors import CapacityError

TINY = ("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=64", "infer.max_reqs=4")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(*TINY, NO_PREFIX_CACHE, progress=False) as loaded:
        yield loaded


def test_a_run_answers_with_exactly_the_tokens_asked_for(llm: LLM) -> None:
    ticks = iter([10.0, 12.5])
    run = EngineRun(llm, clock=lambda: next(ticks))
    seconds, outputs = run.outputs([[5, 6], [7]], [3, 9])
    assert seconds == 2.5
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3, 9]


@pytest.mark.parametrize(("batch", "length"), [(5, 10), (1, 10_000), (4, 1_000)])
def test_a_batch_that_would_not_run_at_once_is_refused(llm: LLM, batch: int, length: int) -> None:
    with pytest.raises(CapacityError):
        EngineRun(llm).check_room(batch, length)


def test_a_batch_that_fits_is_not_refused(llm: LLM) -> None:
    EngineRun(llm).check_room(4, 16 * llm.info.block_size)


def test_defaults_give_way_to_what_the_user_says() -> None:
    assert with_defaults(["infer.seed=1", "models=x"], NO_PREFIX_CACHE) == [
        NO_PREFIX_CACHE,
        "infer.seed=1",
        "models=x",
    ]
    given = ["infer.enable_prefix_caching=true"]
    assert with_defaults(given, NO_PREFIX_CACHE) == given


class PretendRun:
    """Takes a known time for the prefill and for each step, and notes its turns."""

    version = "1"

    def __init__(self, name: str, turns: list[str], prefill_s: float, step_s: float) -> None:
        self.name, self._turns = name, turns
        self._prefill_s, self._step_s = prefill_s, step_s

    def seconds(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        self._turns.append(self.name)
        return self._prefill_s + self._step_s * (num_tokens - 1)


def case(**changes: object) -> Case:
    values = {"name": "decode", "batch_size": 2, "prompt_len": 3, "num_steps": 10, "target": 1.5}
    return Case(**(values | changes))  # type: ignore[arg-type]


def test_a_comparison_alternates_and_takes_the_prefill_out_of_a_step() -> None:
    turns: list[str] = []
    ours, theirs = PretendRun("a", turns, 5.0, 0.25), PretendRun("b", turns, 1.0, 0.5)
    result = Comparison(ours, theirs, 50, 0).measure(case(), 3, lambda text: None)
    assert (result.ours_s, result.theirs_s) == pytest.approx((0.25, 0.5))
    assert result.ratio == pytest.approx(2.0)
    assert "".join(turns) == "aabb" + "aabb" + "bbaa" + "aabb"
    assert result.tokens_a_pass == 2


def test_prefill_is_the_time_of_one_token() -> None:
    ours, theirs = PretendRun("a", [], 5.0, 9.0), PretendRun("b", [], 2.5, 9.0)
    prefill = case(num_steps=0)
    result = Comparison(ours, theirs, 50, 0).measure(prefill, 2, lambda text: None)
    assert (result.ours_s, result.theirs_s, result.ratio) == (5.0, 2.5, 0.5)
    assert result.tokens_a_pass == 6


def test_the_table_holds_ratio_target_and_origin() -> None:
    ours, theirs = PretendRun("a", [], 0.0, 0.25), PretendRun("b", [], 0.0, 0.5)
    result = Comparison(ours, theirs, 50, 0).measure(case(), 1, lambda text: None)
    origin = Provenance(
        date="2026-01-02", machine="a box", software="", commit="abc", command="bench it"
    )
    table = markdown([result], "m", "b", origin, "torch")
    assert "| decode | 250.0 ms, 8.0 tokens/s | 500.0 ms, 4.0 tokens/s |" in table
    assert "**2.00x** (2.00 to 2.00) | 1.5x |" in table
    assert all(word in table for word in ("2026-01-02", "a box", "abc", "`bench it`"))


def test_transformers_gives_as_many_tokens_as_were_asked_for() -> None:
    config = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 60,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "eos_token_id": 3,
    }
    ticks = iter([1.0, 3.0])
    run = TransformersRun(config, torch.float32, clock=lambda: next(ticks))
    assert run.seconds([[1, 2], [3, 4]], 7) == 2.0


def test_offline_sweeps_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "o.json"
    words = ["--batches", "1,2", "--contexts", "8", "--decode-steps", "4", "--repeats", "1"]
    assert main(["bench", "offline", "forward", *words, "--json", str(path), *TINY]) == 0
    assert "decode step ms" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert [(row["batch_size"], row["context"]) for row in found["rows"]] == [(1, 8), (2, 8)]
    assert all(row["prefill_tokens_per_s"] > 0 for row in found["rows"])
    assert found["machine"]


def test_offline_runs_a_workload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "o.json"
    words = ["--num-prompts", "6", "--input", "3-9", "--output", "2-8", "--json", str(path)]
    assert main(["bench", "offline", "workload", *words, *TINY]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["num_prompts"] == 6
    assert 6 * 2 <= row["num_output_tokens"] <= 6 * 8
    assert row["output_tokens_per_s"] == pytest.approx(row["num_output_tokens"] / row["elapsed_s"])


@pytest.mark.parametrize(
    "words",
    [
        ["offline"],
        ["offline", "sideways"],
        ["offline", "workload", "--input", "9-3"],
        ["offline", "forward", "--batches", "0"],
        ["offline", "forward", "--batches", "64", *TINY],
        ["cpu-transformers", "--model", "no-such-model"],
        ["cpu-transformers", "--cases", "decode7"],
    ],
)
def test_mistakes_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
