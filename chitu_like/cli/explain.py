"""`chitu-like explain [KEY]`: what a key means and where its value comes from."""

from __future__ import annotations

from collections.abc import Sequence

from chitu_like.cli.command_line import Parser
from chitu_like.config.explain import explain_key, list_keys
from chitu_like.core.ending import DONE


def run(prog: str, arguments: Sequence[str]) -> int:
    """Print one key, or all of them."""
    parser = Parser(
        prog,
        "Say what a configuration key means, which values fit, its default, and what it is under "
        "the KEY=VALUEs given. Without a key: every key in a line.",
        [
            prog,
            f"{prog} models",
            f"{prog} infer.max_reqs",
            f"{prog} infer.max_reqs models=llama-3-8b models.load_format=dummy",
        ],
    )
    parser.add_overrides()
    words = parser.parse_intermixed_args(arguments).overrides
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if overrides and not names:
        parser.error(f"{overrides[0]}: which key is to be explained?")
    print("\n\n".join(explain_key(name, overrides) for name in names) or list_keys())
    return DONE
