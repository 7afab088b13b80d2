"""Profiles: what is written is read, measured comes before computed, faults are one line."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from layer_table_cases import tables

from chitu_like.cluster.cost_model import BatchShape, ModelFacts
from chitu_like.cluster.curve import Curve
from chitu_like.cluster.layer_tables import LayerTables
from chitu_like.cluster.profile import Profile, find_profile
from chitu_like.cluster.profile_records import (
    Capacity,
    HostCost,
    ModelRecord,
    PlanningFigures,
    StepsRecord,
)
from chitu_like.cluster.roofline import DeviceFigures, Rate, RooflineStep
from chitu_like.cluster.step_fit import DistServeFit, StepFit, Terms
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec

HF_CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "float16",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
FACTS = ModelFacts(
    name="toy",
    num_layers=8,
    layer_bytes=1e9,
    activation_bytes=2048,
    kv_bytes_per_token=1000,
    num_heads=8,
    num_kv_heads=2,
    embedding_bytes=2e9,
)
RATE = Rate(overhead_s=1e-5, flops_per_s=1e14, bytes_per_s=1e12)
FIGURES = DeviceFigures(
    source="made up", memory_bytes=40e9, gemm=RATE, prefill=RATE, decode=RATE, all_reduce={2: RATE}
)
TERMS = Terms(constant_s=0.01, tokens=((1.0, 0.0), (100.0, 0.1)), context=((0.0, 0.0), (1e4, 0.01)))
FIT = StepFit(decodes=TERMS, mixed=TERMS, most_tokens=100, most_decodes=10, head_layers=2.0)
DISTSERVE = DistServeFit(
    prefill=(10.0, 0.1, 1e-4),
    decoding_smallbs=(5.0, 1e-3, 0.1),
    decoding_largebs=(8.0, 1e-3, 0.05),
)
STEPS = StepsRecord(
    fitted={1: FIT},
    distserve={2: DISTSERVE},
    capacity=[Capacity(tp=1, pp=2, max_num_tokens=1000)],
    host=HostCost(step_s=1e-4, request_s=1e-6),
    memory_bytes=30e9,
    residuals={"1 decodes": {"median": 0.02}},
    measured={"date": "today"},
)


def replace_steps(**changes: object) -> StepsRecord:
    return msgspec.structs.replace(STEPS, **changes)


SHAPE = BatchShape(num_decodes=4, decode_context=400)


def profile() -> Profile:
    record = ModelRecord.of(
        FACTS, planning=PlanningFigures(typical_layers={"T4": 2}), hf_config=HF_CONFIG
    )
    return Profile(
        models={"toy": record},
        tables={("toy", "t4"): tables()},
        steps={("toy", "a100"): STEPS},
        devices={"L4": FIGURES, "A100": FIGURES},
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    profile().write(tmp_path)
    again = Profile.read(tmp_path)
    assert again.models == profile().models
    assert again.devices == profile().devices
    assert again.steps == profile().steps
    table = again.tables["toy", "t4"]
    assert table.prompt.ys == pytest.approx(tables().prompt.ys)
    again.write(tmp_path / "again")
    for path in tmp_path.glob("toy/*/*"):
        assert (tmp_path / "again" / path.relative_to(tmp_path)).read_text() == path.read_text()


def test_measured_comes_before_computed_and_case_does_not_matter() -> None:
    found = profile()
    assert isinstance(found.layer_times("toy", "T4"), LayerTables)
    assert isinstance(found.step_cost("toy", "l4"), RooflineStep)
    fitted = found.step_cost("toy", "A100").seconds(SHAPE)
    assert fitted == pytest.approx(0.01 + 0.1 * 3 / 99 + 0.01 * 0.04)
    first = found.step_cost("toy", "A100", tp=2, num_layers=4).seconds(SHAPE)
    assert first == pytest.approx(((5 + 0.4 + 0.4) / 2 + 2.04) / 1e3)


def test_stages_of_a_pipeline_take_as_long_as_the_whole() -> None:
    for device in ("A100", "L4"):
        whole = profile().step_cost("toy", device).seconds(SHAPE)
        first = profile().step_cost("toy", device, num_layers=5, is_last=False)
        last = profile().step_cost("toy", device, num_layers=3, is_first=False)
        assert first.seconds(SHAPE) + last.seconds(SHAPE) == pytest.approx(whole)


def test_layers_of_a_fit_or_a_roofline_are_parts_of_its_steps() -> None:
    times = profile().layer_times("toy", "A100")
    context = 4 * (750 + 120)
    expected = 0.01 + 0.1 * 3 / 99 + 0.01 * context / 1e4
    assert times.decode_s(4) == pytest.approx(expected / 10)  # 8 layers and a head of 2
    assert times.decode_s(0) == times.prompt_s(0) == 0
    assert times.max_layers == 8  # 15e9 bytes hold more than there are
    assert times.kv_tokens(8) == int((30e9 * 0.89 - 8e9) / 8000)
    two = profile().layer_times("toy", "L4x2")
    assert two.kv_tokens(4) == int((80e9 * 0.89 - 4e9) / 4000)


def test_blocks_are_as_measured_or_by_the_formula() -> None:
    found = profile()
    assert found.kv_blocks("toy", "A100", num_layers=4) == 1000 // 16
    assert found.kv_blocks("toy", "A100") == int((30e9 * 0.89 - 10e9) / 8000) // 16
    by_hand = int((20e9 * 0.49 - 10e9 / 2) / (8000 / 2)) // 32
    given = found.kv_blocks("toy", "A100", tp=2, memory_bytes=20e9, utilization=0.5, block_size=32)
    assert given == by_hand
    assert found.kv_blocks("toy", "A100", memory_bytes=1e9) == 0


@pytest.mark.parametrize(
    ("device", "tp", "fault"),
    [
        ("H100", 1, r"no times of toy on H100: it has A100, L4, t4; measure it"),
        ("a100", 3, r"tp=3 does not divide num_heads=8"),
        ("L4", 4, r"L4: tp=4: all-reduce is known for tp = 1, 2"),
        ("L4", 3, r"tp=3 does not divide num_heads=8"),
    ],
)
def test_what_is_not_known_is_one_line(device: str, tp: int, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        profile().step_cost("toy", device, tp=tp)


def test_a_memory_that_nobody_told_is_one_line() -> None:
    bare = Profile(
        models={"toy": ModelRecord.of(FACTS)},
        steps={("toy", "a100"): StepsRecord(distserve={1: DISTSERVE})},
    )
    fault = r"how much memory A100 has: give memory_bytes in toy/a100/steps\.json"
    with pytest.raises(ConfigError, match=fault):
        bare.layer_times("toy", "A100")
    with pytest.raises(ConfigError, match=fault):
        bare.kv_blocks("toy", "A100")
    with pytest.raises(ConfigError, match="no times of toy on H100: it has a100"):
        bare.kv_blocks("toy", "H100")
    unsized = Profile(models={"toy": ModelRecord.of(replace(FACTS, kv_bytes_per_token=0))})
    with pytest.raises(ConfigError, match="toy: kv_bytes_per_token is not there"):
        unsized.kv_blocks("toy", "A100", memory_bytes=1e9)


def test_an_unknown_model_is_one_line_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="has no model other: it has toy"):
        profile().model("other")


def test_a_model_of_ones_own_joins_by_its_shape() -> None:
    spec = ModelSpec.from_hf_config(HF_CONFIG)
    found = Profile(models={}, devices={"L4": FIGURES}).with_model("mine", spec)
    assert found.model("mine").layer_bytes == 2 * spec.layer_parameters()
    assert found.devices_of("mine") == ["L4"]
    assert found.step_cost("mine", "L4").seconds(SHAPE) > 0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"toy": {"num_layers": 8}}', r"model\.json: Object missing required field `layer_bytes`"),
        (
            '{"toy": {"num_layers": "8", "layer_bytes": 1, "activation_bytes": 1}}',
            r"Expected `int`, got `str` - at `\$\[\.\.\.\]\.num_layers`",
        ),
        (
            '{"toy": {"num_layers": 0, "layer_bytes": 1, "activation_bytes": 1}}',
            r"toy: num_layers=0: give 1 to 10000",
        ),
        *(
            (
                '{"toy": {"num_layers": 8, "layer_bytes": 1, "activation_bytes": 1, "planning": '
                f"{planning}}}}}",
                f"toy: planning: {fault}",
            )
            for planning, fault in (
                ('{"longest_input": 0}', "longest_input=0: give 1 token or more"),
                ('{"mean_input": 0}', "mean_input=0.0: give 1 token or more"),
                ('{"start_speed": {"T4": -1}}', "start_speed: T4=-1.0: give more than 0"),
            )
        ),
        ('{"../a": {"num_layers": 8, "layer_bytes": 1, "activation_bytes": 1}}', "no name of a"),
        ("{", "Input data was truncated"),
    ],
)
def test_a_broken_model_file_is_one_line(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        Profile.read(tmp_path)


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        (replace_steps(memory_bytes=-1.0), "memory_bytes=-1.0: give 0 or more"),
        (replace_steps(host=HostCost(step_s=-1.0, request_s=0.0)), "host.step_s=-1.0: give 0"),
        (
            replace_steps(capacity=[Capacity(tp=1, pp=1, max_num_tokens=-5)]),
            r"capacity: .*max_num_tokens=-5.*: give 1 or more",
        ),
        (
            replace_steps(fitted={1: msgspec.structs.replace(FIT, head_layers=-8.0)}),
            r"fitted\[1\].head_layers=-8.0: give 0 or more",
        ),
    ],
)
def test_steps_that_no_device_takes_are_one_line(steps: StepsRecord, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"made up: toy on t4: {fault}"):
        Profile(models={"toy": ModelRecord.of(FACTS)}, steps={("toy", "t4"): steps}, name="made up")


@pytest.mark.parametrize(("model", "device"), [("..", "t4"), ("toy", "../t4"), ("toy", "")])
def test_nothing_is_written_outside_of_the_folder(tmp_path: Path, model: str, device: str) -> None:
    found = Profile(models={model: ModelRecord.of(FACTS)}, steps={(model, device): STEPS})
    with pytest.raises(ConfigError, match="is no name of a folder"):
        found.write(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_profile_is_found_by_path_or_name(tmp_path: Path) -> None:
    profile().write(tmp_path)
    assert find_profile(str(tmp_path)).model("toy") == FACTS
    with pytest.raises(
        ConfigError, match="profile=nowhere: no such folder; give a path, or one of"
    ):
        find_profile("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"the folder holds no model\.json"):
        find_profile(str(tmp_path / "empty"))


def test_curves_are_equal_by_their_points() -> None:
    assert Curve([1, 2], [3, 4]) == Curve([1, 2], [3, 4])
    assert len({Curve([1, 2], [3, 4]), Curve([1, 2], [3, 4]), Curve([1], [3])}) == 2
