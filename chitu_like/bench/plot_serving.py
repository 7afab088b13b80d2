"""Several servers' sweeps (`benchmark_serving.py --rates ... --json FILE`) in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chitu_like.bench.serving_report import check_plotting
from chitu_like.bench.serving_sweep import Curve, plot_curves
from chitu_like.cli.command_line import Parser
from chitu_like.core.ending import DONE


def run(prog: str, arguments: Sequence[str]) -> int:
    """Draw them."""
    parser = Parser(
        prog,
        "Draw TTFT, TPOT and goodput over the offered rate, one colour a server.",
        [f"{prog} serving.png chitu_like=ours.json vllm=theirs.json"],
    )
    parser.add_argument("out", type=Path, metavar="PICTURE", help="written; .png, .svg or .pdf")
    parser.add_argument("sweeps", nargs="+", metavar="[NAME=]FILE", help="written by --json")
    options = parser.parse_args(arguments)
    check_plotting()
    curves = []
    for word in options.sweeps:
        name, _, path = word.rpartition("=")
        curves.append(Curve.read(name or Path(path).stem, Path(path)))
    plot_curves(options.out, curves)
    return DONE
