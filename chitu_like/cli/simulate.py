"""`chitu-like simulate`: what a service would do, told by the code that would do it, on a virtual clock."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from chitu_like.cli.command_line import Parser
from chitu_like.config.load import load_planning
from chitu_like.core.ending import DONE


def run(prog: str, arguments: Sequence[str]) -> int:
    """Simulate, print, write."""
    parser = Parser(
        prog,
        "Simulate a service before it exists: with the placement of `chitu-like plan`, or instances "
        "of infer.tp_size x infer.pp_size devices, deploy.replicas of them. The scheduler, the KV "
        "blocks, the router and its policies are those that serve; only the devices and the clock "
        "are simulated. out=DIR gets result.json, timeline.csv, requests.csv and plots.",
        [
            f"{prog} profile=roofline model=llama1_30b simulate.device=H100 infer.tp_size=2",
            f"{prog} cluster=mixed-24 profile=roofline model=llama2_70b placement=plan/placement.yaml "
            "simulate.mode=offline out=simulated/",
            f"{prog} profile=roofline model=qwen3-0.6b simulate.device=H200 workload=azure_conv "
            "deploy.replicas=2 simulate.rate=20 simulate.watch=true",
        ],
    )
    parser.add_overrides()
    config = load_planning(parser.parse_intermixed_args(arguments).overrides)
    # Here and not above: `--help` needs none of it.
    from chitu_like.cli.simulation import simulate_config

    simulate_config(config, Console(highlight=False, soft_wrap=True))
    return DONE
