"""`chitu-like chat`: talk to a model in the terminal, or through a pipe."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console

from chitu_like.cli.chat_session import ChatSession
from chitu_like.cli.chat_source import ChatSource, LocalSource, RemoteSource
from chitu_like.cli.command_line import Parser
from chitu_like.cli.sampling_options import (
    add_sampling_options,
    given_sampling,
    with_given_sampling,
)
from chitu_like.config.secrets import API_KEYS_VARIABLE
from chitu_like.core.ending import DONE, FAILED


def run(prog: str, arguments: Sequence[str]) -> int:
    """Chat until the user leaves; in a pipe each line is a turn."""
    parser = _parser(prog)
    options = parser.parse_intermixed_args(arguments)
    if options.url is not None and options.overrides:
        parser.error(f"{options.overrides[0]}: the server at --url has its own configuration")
    if options.url is None and (options.model or options.api_key):
        parser.error("--model and --api-key go with --url")
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = Console(highlight=False)
    remarks = screen if is_terminal else Console(stderr=True, highlight=False)
    source = _open_source(options, sys.stderr.isatty())
    try:
        session = ChatSession(source, screen, remarks, system=options.system)
        if is_terminal:
            remarks.print(f"[bold]{source.name}[/bold]  [dim]/help, Ctrl-D leaves[/dim]")
        num_failed = session.run(_ask if is_terminal else _next_line)
    finally:
        source.close()
    return FAILED if num_failed and not is_terminal else DONE


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Chat in the terminal: with a model in this process, or with a server. At the prompt, "
        "/help lists the commands. In a pipe each line of the input is a turn: answers go to "
        "standard output, figures to standard error.",
        [
            prog,
            f"{prog} models=auto models.ckpt_dir=/models/Qwen3-0.6B",
            f"{prog} --url http://127.0.0.1:21002",
            f"echo hi | {prog}",
        ],
    )
    parser.add_argument("--url", help="talk to this server instead of loading a model")
    parser.add_argument("--model", help="the server's name of the model (default: its first)")
    parser.add_argument(
        "--api-key", help=f"bearer key of the server (default: ${API_KEYS_VARIABLE}, if set)"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    add_sampling_options(parser)
    parser.add_overrides()
    return parser


def _open_source(options: argparse.Namespace, shows_progress: bool) -> ChatSource:
    if options.url is not None:
        key = options.api_key or os.environ.get(API_KEYS_VARIABLE, "").partition(",")[0] or None
        return RemoteSource(options.url, options.model, key, given_sampling(options))
    from chitu_like.config.load import load_config
    from chitu_like.llm import LLM

    name = load_config(options.overrides).models.name
    llm = LLM(*options.overrides, progress=shows_progress)
    return LocalSource(llm, with_given_sampling(llm.default_params(), options), name)


def _ask() -> str | None:
    """The next turn from the keyboard."""
    with suppress(ImportError):  # not on every system; where it is, input() gets a history
        importlib.import_module("readline")
    print()
    try:
        return input("> ")
    except EOFError:
        return None


def _next_line() -> str | None:
    """The next turn from a pipe."""
    return sys.stdin.readline() or None
