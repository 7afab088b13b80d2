"""`chitu-like serve`: the service, on as many ranks of this node as its configuration needs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from chitu_like.cli.command_line import Parser
from chitu_like.config.load import load_config
from chitu_like.launch import check_before_start, launch
from chitu_like.local_ranks import check_devices, run_ranks


def run(prog: str, arguments: Sequence[str]) -> int:
    """Serve until stopped; one rank runs in this very process, more of them under torchrun."""
    parser = Parser(
        prog,
        "Serve a model over HTTP: OpenAI's routes under /v1, a chat page at /. Ctrl-C drains and "
        "stops.",
        [
            prog,
            f"{prog} serve.port=8000 infer.max_reqs=16",
            f"{prog} models=auto models.ckpt_dir=/models/Qwen3-0.6B",
            f"{prog} models=auto models.ckpt_dir=/models/Qwen3-32B infer.tp_size=4",
            f"CONFIG_NAME=my.yaml {prog}",
        ],
    )
    parser.add_overrides()
    overrides: list[str] = parser.parse_intermixed_args(arguments).overrides
    config = load_config(overrides)
    if config.num_ranks == 1 or "RANK" in os.environ:  # with RANK, torchrun has started this one
        return launch(overrides)
    check_before_start(config)  # told here, once, and not by torchrun's ranks
    check_devices(config)
    return run_ranks(
        ["-m", "chitu_like", *overrides],
        num_ranks=config.num_ranks,
        drain_timeout_s=config.serve.drain_timeout_s,
    )
