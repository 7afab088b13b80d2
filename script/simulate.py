"""`chitu-like simulate` as a script: `python script/simulate.py --help`; the work is in chitu_like/cli/simulate.py."""

import sys

from chitu_like.cli.command_line import run_reporting
from chitu_like.cli.simulate import run

if __name__ == "__main__":
    sys.exit(run_reporting("simulate.py", lambda: run("simulate.py", sys.argv[1:])))
