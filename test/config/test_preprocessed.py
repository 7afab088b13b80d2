"""skip_preprocess, and what a folder's manifest refuses before anything starts. No torch here."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from machines import CPU

from chitu_like.config.device_facts import DeviceFacts
from chitu_like.config.files import expand_model_path
from chitu_like.config.load import load_config
from chitu_like.config.preprocessed import check_preprocessed
from chitu_like.config.resolve import resolve
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.core.errors import CheckpointError, ChituError, ConfigError
from chitu_like.core.manifest import Manifest, RankFile, digest_of_spec
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layout import layer_partition_of

TINY_CHAT = Path(expand_model_path("models.ckpt_dir", "package:tiny-chat"))


def make_folder(folder: Path, **changes: object) -> Path:
    """A folder as preprocess_and_save leaves it, but for its weights: eight layers."""
    shutil.copy(TINY_CHAT / "config.json", folder)
    spec = ModelSpec.from_folder(folder)
    values: dict[str, object] = {
        "architecture": spec.architecture,
        "spec": digest_of_spec(spec),
        "source": "",
        "tp_size": 1,
        "layer_partition": (8,),
        "merged": {},
        "dtype": "float32",
        **changes,
    }
    ranks = tuple(
        RankFile(pp_rank=pp, tp_rank=tp, file="f", num_tensors=0, num_bytes=0, digest="")
        for pp in range(len(values["layer_partition"]))  # type: ignore[arg-type]
        for tp in range(values["tp_size"])  # type: ignore[call-overload]
    )
    manifest = Manifest(ranks=ranks, **values)  # type: ignore[arg-type]
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return folder


def resolved(
    folder: Path, *words: str, facts: DeviceFacts = CPU, tp: int = 1, pp: int = 1
) -> ResolvedConfig:
    config = load_config(["models=auto", f"models.ckpt_dir={folder}", *words], environ={})
    config = replace(config, infer=replace(config.infer, tp_size=tp, pp_size=pp))
    spec = ModelSpec.from_folder(folder)
    check_preprocessed(config, spec, layer_partition_of(config, spec))
    return resolve(config, facts, spec)


def refusal(folder: Path, *words: str, **ranks: int) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(folder, *words, **ranks)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reason(of: ResolvedConfig, key: str) -> tuple[str, str]:
    return next((d.value, d.reason) for d in of.decisions if d.key == key)


def test_the_manifest_says_so_by_itself(tmp_path: Path) -> None:
    done = resolved(make_folder(tmp_path))
    assert reason(done, "skip_preprocess") == ("true", "its manifest says so")
    assert done.dtype == "float32"  # config.json says bfloat16; the manifest knows what was saved
    assert resolved(tmp_path, "skip_preprocess=True").dtype == "float32"


def test_an_ordinary_folder_is_not_preprocessed() -> None:
    done = resolved(TINY_CHAT)
    assert reason(done, "skip_preprocess") == ("false", "a Hugging Face folder")
    assert resolved(TINY_CHAT, "skip_preprocess=false").dtype == "bfloat16"


def test_an_ordinary_folder_is_refused_where_a_preprocessed_one_is_meant() -> None:
    message = refusal(TINY_CHAT, "skip_preprocess=True")
    assert message.startswith(f"skip_preprocess=true but {TINY_CHAT} was not written by")


def test_a_preprocessed_folder_is_refused_where_an_ordinary_one_is_meant(tmp_path: Path) -> None:
    message = refusal(make_folder(tmp_path), "skip_preprocess=false")
    assert message.startswith(f"skip_preprocess=false but {tmp_path} was written by")
    assert "use auto, or name the Hugging Face folder" in message


def test_skip_preprocess_without_weights_is_refused(tmp_path: Path) -> None:
    message = refusal(make_folder(tmp_path), "skip_preprocess=true", "models.load_format=dummy")
    assert "models.load_format=dummy reads no weights" in message
    resolved(tmp_path, "models.load_format=dummy")  # only its config.json is looked at


@pytest.mark.parametrize(
    ("held", "words", "ranks", "keys", "asked"),
    [
        (
            {"tp_size": 2},
            (),
            {},
            "infer.tp_size=2 infer.pp_size=1",
            "infer.tp_size=1 infer.pp_size=1",
        ),
        (
            {"tp_size": 2},
            (),
            {"tp": 2, "pp": 2},
            "infer.tp_size=2 infer.pp_size=1",
            "infer.tp_size=2 infer.pp_size=2 infer.pp_layer_partition=[5,3]",
        ),
        (
            {"layer_partition": (3, 5)},
            (),
            {"pp": 2},
            "infer.tp_size=1 infer.pp_size=2 infer.pp_layer_partition=[3,5]",
            "infer.tp_size=1 infer.pp_size=2 infer.pp_layer_partition=[5,3]",
        ),
    ],
)
def test_another_layout_is_refused_with_the_keys(
    tmp_path: Path,
    held: dict[str, object],
    words: tuple[str, ...],
    ranks: dict[str, int],
    keys: str,
    asked: str,
) -> None:
    message = refusal(make_folder(tmp_path, **held), *words, **ranks)
    assert message == (
        f"{tmp_path} was written for {keys}, not for {asked}: set the keys that it was written "
        "for, or preprocess the checkpoint again"
    )


def test_the_layout_that_it_was_written_for_is_taken(tmp_path: Path) -> None:
    automatic = make_folder(tmp_path, layer_partition=(5, 3))  # the head is work for the last
    assert resolved(automatic, pp=2).dtype == "float32"
    asked_for = make_folder(tmp_path, layer_partition=(4, 4))
    assert resolved(asked_for, "infer.pp_layer_partition=[4,4]", "infer.pp_size=2", pp=2)
    assert resolved(make_folder(tmp_path, tp_size=2), tp=2).dtype == "float32"


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    message = refusal(make_folder(tmp_path), "dtype=bfloat16")
    assert "was written in dtype=float32, to be served in dtype=bfloat16: set dtype=float32" in (
        message
    )
    make_folder(tmp_path, dtype="bfloat16")
    t4 = replace(CPU, name="Tesla T4", supports_bf16=False)
    with pytest.raises(ConfigError, match="preprocess the checkpoint again with dtype=float32"):
        resolved(tmp_path, facts=t4)


def test_another_shape_is_refused_and_another_rope_is_not(tmp_path: Path) -> None:
    make_folder(tmp_path)
    spec = ModelSpec.from_folder(tmp_path)
    config = load_config(["models=auto", f"models.ckpt_dir={tmp_path}"], environ={})
    longer = replace(spec, max_position_embeddings=spec.max_position_embeddings * 2)
    check_preprocessed(config, longer, [8])
    with pytest.raises(ConfigError, match=r"of another shape than its config\.json now gives"):
        check_preprocessed(config, replace(spec, intermediate_size=spec.intermediate_size + 1), [8])


def test_another_quantisation_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, quant="gptq")
    config = load_config(["models=auto", f"models.ckpt_dir={tmp_path}"], environ={})
    spec = ModelSpec.from_folder(tmp_path)
    with pytest.raises(ConfigError, match="was written with quant=gptq: leave quant=awq out"):
        check_preprocessed(replace(config, quant="awq"), spec, [8])


def test_a_half_written_folder_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "manifest.json").rename(tmp_path / "unfinished.json")
    with pytest.raises(CheckpointError, match="half-written"):
        resolved(tmp_path)


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"{")
    with pytest.raises(ChituError, match=r"manifest\.json is damaged"):
        resolved(tmp_path)
