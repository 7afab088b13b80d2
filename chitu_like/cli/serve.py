"""`chitu-like serve`: the service, as `python -m chitu_like` starts it."""

from __future__ import annotations

from collections.abc import Sequence

from chitu_like.cli.command_line import Parser
from chitu_like.launch import launch


def run(prog: str, arguments: Sequence[str]) -> int:
    """Serve until stopped; one instance of one rank runs in this very process."""
    parser = Parser(
        prog,
        "Serve a model over HTTP: OpenAI's routes under /v1, a chat page at /. Ctrl-C drains and "
        "stops.",
        [
            prog,
            f"{prog} serve.port=8000 infer.max_reqs=16",
            f"{prog} models=auto models.ckpt_dir=/models/Qwen3-0.6B",
            f"CONFIG_NAME=my.yaml {prog}",
        ],
    )
    parser.add_overrides()
    return launch(parser.parse_intermixed_args(arguments).overrides)
