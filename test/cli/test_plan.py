from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from chitu_like.cli import main
from chitu_like.cluster.layer_placement_file import read_layer_placement
from chitu_like.planner.instance_plan import read_instance_plan

CLUSTER = """
nodes:
  - {name: a, count: 2, device: A100-40GB, memory_bytes: 40 * GB, nic_in: 10 * GB/s, nic_out: 10 * GB/s, disk: 10 * GB/s}
  - {name: l, count: 5, device: L4, memory_bytes: 24 * GB, nic_in: 10 * GB/s, nic_out: 10 * GB/s, disk: 10 * GB/s}
links:
  - {source: source, target: all, bandwidth: 1 * GB/s, latency_s: 1 * ms}
  - {source: all, target: all, bandwidth: 1 * GB/s, latency_s: 1 * ms}
  - {source: all, target: sink, bandwidth: 1 * GB/s, latency_s: 1 * ms}
"""
PROFILE = ("profile=roofline", "model=llama1_30b")
SMALL = ("profile=roofline", "model=qwen3-0.6b", "simulate.device=H200")
SHORT = ("simulate.warmup_s=2", "simulate.duration_s=8")


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    return f"cluster={path}"


def result(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("method", ["petals", "homogeneous", "local_search", "milp"])
def test_a_plan_is_written_and_evaluates_to_the_same_flow(
    method: str, cluster: str, tmp_path: Path
) -> None:
    if method == "milp":
        pytest.importorskip("highspy")
    found, again = tmp_path / "found", tmp_path / "again"
    words = ["plan", cluster, *PROFILE, f"plan.method={method}", "plan.num_simulated=0"]
    assert main([*words, "plan.time_limit_s=2", f"out={found}"]) == 0
    placement = found / "placement.yaml"
    assert read_layer_placement(placement).uncovered() == []
    load = ["plan.method=load", f"plan.load={placement}", f"out={again}"]
    assert main(["plan", cluster, *PROFILE, *load]) == 0
    assert result(again)["max_flow"] == pytest.approx(result(found)["max_flow"])
    assert 0 < result(found)["max_flow"] <= result(found)["max_compute_throughput"]


def test_the_same_seed_finds_the_same_placement(cluster: str, tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.yaml"
        words = ["plan.evaluations=500", "plan.num_simulated=0", f"plan.out={path}"]
        assert main(["plan", cluster, *PROFILE, *words]) == 0
        texts.append(path.read_text())
    assert texts[0] == texts[1]


def test_the_time_limit_covers_the_simulations_too(tmp_path: Path) -> None:
    words = ["plan", "cluster=mixed-24", "profile=roofline", "model=llama2_70b"]
    assert main([*words, "plan.time_limit_s=2", f"out={tmp_path}"]) == 0
    found = result(tmp_path)
    assert found["search_s"] < 4
    assert found["num_simulated"] < 3
    assert (found["simulated_warmup_s"], found["simulated_window_s"]) == (120, 300)


def test_a_plan_of_layers_is_for_the_mean_lengths_of_its_workload(
    cluster: str, tmp_path: Path
) -> None:
    workload = tmp_path / "long.yaml"
    workload.write_text(
        "arrivals: {kind: poisson, rate: 1}\ninput_len: {low: 1, high: 199}\noutput_len: {fixed: 900}\n"
    )
    flows = []
    for words in ([], [f"workload={workload}"], ["plan.input_len=100", "plan.output_len=900"]):
        out = tmp_path / str(len(flows))
        assert main(["plan", cluster, *PROFILE, "plan.method=swarm", *words, f"out={out}"]) == 0
        flows.append(result(out)["max_flow"])
    assert flows[0] != flows[1] == flows[2]


@pytest.mark.parametrize("router", ["maxflow", "swarm", "random", "shortest_queue"])
def test_a_placement_is_simulated_with_every_router(
    router: str, cluster: str, tmp_path: Path
) -> None:
    placement = tmp_path / "placement.yaml"
    assert (
        main(["plan", cluster, *PROFILE, "plan.method=homogeneous", f"plan.out={placement}"]) == 0
    )
    out, workload = tmp_path / "out", tmp_path / "short.yaml"
    workload.write_text(
        "arrivals: {kind: poisson, rate: 1}\ninput_len: {fixed: 100}\noutput_len: {fixed: 20}\n"
    )
    words = ["simulate", cluster, *PROFILE, f"placement={placement}", f"out={out}"]
    words += [f"simulate.router={router}", f"workload={workload}", "simulate.warmup_s=20"]
    assert main([*words, "simulate.duration_s=60", "simulate.rate=0.2"]) == 0
    found = result(out)
    named = ("max_compute_throughput", "max_flow", "decode_tokens_per_s", "total_tokens_per_s")
    assert all(found[name] > 0 for name in named)
    latencies = ("avg_prompt_latency_s", "avg_decode_latency_s", "ttft_p50_s", "tpot_p99_s")
    assert all(found[name] > 0 for name in latencies)


def test_instances_are_simulated_as_the_keys_of_serving_say(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["simulate", *SMALL, *SHORT, "deploy.replicas=2", "router.policy=round_robin"]
    assert main([*words, "simulate.rate=10", "workload=azure_conv", f"out={out}"]) == 0
    found = result(out)
    assert found["num_arrived"] == pytest.approx(80, abs=30)
    assert set(found["nodes"]) == {"instance0", "instance1"}  # type: ignore[call-overload]
    with (out / "requests.csv").open() as file:
        assert {row["place"] for row in csv.DictReader(file)} == {"instance0", "instance1"}
    assert (out / "timeline.csv").is_file()


def test_the_same_seed_simulates_the_same(tmp_path: Path) -> None:
    found = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        out = tmp_path / name
        assert main(["simulate", *SMALL, *SHORT, f"simulate.seed={seed}", f"out={out}"]) == 0
        found.append({**result(out), "wall_s": 0.0})
    assert found[0] == found[1] != found[2]


def test_quanta_of_mlfq_reach_simulated_instances(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scheduler.type=mlfq", "infer.max_reqs=4", "simulate.rate=20", "simulate.warmup_s=0"]
    keys = ["quantum_steps=1", "quantum_steps=256", "prompt_tokens_per_step=4096"]
    shown = set()
    for key in keys:
        more = [f"scheduler.mlfq_{key}", "simulate.duration_s=4"]
        assert main(["simulate", *SMALL, *words, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        shown.add(tuple(line for line in lines if "wall_s" not in line))
    assert len(shown) == len(keys)


def test_prefill_and_decode_are_simulated_apart(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["deploy.replicas=3", "simulate.prefill_replicas=1", "simulate.kv_bytes_per_s=50e9"]
    assert main(["simulate", *SMALL, *SHORT, *words, "simulate.rate=5", f"out={out}"]) == 0
    assert {"prefill0", "decode0", "decode1"} <= set(result(out)["nodes"])  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("affinity", ["high", "low"])
def test_distserve_finds_a_plan_that_simulate_takes(affinity: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ["cluster=h100x8", *PROFILE, "slo.ttft_s=0.3", "slo.tpot_s=0.05"]
    search = ["plan.method=distserve", f"plan.affinity={affinity}", "plan.processes=1"]
    search += ["plan.max_tp=2", "plan.max_pp=1", "plan.num_requests=20", "plan.precision=0.5"]
    assert main(["plan", *common, *search, f"out={out}"]) == 0
    plan = read_instance_plan(out / "placement.yaml")
    assert plan.goodput == result(out)["goodput"]
    assert plan.goodput is not None
    rate = f"simulate.rate={plan.goodput / 4}"
    simulated = tmp_path / "simulated"
    words = [f"placement={out}/placement.yaml", rate, *SHORT, f"out={simulated}"]
    assert main(["simulate", *common, *words]) == 0
    assert result(simulated)["slo_attainment"] > 0.9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan"], "cluster is needed"),
        (["plan", "cluster=mixed-24"], "profile is needed"),
        (["plan", "cluster=mixd-24", *PROFILE], "did you mean mixed-24?"),
        (["plan", "cluster=mixed-24", "profile=roofline"], "model is needed: "),
        (["plan", "cluster=mixed-24", "profile=roofline", "model=x"], "has no model x"),
        (["plan", "cluster=h200", "profile=roofline", "model=llama2_70b"], "holds 46"),
        (["plan", "cluster=mixed-24", *PROFILE, "placement=x"], "plan.method=load plan.load=x"),
        (["plan", "cluster=mixed-24", *PROFILE, "workload=poison"], "did you mean poisson?"),
        (
            ["plan", "workload=helix", "plan.input_len=9", "plan.output_len=9"],
            "workload=helix has no effect beside plan.input_len",
        ),
        (
            ["plan", "plan.method=distserve", "plan.input_len=9", "plan.output_len=9"],
            "plan.input_len=9.0 has no effect with plan.method=distserve",
        ),
        (["plan", "plan.methd=milp"], "did you mean plan.method?"),
        (["plan", "plan.method=best"], "plan.method=best: use local_search, milp"),
        (["simulate", *PROFILE], "which device do instances run on?"),
        (["simulate", *PROFILE, "simulate.device=H1"], "has no times of llama1_30b on H1"),
        (["simulate", *PROFILE, "simulate.device=T4"], "does not fit 1 T4"),
        (["simulate", *SMALL, "simulate.router=swarm"], "router=swarm has no effect on instances"),
        (["simulate", *SMALL, "simulate.router=swrm"], "use maxflow, swarm, random"),
        (["simulate", *SMALL, "placement=none.yaml"], "none.yaml cannot be read"),
        (["simulate", *SMALL, "workload=poison"], "did you mean poisson?"),
        (
            ["simulate", *SMALL, "deploy.replicas=2", "simulate.prefill_replicas=1"],
            "simulate.kv_bytes_per_s",
        ),
        (["simulate", *SMALL, "infer.tp_size=3"], "infer.tp_size=3 does not divide the 16 heads"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in complaint(capsys)


def test_a_trace_with_a_bad_row_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input,output\n0,10,1\n1,-3,1\n")
    assert main(["simulate", *SMALL, f"workload={path}"]) == 2
    assert f"{path}, line 3" in complaint(capsys)
