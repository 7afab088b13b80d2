"""`torchrun ... -m chitu_like KEY=VALUE...`: compose the configuration and serve."""

import sys
from collections.abc import Sequence

from chitu_like.launch import launch


def main(arguments: Sequence[str]) -> int:
    """Serve, or show the help where it is asked for; returns the exit code."""
    if {"-h", "--help"}.intersection(arguments):
        from chitu_like.cli import main as run_command  # one help for both ways to serve

        return run_command(["serve", "--help"])
    return launch(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
