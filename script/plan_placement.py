"""`chitu-like plan` as a script: `python script/plan_placement.py --help`; the work is in chitu_like/cli/plan.py."""

import sys

from chitu_like.cli.command_line import run_reporting
from chitu_like.cli.plan import run

if __name__ == "__main__":
    sys.exit(run_reporting("plan_placement.py", lambda: run("plan_placement.py", sys.argv[1:])))
