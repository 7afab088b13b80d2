"""`torchrun ... -m chitu_like KEY=VALUE...`: compose the configuration and serve."""

import sys

from chitu_like.launch import launch

if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
