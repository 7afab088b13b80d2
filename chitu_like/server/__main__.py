"""`python -m chitu_like.server`: the front-end process; rank 0 starts it, see front_end.py."""

import sys

from chitu_like.server.front_end import run

if __name__ == "__main__":
    sys.exit(run())
