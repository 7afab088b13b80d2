"""Figures of devices for the roofline: `python script/calibrate_roofline.py --help`; the work is in chitu_like/bench/calibrate_roofline.py."""

import sys

from chitu_like.bench.calibrate_roofline import run
from chitu_like.cli.command_line import run_reporting

if __name__ == "__main__":
    sys.exit(
        run_reporting("calibrate_roofline.py", lambda: run("calibrate_roofline.py", sys.argv[1:]))
    )
