"""What steps of a model cost on this machine: `python script/profile_model.py --help`; the work is in chitu_like/bench/profile_model.py."""

import sys

from chitu_like.bench.profile_model import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(run_reporting("profile_model.py", lambda: run("profile_model.py", sys.argv[1:])))
