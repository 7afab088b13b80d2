"""The command `chitu-like`: one file a subcommand, each thin over the package."""

from chitu_like.cli.entry import main

__all__ = ["main"]
