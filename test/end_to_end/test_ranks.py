"""The tokens of one rank, on however many ranks and in whatever layout the model is computed.

torchrun is spawned once a layout; every setting, and every family, is an LLM of its own in it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from end_to_end.ranks_program import ASKED, Result, run
from models.families import FAMILIES, PARALLEL_SIZES, VOCAB_SIZE, twin_of
from processes import PATIENCE_S

REPO = Path(__file__).resolve().parents[2]
TEST = REPO / "test"
TIMEOUT_S = 5 * PATIENCE_S  # for all that is computed in one layout
EVERYTHING = tuple(ASKED)
BASE = ("infer.device=cpu", "dtype=float32", "infer.max_seq_len=64")
LAYOUTS = {
    "tp 2": ("infer.tp_size=2",),
    "tp 4 on 2 KV heads": ("infer.tp_size=4",),
    "pp 2": ("infer.pp_size=2",),
    "pp 3 uneven": ("infer.pp_size=3", "infer.pp_layer_partition=[1,2,1]"),
    "tp 2 x pp 2": ("infer.tp_size=2", "infer.pp_size=2"),
}
NUM_RANKS = {"tp 2": 2, "tp 4 on 2 KV heads": 4, "pp 2": 2, "pp 3 uneven": 3, "tp 2 x pp 2": 4}
SMALL_POOL = ("infer.block_size=4", "infer.num_blocks=24", "infer.max_reqs=8")
SETTINGS = {
    "defaults": ("infer.num_blocks=256",),
    "no overlap, no prefix cache": (
        "infer.num_blocks=256",
        "infer.schedule_overlap=false",
        "infer.enable_prefix_caching=false",
    ),
    "chunks of 3": ("infer.num_blocks=256", "infer.prefill_chunk_size=3", "infer.max_reqs=3"),
    "preempted by recomputing": SMALL_POOL,
    "preempted by swapping": (*SMALL_POOL, "infer.swap_space_gib=0.01"),
    "blocks of 4": ("infer.block_size=4", "infer.num_blocks=512"),
}
# Many steps of few tokens: the ways with most to keep between steps ("logprobs" is greedy).
FEW_WAYS = ("logprobs", "penalised")
LONG = ("chunks of 3", "preempted by recomputing", "preempted by swapping")
ASKED_OF = {name: FEW_WAYS if name in LONG else EVERYTHING for name in SETTINGS}
FAMILIES_ASKED = ("sampled",)


def prompts(vocab_size: int, seed: int = 5) -> list[list[int]]:
    """Of many lengths; two begin alike."""
    rng = random.Random(seed)
    found = [[rng.randrange(3, vocab_size) for _ in range(n)] for n in (1, 5, 17, 33, 9, 2, 21)]
    return [*found, found[3][:16] + found[0]]


def job_item(
    keys: Sequence[str], prompts: list[list[int]], asked: Sequence[str] = EVERYTHING
) -> dict[str, object]:
    """One LLM for ranks_program.py."""
    return {"keys": list(keys), "prompts": prompts, "asked": list(asked)}


def under_torchrun(num_ranks: int, job: list[dict[str, object]], folder: Path) -> list[Result]:
    """Run a job on so many ranks; what rank 0 found."""
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(num_ranks), str(TEST / "end_to_end/ranks_program.py")]
    command += [str(folder / "job.json"), str(folder / "out.json")]
    paths = [str(REPO), str(TEST), os.environ.get("PYTHONPATH", "")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        family = [psutil.Process(process.pid)]
        try:
            _, said = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            family += family[0].children(recursive=True)
            raise
        finally:
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
    assert process.returncode == 0, said[-5000:]
    results: list[Result] = json.loads((folder / "out.json").read_text())
    return results


def compare(found: Result, truth: Result, name: str) -> None:
    for asked in found["answers"]:
        answers = truth["answers"][asked]
        tokens = [answer["tokens"] for answer in found["answers"][asked]]
        assert tokens == [answer["tokens"] for answer in answers], (name, asked)
        for answer, true in zip(found["answers"][asked], answers, strict=True):
            assert answer["logprobs"] == pytest.approx(true["logprobs"], abs=2e-4), (name, asked)


PLAIN = (
    "infer.attn_type=ref",
    "infer.schedule_overlap=false",
    "infer.max_reqs=1",
    "infer.enable_prefix_caching=false",
)


def save_family(name: str, folder: Path) -> tuple[str, ...]:
    """A tiny random model of four layers, four heads on two KV heads; the keys that choose it."""
    _, model, _ = twin_of(name, **PARALLEL_SIZES)
    model.save_pretrained(folder)
    # Token ids go in and out; the tokenizer only has to be there.
    return (
        "models=auto",
        f"models.ckpt_dir={folder}",
        "models.tokenizer_path=package:tiny-chat",
        *BASE,
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return save_family("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def truth(llama: tuple[str, ...]) -> Result:
    """One rank, one request at a time, nothing clever."""
    return run((*llama, *PLAIN), prompts(VOCAB_SIZE), EVERYTHING)


def test_two_ranks_give_the_tokens_of_one(tmp_path: Path) -> None:
    keys = ["models=tiny-chat", *BASE, *SETTINGS["defaults"]]
    (found,) = under_torchrun(2, [job_item([*keys, *LAYOUTS["tp 2"]], prompts(4000))], tmp_path)
    compare(found, run(keys, prompts(4000), EVERYTHING), "tiny-chat")
    assert found["prefix_cache_hits"] > 0


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], Result]]:
    """Of each dense family: the keys that choose it, and the truth."""
    found = {}
    for name in FAMILIES:
        folder = tmp_path_factory.mktemp(name)
        keys = [*save_family(name, folder), "infer.num_blocks=64"]
        found[name] = (keys, run(keys, prompts(VOCAB_SIZE)[:3], FAMILIES_ASKED))
    return found


Found = tuple[dict[str, Result], dict[str, Result]]


@pytest.fixture(scope="module")
def found_in(
    llama: tuple[str, ...],
    families: dict[str, tuple[list[str], Result]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Found]:
    """What is found in a layout: by setting, and by family."""

    @functools.cache
    def found_in(layout: str) -> Found:
        asked = prompts(VOCAB_SIZE)
        job = [
            job_item([*llama, *keys, *LAYOUTS[layout]], asked, ASKED_OF[name])
            for name, keys in SETTINGS.items()
        ]
        job += [
            job_item([*keys, *LAYOUTS[layout]], asked[:3], FAMILIES_ASKED)
            for keys, _ in families.values()
        ]
        results = under_torchrun(NUM_RANKS[layout], job, tmp_path_factory.mktemp("job"))
        return (
            dict(zip(SETTINGS, results[: len(SETTINGS)], strict=True)),
            dict(zip(families, results[len(SETTINGS) :], strict=True)),
        )

    return found_in


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_setting_changes_a_token_in_any_layout(
    layout: str, truth: Result, found_in: Callable[[str], Found]
) -> None:
    by_setting, _ = found_in(layout)
    for name, found in by_setting.items():
        compare(found, truth, name)
        assert (found["num_preemptions"] > 0) == name.startswith("preempted")


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dense_family_gives_the_tokens_of_one_rank(
    layout: str,
    families: dict[str, tuple[list[str], Result]],
    found_in: Callable[[str], Found],
) -> None:
    _, by_family = found_in(layout)
    for name, found in by_family.items():
        compare(found, families[name][1], name)


@pytest.mark.multi_gpu(count=2)
@pytest.mark.parametrize("layout", ["tp 2", "pp 2"])
def test_two_gpus_give_the_tokens_of_one(
    layout: str, llama: tuple[str, ...], tmp_path: Path
) -> None:
    assert_gpus_give_the_tokens_of_one(layout, llama, tmp_path)


@pytest.mark.multi_gpu(count=4)
@pytest.mark.parametrize("layout", ["tp 4 on 2 KV heads", "pp 3 uneven", "tp 2 x pp 2"])
def test_four_gpus_give_the_tokens_of_one(
    layout: str, llama: tuple[str, ...], tmp_path: Path
) -> None:
    assert_gpus_give_the_tokens_of_one(layout, llama, tmp_path)


def assert_gpus_give_the_tokens_of_one(layout: str, llama: tuple[str, ...], tmp_path: Path) -> None:
    keys = [key for key in llama if key != "infer.device=cpu"] + ["infer.device=cuda"]
    asked = prompts(VOCAB_SIZE)
    truth = run([*keys, *SETTINGS["defaults"]], asked, EVERYTHING)
    job = [job_item([*keys, *more, *LAYOUTS[layout]], asked) for more in SETTINGS.values()]
    results = under_torchrun(NUM_RANKS[layout], job, tmp_path)
    for name, found in zip(SETTINGS, results, strict=True):
        compare(found, truth, name)
