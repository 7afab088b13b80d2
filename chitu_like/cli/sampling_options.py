"""Options that say how tokens are drawn, shared by chat and generate."""

from __future__ import annotations

import argparse
from dataclasses import replace

from chitu_like.cli.command_line import positive_int
from chitu_like.core.sampling_params import SamplingParams

NAMES = ("max_tokens", "temperature", "top_p", "top_k", "seed")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each of NAMES; what is not given is left to the model's own defaults."""
    group = parser.add_argument_group("sampling (default: the model's generation_config)")
    group.add_argument(
        "--max-tokens",
        type=positive_int,
        metavar="N",
        help="tokens of an answer at most (default: what the context holds)",
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest")
    group.add_argument("--top-p", type=float, metavar="P", help="share of the probability kept")
    group.add_argument("--top-k", type=int, metavar="K", help="number of tokens kept")
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same answer")


def given_sampling(options: argparse.Namespace) -> dict[str, int | float]:
    """Fields of SamplingParams that were given on the command line."""
    found = {name: getattr(options, name) for name in NAMES}
    return {name: value for name, value in found.items() if value is not None}


def with_given_sampling(defaults: SamplingParams, options: argparse.Namespace) -> SamplingParams:
    """The defaults, changed by what was given on the command line.

    Raises: RequestError for a value out of range.
    """
    return replace(defaults, **given_sampling(options))  # type: ignore[arg-type]
