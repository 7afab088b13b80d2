"""`python -m chitu_like.cli`: the command `chitu-like` where its script is not on the path."""

import sys

from chitu_like.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
