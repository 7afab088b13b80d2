"""Cut and merge a checkpoint once: `python script/preprocess_and_save.py --help`; the work is in chitu_like/preprocess.py."""

import sys

from chitu_like.cli.command_line import run_reporting
from chitu_like.cli.preprocess import run

if __name__ == "__main__":
    sys.exit(
        run_reporting("preprocess_and_save.py", lambda: run("preprocess_and_save.py", sys.argv[1:]))
    )
