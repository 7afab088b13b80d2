from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from chitu_like.config.explain import explain_key, list_keys
from chitu_like.config.files import values_dir
from chitu_like.config.keys import known_keys
from chitu_like.config.load import load_config, load_planning
from chitu_like.config.planning import PlanningConfig
from chitu_like.config.tree import build
from chitu_like.core.errors import ConfigError

OWN = ("cluster", "profile", "model", "placement", "workload", "out")


def test_plan_yaml_shows_every_key_of_planning_at_its_default() -> None:
    shown = OmegaConf.to_container(OmegaConf.load(values_dir() / "plan.yaml"))
    assert isinstance(shown, dict)
    assert shown.pop("defaults") == ["_self_"]
    assert build(PlanningConfig, {str(k): v for k, v in shown.items()}) == PlanningConfig()
    listed = set(OWN)
    for section in ("plan", "slo", "simulate"):
        listed |= {f"{section}.{name}" for name in shown.pop(section)}
    assert set(shown) == set(OWN)
    assert listed == set(known_keys(PlanningConfig)) - set(known_keys())


def test_nothing_given_is_every_default() -> None:
    assert load_planning([], environ={}) == PlanningConfig()


def test_overrides_reach_their_keys() -> None:
    config = load_planning(
        ["cluster=a, (b).yaml", "plan.method=milp", "infer.max_batch_size=3", "slo.ttft_s=2"],
        environ={},
    )
    assert (config.cluster, config.plan.method) == ("a, (b).yaml", "milp")
    assert (config.infer.max_reqs, config.slo.ttft_s) == (3, 2.0)


def test_a_file_of_ones_own_replaces_the_top(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("defaults: [plan, _self_]\nmodel: m\nplan: {seed: 5}\n")
    for config in (
        load_planning([], str(own), {}),
        load_planning([], environ={"CONFIG_NAME": str(own)}),
    ):
        assert (config.model, config.plan.seed, config.plan.method) == ("m", 5, "local_search")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.metod=milp", "unknown key plan.metod: did you mean plan.method?"),
        ("clustre=x", "unknown key clustre: did you mean cluster?"),
        ("models=x", "unknown key models: did you mean model?"),
        ("plan.method=mlp", "plan.method=mlp: use local_search, milp, petals"),
        ("simulate.duration_s=0", "simulate.duration_s=0: use a number from 0.001 to"),
        ("plan.processes=many", "plan.processes=many: use auto or a whole number from 1 to 1024"),
        ("infer.attn_type=ref", "infer.attn_type=ref has no effect on plan and simulate"),
        ("plan.load=x.yaml", "plan.load=x.yaml has no effect with plan.method=local_search"),
        ("plan.method=load", "plan.method=load: say which placement, plan.load=FILE"),
        ("plan.input_len=3", "plan.input_len and plan.output_len belong together"),
        ("simulate.prefill_replicas=1", "simulate.prefill_replicas=1 of deploy.replicas=1 leave"),
        ("plan.seed", "plan.seed: write KEY=VALUE"),
    ],
)
def test_a_slip_is_one_line_that_says_what_would_be_right(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_planning([override], environ={})
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_file_for_serving_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"serve.yaml is made for serving"):
        load_planning([], "serve", {})


def test_serving_knows_no_key_of_planning() -> None:
    with pytest.raises(ConfigError, match=r"unknown key plan.method"):
        load_config(["plan.method=milp"], environ={})


def test_explain_knows_both() -> None:
    said = explain_key("plan.method", ["plan.method=milp"], environ={})
    assert "now:     milp (command line: plan.method=milp)" in said
    assert "default: 1" in explain_key("infer.tp_size", environ={})
    assert "null (default)" in explain_key("cluster", environ={})
    assert {"plan.method", "serve.port"} <= {line.split()[0] for line in list_keys().splitlines()}
    with pytest.raises(ConfigError, match=r"did you mean plan.method"):
        explain_key("plan.methd", environ={})
