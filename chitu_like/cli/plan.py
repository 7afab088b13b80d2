"""`chitu-like plan`: where to put which layers, or how to split prefill and decode, before anyone pays."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from chitu_like.cli.command_line import Parser
from chitu_like.config.load import load_planning
from chitu_like.config.planning import PlanningConfig
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError


def run(prog: str, arguments: Sequence[str]) -> int:
    """Search a placement, print what it promises, write it."""
    parser = Parser(
        prog,
        "Decide where a model goes before anyone rents a machine: layers on unequal machines "
        "(local_search, milp, petals, swarm, homogeneous; load evaluates a given placement), or "
        "parallelism of prefill and decode instances under an SLO (distserve). The placement goes to "
        "plan.out or out/placement.yaml, named figures to out/result.json.",
        [
            f"{prog} cluster=mixed-24 profile=roofline model=llama2_70b plan.time_limit_s=20",
            f"{prog} cluster=mixed-24 profile=roofline model=llama2_70b plan.method=swarm out=swarm/",
            f"{prog} cluster=h100x8 profile=roofline model=llama1_30b plan.method=distserve",
        ],
    )
    parser.add_overrides()
    config = load_planning(parser.parse_intermixed_args(arguments).overrides)
    console = Console(highlight=False, soft_wrap=True)
    _check_effect(config)
    # Here and not above: `--help` needs none of it.
    if config.plan.method == "distserve":
        from chitu_like.cli.plan_instances import plan_instances

        plan_instances(config, console)
    else:
        from chitu_like.cli.plan_layers import plan_layers

        plan_layers(config, console)
    return DONE


def _check_effect(config: PlanningConfig) -> None:
    """Raise ConfigError for a key that nothing would come of."""
    if config.placement is not None:
        raise ConfigError(
            f"placement={config.placement} is what simulate takes: to evaluate it here use "
            f"plan.method=load plan.load={config.placement}"
        )
    if config.workload is not None and config.plan.input_len is not None:
        raise ConfigError(
            f"workload={config.workload} has no effect beside plan.input_len and plan.output_len, which "
            "say how long requests are: leave one out"
        )
