"""The options of the load generator; Chitu's own are among them."""

from __future__ import annotations

from pathlib import Path

from chitu_like.cli.command_line import Parser, count, positive_float, positive_floats, positive_int
from chitu_like.config.secrets import API_KEYS_VARIABLE
from chitu_like.simulator.arrivals import KINDS


def serving_parser(prog: str) -> Parser:
    """Everything that can be said on the command line."""
    parser = Parser(
        prog,
        "Put load on an OpenAI-compatible server and measure it. Prompts are random token ids of "
        "exact lengths, answers have exact lengths (ignore_eos). Times begin when a request is "
        "sent, its connection included.",
        [
            f"{prog} --num-requests 64 --arrival poisson --rate 4 --input-len 256 --output-len 64",
            f"{prog} --arrival trace --trace azure.csv --rate 2 --duration 60 --slo-ttft 500 "
            "--slo-tpot 50",
            f"{prog} --rates 1,2,4,8 --duration 30 --lengths azure.csv --max-request-len 4096 "
            "--slo-ttft 1000 --slo-tpot 50 --json sweep.json",
            f"{prog} --iterations 10 --batch-size 8 --seq-len 128 --warmup 2",
        ],
    )
    _add_server(parser)
    _add_arrivals(parser)
    _add_lengths(parser)
    _add_results(parser)
    return parser


def _add_server(parser: Parser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--base-url",
        default="http://127.0.0.1:21002",
        metavar="URL",
        help="default: http://127.0.0.1:21002",
    )
    group.add_argument("--model", help="as the server calls it (default: the first it lists)")
    group.add_argument("--api-key", help=f"bearer key (default: ${API_KEYS_VARIABLE}, if set)")
    group.add_argument(
        "--endpoint",
        choices=("completions", "chat"),
        default="completions",
        help="chat sends so many words instead of token ids: input lengths are then about right",
    )
    group.add_argument(
        "--timeout", type=positive_float, default=600.0, metavar="S", help="of one request"
    )


def _add_arrivals(parser: Parser) -> None:
    group = parser.add_argument_group("arrivals")
    group.add_argument(
        "--arrival",
        choices=(*KINDS, "trace"),
        help="default: burst, which without --rate is all at once",
    )
    group.add_argument("--rate", type=positive_float, metavar="R", help="requests/s on average")
    group.add_argument(
        "--rates",
        type=positive_floats,
        metavar="R,...",
        help="one load after the other, until most requests miss the SLO; a row each",
    )
    group.add_argument(
        "--burst-size", type=positive_int, default=1, metavar="N", help="requests of a burst"
    )
    group.add_argument(
        "--cv",
        type=positive_float,
        default=1.0,
        metavar="C",
        help="with gamma: deviation of the gaps over their mean; more than 1 comes in clumps",
    )
    group.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="Azure's CSV, Mooncake's JSON lines, or a CSV of time, input, output; --rate "
        "stretches it",
    )
    group.add_argument(
        "--num-requests", type=positive_int, metavar="N", help="default: 100 without --duration"
    )
    group.add_argument("--duration", type=positive_float, metavar="S", help="of the arrivals")
    group.add_argument(
        "--max-concurrency", type=positive_int, metavar="N", help="requests on their way at most"
    )
    group.add_argument(
        "--iterations",
        type=positive_int,
        metavar="N",
        help="send so many rounds instead, each when the one before is answered",
    )
    group.add_argument(
        "--batch-size", type=positive_int, default=1, metavar="B", help="requests of a round"
    )
    group.add_argument(
        "--warmup",
        type=count,
        default=1,
        metavar="N",
        help="requests before, one after the other, not measured (default: 1)",
    )


def _add_lengths(parser: Parser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument("--input-len", type=positive_int, default=128, metavar="N", help="tokens")
    group.add_argument(
        "--output-len",
        "--seq-len",
        type=positive_int,
        default=128,
        metavar="N",
        dest="output_len",
        help="tokens of an answer",
    )
    group.add_argument(
        "--lengths",
        type=Path,
        metavar="FILE",
        help="draw input and output lengths from a CSV or a trace",
    )
    group.add_argument(
        "--max-request-len",
        type=positive_int,
        metavar="N",
        help="leave requests of the file or trace out that are longer, input and output together",
    )
    group.add_argument(
        "--vocab-size",
        type=positive_int,
        default=1000,
        metavar="N",
        help="token ids of prompts are below (default: 1000, which every model has)",
    )
    group.add_argument(
        "--stop-at-eos", action="store_true", help="do not ask the server to ignore end-of-text"
    )
    group.add_argument("--temperature", type=float, default=0.0, metavar="T")
    group.add_argument("--seed", type=int, default=0, help="of arrivals, lengths and prompts")


def _add_results(parser: Parser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument(
        "--slo-ttft", type=positive_float, metavar="MS", help="first token within, for goodput"
    )
    group.add_argument(
        "--slo-tpot", type=positive_float, metavar="MS", help="each later token within"
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="summary and every request")
    group.add_argument("--csv", type=Path, metavar="FILE", help="every request")
    group.add_argument("--plot", type=Path, metavar="FILE", help="a picture (extra: plot)")
