"""A preprocessed folder gives back, bit for bit, what the checkpoint it was made of gives."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.families import PARALLEL_SIZES, twin_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from chitu_like.checkpoint import preprocess as preprocess_module
from chitu_like.checkpoint.loader import LoadReport
from chitu_like.checkpoint.preprocess import WithoutModules
from chitu_like.checkpoint.preprocessed import load_checkpoint
from chitu_like.config.load import load_config
from chitu_like.core.errors import CheckpointError, ChituError, ConfigError
from chitu_like.core.manifest import Manifest, find_manifest
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.layout import placement_of
from chitu_like.models.base import Model
from chitu_like.models.build import build_model
from chitu_like.preprocess import Preprocessing
from chitu_like.worker.options import RunnerOptions, make_backend

FAMILIES = (
    "llama",
    "llama-tied",
    "llama-biases",
    "mistral",
    "qwen2",
    "qwen3-tied-yarn",
    "glm",
    "glm4",
    "opt",
    "opt-post-norm-projected",
    "opt-bare",
)
QUICK_FAMILIES = ("llama", "opt")
LAYOUTS = ((1, (4,)), (2, (4,)), (4, (4,)), (1, (2, 2)), (1, (2, 1, 1)), (2, (3, 1)))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory):
    """Family -> folder as transformers saves it, with 2 KV heads and a vocabulary of 203."""

    @functools.cache
    def save(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        twin_of(family, **PARALLEL_SIZES)[1].save_pretrained(folder)
        (folder / "tokenizer.json").write_text("{}")
        return folder

    return save


def plan(source: Path, out: Path, tp=1, partition=None, *words: str) -> Preprocessing:
    config = load_config(["models=auto", f"models.ckpt_dir={source}", *words], environ={})
    pp = len(partition) if partition else 1
    infer = replace(config.infer, tp_size=tp, pp_size=pp, pp_layer_partition=partition)
    return Preprocessing.plan(replace(config, infer=infer), out)


def write(preprocessing: Preprocessing, process=0, num_processes=1, overwrite=False):
    """What each process does; returns the receipts where it was the last."""
    writer = preprocessing.writer
    assert writer.begin(overwrite=overwrite) is None
    if process == 0:
        preprocessing.add_files()
    for place in writer.plan.places()[process::num_processes]:
        preprocessing.write_rank(*place, progress=False)
    return writer.finish()


def places(preprocessing: Preprocessing) -> Iterator[ParallelContext]:
    for pp_rank, tp_rank in preprocessing.writer.plan.places():
        yield ParallelContext.detached(preprocessing.placement, pp_rank=pp_rank, tp_rank=tp_rank)


def make_model(spec: ModelSpec, parallel: ParallelContext, dtype="float32") -> Model:
    options = RunnerOptions(
        spec=spec, dtype=dtype, device="cpu", max_seq_len=96, attn_type="ref", parallel=parallel
    )
    device = torch.device("cpu")
    return build_model(spec, make_backend(options), options.torch_dtype, device, parallel=parallel)


def load(folder: Path, model: Model, parallel: ParallelContext) -> LoadReport:
    """Load without what kernels do to the weights afterwards, so that they can be compared."""
    return load_checkpoint(WithoutModules(model), folder, parallel, progress=False)


def bits_of(model: Model) -> dict[str, Tensor]:
    return {n: p.data.view(-1).view(torch.uint8) for n, p in model.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"tp{layout[0]}-{layout[1]}")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in QUICK_FAMILIES else pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_every_rank_gets_equal_bits_from_its_own_file_alone(checkpoints, tmp_path, family, layout):
    tp, partition = layout
    source, out = checkpoints(family), tmp_path / "out"
    preprocessing = plan(source, out, tp, partition)
    receipts = write(preprocessing)
    assert [
        (r.rank.pp_rank, r.rank.tp_rank) for r in receipts
    ] == preprocessing.writer.plan.places()
    for parallel, receipt in zip(places(preprocessing), receipts, strict=True):
        expected = make_model(preprocessing.spec, parallel)
        load(source, expected, parallel)
        own = tmp_path / receipt.rank.file.replace(".", "-")
        own.mkdir()
        for name in ("manifest.json", receipt.rank.file):
            shutil.copy(out / name, own)
        model = make_model(preprocessing.spec, parallel)
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)  # padding too: all of it is in the file
        report = load(own, model, parallel)
        found, wanted = bits_of(model), bits_of(expected)
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert torch.equal(found[name], wanted[name]), name
        assert report.num_tensors == len(wanted)
        assert report.num_bytes == sum(map(len, wanted.values()))
        assert report.bytes_per_s > 0


def test_kernels_are_made_after_the_weights_are_there(checkpoints, tmp_path):
    preprocessing = plan(checkpoints("llama"), tmp_path)
    write(preprocessing)
    model = make_model(preprocessing.spec, ParallelContext.single())
    load_checkpoint(model, tmp_path, ParallelContext.single(), progress=False)
    assert all(layer.self_attn.qkv_proj.kernel is not None for layer in model.layers.values())


def test_weights_are_saved_in_the_dtype_asked_for(checkpoints, tmp_path):
    source = checkpoints("qwen2")
    write(plan(source, tmp_path, 1, None, "dtype=bfloat16"))
    stored = load_file(tmp_path / "rank-0-0.safetensors")
    original = load_file(source / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    expected = original["model.norm.weight"].bfloat16()
    assert torch.equal(stored["norm.weight"], expected)
    assert find_manifest(tmp_path).dtype == "bfloat16"


def test_a_rank_file_is_safetensors_that_others_can_read(checkpoints, tmp_path):
    write(plan(checkpoints("glm4"), tmp_path))
    with safe_open(tmp_path / "rank-0-0.safetensors", framework="pt") as file:
        qkv = file.get_tensor("layers.0.self_attn.qkv_proj.weight")
    original = load_file(checkpoints("glm4") / "model.safetensors")
    parts = [original[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(qkv, torch.cat(parts))


def test_the_folder_says_what_it_is(checkpoints, tmp_path):
    write(plan(checkpoints("llama"), tmp_path, 2, (3, 1)))
    manifest = find_manifest(tmp_path)
    assert manifest.keys == "infer.tp_size=2 infer.pp_size=2 infer.pp_layer_partition=[3,1]"
    assert manifest.merged == {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }
    assert manifest.quant is None
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        *(f"rank-{pp}-{tp}.safetensors" for pp in (0, 1) for tp in (0, 1)),
    }
    for rank in manifest.ranks:
        assert (tmp_path / rank.file).stat().st_size == rank.num_bytes


def test_overrides_of_the_shape_are_in_its_config(checkpoints, tmp_path):
    write(plan(checkpoints("llama"), tmp_path, 1, None, "+models.hf_overrides.rope_theta=77.0"))
    spec = ModelSpec.from_folder(tmp_path)
    assert spec.rope.theta == 77.0


def test_dummy_weights_can_be_written(checkpoints, tmp_path):
    source = checkpoints("llama")
    preprocessing = plan(source, tmp_path / "out", 2, None, "models.load_format=dummy")
    write(preprocessing)
    for parallel in places(preprocessing):
        load(tmp_path / "out", make_model(preprocessing.spec, parallel), parallel)


# Several processes, and those that are cut short.


def test_whoever_is_last_writes_the_manifest(checkpoints, tmp_path):
    first, second = (plan(checkpoints("llama"), tmp_path, 4) for _ in range(2))
    assert write(second, 1, 2) is None
    with pytest.raises(CheckpointError, match="half-written"):
        find_manifest(tmp_path)
    assert len(write(first, 0, 2)) == 4
    assert find_manifest(tmp_path).tp_size == 4
    assert first.writer.begin(overwrite=False) is not None  # nothing is left to be done


def test_of_two_that_finish_in_the_same_moment_one_says_so(checkpoints, tmp_path, monkeypatch):
    first, second = (plan(checkpoints("llama"), tmp_path, 2) for _ in range(2))
    for preprocessing, place in zip((first, second), first.writer.plan.places(), strict=True):
        preprocessing.writer.begin(overwrite=False)
        preprocessing.write_rank(*place, progress=False)
    receipts = {place: first.writer.receipt(*place) for place in first.writer.plan.places()}
    assert first.writer.finish() == list(receipts.values())
    monkeypatch.setattr(second.writer, "receipt", lambda *place: receipts[place])  # read in time
    assert second.writer.finish() is None
    assert find_manifest(tmp_path) is not None


@pytest.mark.parametrize("overwrite", [False, True])
def test_processes_may_run_at_once_in_any_order(checkpoints, tmp_path, overwrite):
    if overwrite:
        write(plan(checkpoints("llama"), tmp_path, 2))
    hands = [plan(checkpoints("llama"), tmp_path, 4) for _ in range(4)]

    def work(process: int) -> bool:
        return write(hands[process], process, 4, overwrite) is not None

    with ThreadPoolExecutor(4) as pool:
        was_last = list(pool.map(work, range(4)))
    assert any(was_last)
    assert find_manifest(tmp_path).tp_size == 4
    assert len(list(tmp_path.iterdir())) == len(hands) + 4  # manifest, two configs, tokenizer


class _Killed(BaseException):
    pass


def cut_short(monkeypatch: pytest.MonkeyPatch, preprocessing: Preprocessing, place) -> None:
    """Write until the file of a rank is half there."""

    def write_half(path, tensors, advance):
        if path.name == f"rank-{place[0]}-{place[1]}.safetensors":
            path.with_name(f".{path.name}.1.part").write_bytes(b"half")  # as SIGKILL leaves it
            raise _Killed
        return write_rank_file(path, tensors, advance)

    write_rank_file = preprocess_module.write_rank_file
    with monkeypatch.context() as patched:
        patched.setattr(preprocess_module, "write_rank_file", write_half)
        with pytest.raises(_Killed):
            write(preprocessing)


def test_a_write_that_is_cut_short_leaves_nothing_that_loads(checkpoints, tmp_path, monkeypatch):
    preprocessing = plan(checkpoints("llama"), tmp_path, 2)
    cut_short(monkeypatch, preprocessing, (0, 1))
    assert (tmp_path / "rank-0-0.safetensors").exists()
    for parallel in places(preprocessing):
        with pytest.raises(CheckpointError, match=r"half-written.*run it again"):
            load(tmp_path, make_model(preprocessing.spec, parallel), parallel)


def test_it_goes_on_where_it_stopped(checkpoints, tmp_path, monkeypatch):
    preprocessing = plan(checkpoints("llama"), tmp_path, 2)
    cut_short(monkeypatch, preprocessing, (0, 1))
    done = (tmp_path / "rank-0-0.safetensors").stat()
    assert len(write(plan(checkpoints("llama"), tmp_path, 2))) == 2
    assert (tmp_path / "rank-0-0.safetensors").stat().st_ino == done.st_ino
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "manifest.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "rank-0-0.safetensors",
        "rank-0-1.safetensors",
    }


def test_a_receipt_counts_only_beside_its_file(checkpoints, tmp_path):
    first = plan(checkpoints("llama"), tmp_path, 2)
    write(first, 0, 2)
    (tmp_path / "rank-0-0.safetensors").write_bytes(b"short")
    assert first.writer.receipt(0, 0) is None
    (tmp_path / "rank-0-0.safetensors").unlink()
    assert first.writer.receipt(0, 0) is None


def test_an_overwrite_that_is_cut_short_leaves_nothing_that_loads(
    checkpoints, tmp_path, monkeypatch
):
    write(plan(checkpoints("llama"), tmp_path, 1, None, "dtype=bfloat16"))
    again = plan(checkpoints("llama"), tmp_path, 1)
    write_rank_file = preprocess_module.write_rank_file

    def killed(*_):
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(preprocess_module, "write_rank_file", killed)
        with pytest.raises(_Killed):
            write(again, overwrite=True)
    assert preprocess_module.write_rank_file is write_rank_file
    with pytest.raises(CheckpointError, match="half-written"):
        find_manifest(tmp_path)


# What is refused when writing.


def refused(preprocessing: Preprocessing, overwrite=False) -> str:
    before = {path: path.read_bytes() for path in preprocessing.writer.folder.iterdir()}
    with pytest.raises(CheckpointError) as caught:
        preprocessing.writer.begin(overwrite=overwrite)
    assert {p: p.read_bytes() for p in preprocessing.writer.folder.iterdir()} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "rank-0-0.safetensors", "manifest.json"])
def test_a_folder_of_others_is_never_written_to(checkpoints, tmp_path, name, overwrite):
    (tmp_path / name).write_text("{}")
    message = refused(plan(checkpoints("llama"), tmp_path), overwrite)
    assert f"not empty ({name} is there)" in message
    assert "name another folder" in message


def test_the_checkpoint_itself_is_never_written_to(checkpoints):
    source = checkpoints("llama")
    assert "is not empty" in refused(plan(source, source), overwrite=True)


def test_a_whole_folder_is_replaced_only_when_asked(checkpoints, tmp_path):
    write(plan(checkpoints("llama"), tmp_path, 4))
    other = plan(checkpoints("llama"), tmp_path, 2)
    message = refused(other)
    assert "was written from LlamaForCausalLM in float32 for infer.tp_size=4" in message
    assert "overwrite=true" in message
    assert len(write(other, overwrite=True)) == 2
    assert find_manifest(tmp_path).tp_size == 2
    assert len(list(tmp_path.glob("rank-*"))) == 2


def test_an_unfinished_folder_of_another_plan_is_replaced_only_when_asked(checkpoints, tmp_path):
    write(plan(checkpoints("llama"), tmp_path, 4), 0, 2)
    other = plan(checkpoints("llama"), tmp_path, 2)
    assert "is half-written from LlamaForCausalLM" in refused(other)
    assert len(write(other, overwrite=True)) == 2
    assert len(list(tmp_path.glob("rank-*"))) == 2


def test_a_checkpoint_that_changed_is_another_plan(checkpoints, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoints("llama"), source)
    write(plan(source, tmp_path / "out", 2), 0, 2)
    weights = load_file(source / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, source / "model.safetensors")
    assert "half-written" in refused(plan(source, tmp_path / "out", 2))


def test_a_full_disk_is_one_line(checkpoints, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preprocess_module, "write_rank_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device \(\d+\.\d GB are free"):
        write(plan(checkpoints("llama"), tmp_path))


@pytest.mark.parametrize(
    ("tp", "partition", "words", "message"),
    [
        (3, None, (), "tp_size=3 does not divide"),
        (1, (2, 1), (), "has 3 layers but auto has 4"),
        (1, None, ("skip_preprocess=true",), "to write a preprocessed folder, leave it out"),
        (1, None, ("models.load_format=none",), "no weights to preprocess"),
    ],
)
def test_what_cannot_be_written_is_refused_first(
    checkpoints, tmp_path, tp, partition, words, message
):
    with pytest.raises(ConfigError, match=message):
        plan(checkpoints("llama"), tmp_path / "out", tp, partition, *words)
    assert not (tmp_path / "out").exists()


def test_a_preprocessed_folder_is_no_source(checkpoints, tmp_path):
    write(plan(checkpoints("llama"), tmp_path))
    with pytest.raises(CheckpointError, match="is preprocessed already"):
        plan(tmp_path, tmp_path / "again")


# What is refused when loading.


@pytest.fixture
def folder(checkpoints, tmp_path) -> Path:
    write(plan(checkpoints("llama"), tmp_path / "out", 2, (3, 1)))
    return tmp_path / "out"


def load_refused(folder: Path, tp=2, partition=(3, 1), dtype="float32") -> str:
    config = load_config(["models=auto", f"models.ckpt_dir={folder}"], environ={})
    infer = replace(config.infer, tp_size=tp, pp_size=len(partition), pp_layer_partition=partition)
    spec = ModelSpec.from_folder(folder)
    (instance,) = placement_of(replace(config, infer=infer), spec).instances
    parallel = ParallelContext.detached(instance, pp_rank=len(partition) - 1, tp_rank=tp - 1)
    model = make_model(spec, parallel, dtype)
    for parameter in model.parameters():
        parameter.data.zero_()
    with pytest.raises(ChituError) as caught:
        load(folder, model, parallel)
    assert not any(parameter.any() for parameter in model.parameters()), "weights were read"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("tp", "partition"), [(1, (3, 1)), (4, (3, 1)), (2, (2, 2)), (2, (4,))])
def test_other_ranks_are_refused_with_the_keys(folder, tp, partition):
    message = load_refused(folder, tp, partition)
    held = "was written for infer.tp_size=2 infer.pp_size=2 infer.pp_layer_partition=[3,1]"
    assert held in message
    assert f"not for infer.tp_size={tp} infer.pp_size={len(partition)}" in message


def test_another_dtype_is_refused(folder):
    message = load_refused(folder, dtype="bfloat16")
    assert "is float32 [" in message
    assert "must be bfloat16 [" in message


def test_a_missing_file_is_named(folder):
    (folder / "rank-1-1.safetensors").unlink()
    assert "rank-1-1.safetensors is missing" in load_refused(folder)


@pytest.mark.parametrize("size", [0, 7, 200, -1])
def test_a_truncated_file_is_named(folder, size):
    path = folder / "rank-1-1.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    message = load_refused(folder)
    assert "rank-1-1.safetensors" in message
    assert "truncated or damaged" in message


def test_a_damaged_header_is_named(folder):
    path = folder / "rank-1-1.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:9] + b"\xff" * 8 + content[17:])
    message = load_refused(folder)
    assert "rank-1-1.safetensors" in message
    assert "damaged" in message


def test_a_file_with_other_tensors_than_the_manifest_lists_is_named(folder):
    path = folder / "rank-1-1.safetensors"
    path.write_bytes(path.read_bytes().replace(b"down_proj", b"drow_pnoj"))  # as long as before
    assert "rank-1-1.safetensors holds other tensors than manifest.json lists" in load_refused(
        folder
    )


def test_another_model_is_refused_with_a_tensor(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 88}))
    message = load_refused(folder)
    assert "layers.3.mlp.down_proj.weight is float32 [56, 42], must be float32 [56, 44]" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "is of version 99 but this package reads 1"),
        ({"tp_size": 3}, "its ranks are not those of infer.tp_size=3"),
        ({"tp_size": 0}, "is damaged"),
        ({"layer_partition": [-1, 5]}, "is damaged"),
        ({"tp_size": "two"}, "is damaged"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(folder, change, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        find_manifest(folder)


def test_parameters_merged_in_another_order_are_refused(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["merged"]["gate_up_proj"].reverse()
    path.write_text(json.dumps(manifest))
    assert "merged as" in load_refused(folder)


def test_a_manifest_never_leads_out_of_its_folder(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("rank-1-1", "../rank-1-1"))
    with pytest.raises(CheckpointError, match="lies outside the folder"):
        find_manifest(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "\xff", "[" * 10_000])
def test_a_manifest_of_others_is_none_and_a_broken_one_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
    if content in ("[]", '{"a": 1}'):
        assert find_manifest(tmp_path) is None
    else:
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            find_manifest(tmp_path)


@pytest.mark.parametrize(
    ("partition", "keys"),
    [
        ((4,), "infer.tp_size=1 infer.pp_size=1"),
        ((3, 1), "infer.tp_size=1 infer.pp_size=2 infer.pp_layer_partition=[3,1]"),
    ],
)
def test_the_keys_that_ask_for_a_folder_name_the_partition_of_stages(partition, keys):
    manifest = Manifest(
        architecture="LlamaForCausalLM",
        spec="",
        source="",
        tp_size=1,
        layer_partition=partition,
        merged={},
        dtype="float32",
        ranks=(),
    )
    assert manifest.keys == keys
