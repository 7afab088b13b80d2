"""`chitu-like import-distserve`: fits, capacities and workloads of DistServe as files of ours."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from chitu_like.cli.command_line import Parser
from chitu_like.cluster.profile import MODELS_FILE, Profile
from chitu_like.cluster.profile_files import read_record, write_text
from chitu_like.cluster.profile_records import Capacity, ModelRecord, StepsRecord
from chitu_like.cluster.roofline import model_facts
from chitu_like.cluster.step_fit import DistServeFit
from chitu_like.cluster.units import BYTES, parse_quantity
from chitu_like.config.load import load_config
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError
from chitu_like.model_files import read_model_files

COLUMNS = ["model", "tp", "pp", "max_num_tokens"]
MAX_TOKENS = 10_000_000  # of a request, as in traces


class WorkloadRow(msgspec.Struct, frozen=True, kw_only=True):
    """A request; other keys are not looked at."""

    start_time: float
    prompt_len: int
    output_len: int


def run(prog: str, arguments: Sequence[str]) -> int:
    """Read everything, then write OUT/profile/ and OUT/workload.csv.

    Raises: ConfigError naming file, and key or row.
    """
    parser = _parser(prog)
    typed = parser.parse_args(arguments)
    out: Path = typed.out
    if typed.coefficients is None and typed.workload is None:
        parser.error("nothing to import: give --coefficients, --workload or both")
    if typed.capacities is not None and typed.coefficients is None:
        parser.error("--capacities needs --coefficients")
    profile = None
    if typed.coefficients is not None:
        memory_bytes = parse_quantity(typed.memory, BYTES, "--memory") if typed.memory else 0.0
        steps = _read_steps(typed.coefficients, typed.capacities, memory_bytes)
        records = _read_records(typed.facts, list(steps))
        keyed = {(model, typed.device.lower()): record for model, record in steps.items()}
        profile = Profile(models=records, steps=keyed)
    rows = _read_workload(typed.workload) if typed.workload is not None else None

    if profile is not None:
        profile.write(out / "profile")
        print(f"{out / 'profile'}: {', '.join(profile.models)} on {typed.device}")
    if rows is not None:
        write_text(out / "workload.csv", _as_csv(rows))
        print(f"{out / 'workload.csv'}: {len(rows)} requests")
    return DONE


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Read files of DistServe's simulator and write what `chitu-like plan` and `simulate` take: "
        "OUT/profile/ and OUT/workload.csv. A model's name is the part behind the last slash; its "
        f"layers and sizes come from config/models/, or from a {MODELS_FILE} of yours.",
        [
            f"{prog} --coefficients profiler-a100-80g.json --capacities max_num_tokens.csv \\\n"
            "      --device A100-80G --out imported",
            f"{prog} --workload sharegpt.json --out imported",
        ],
    )
    parser.add_argument(
        "--coefficients", type=Path, metavar="JSON", help="model -> tp -> coefficients, in ms"
    )
    parser.add_argument(
        "--capacities", type=Path, metavar="CSV", help=f"columns {', '.join(COLUMNS)}"
    )
    parser.add_argument(
        "--workload", type=Path, metavar="JSON", help="a list of start_time, prompt_len, output_len"
    )
    parser.add_argument(
        "--device", default="A100-80G", help="what they were measured on (default: %(default)s)"
    )
    parser.add_argument(
        "--memory",
        metavar="BYTES",
        help='of that device, e.g. "80 * GB", where no capacity is given',
    )
    parser.add_argument(
        "--facts", type=Path, metavar="JSON", help=f"a {MODELS_FILE} with models that are not known"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder to write")
    return parser


def _read_steps(
    coefficients: Path, capacities: Path | None, memory_bytes: float
) -> dict[str, StepsRecord]:
    """Model -> what its steps cost, and what fits."""
    found = read_record(coefficients, dict[str, dict[int, DistServeFit]])
    fits: dict[str, dict[int, DistServeFit]] = {}
    for name, by_tp in found.items():
        if _plain(name) in fits:
            raise ConfigError(f"{coefficients}: {name}: another model is called {_plain(name)} too")
        if not by_tp or min(by_tp) < 1:
            raise ConfigError(f"{coefficients}: {name}: give coefficients of tp 1 or more")
        fits[_plain(name)] = by_tp
    if not fits:
        raise ConfigError(f"{coefficients}: holds no model")
    rooms = _read_capacities(capacities) if capacities is not None else {}
    return {
        model: StepsRecord(
            distserve=by_tp, capacity=rooms.get(model, []), memory_bytes=memory_bytes
        )
        for model, by_tp in fits.items()
    }


def _read_capacities(path: Path) -> dict[str, list[Capacity]]:
    """Model -> rows; those of models without coefficients are of no use and left out later."""
    found: dict[str, list[Capacity]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if list(reader.fieldnames or []) != COLUMNS:
                raise ConfigError(f"{path}: the first row must be {','.join(COLUMNS)}")
            for row in reader:
                where = f"{path}: row {reader.line_num}"
                tp, pp, tokens = (_count(row[key], f"{where}: {key}") for key in COLUMNS[1:])
                found.setdefault(_plain(row["model"]), []).append(
                    Capacity(tp=tp, pp=pp, max_num_tokens=tokens)
                )
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: no csv: {error}") from None
    return found


def _count(text: str | None, where: str) -> int:
    if text is None or not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text)):
        raise ConfigError(f"{where}={text}: give a whole number above 0")
    return int(text)


def _read_records(facts: Path | None, models: Sequence[str]) -> dict[str, ModelRecord]:
    """Layers and sizes of each model: from the file, else from config/models/."""
    known = read_record(facts, dict[str, ModelRecord]) if facts is not None else {}
    records: dict[str, ModelRecord] = {}
    for model in models:
        if model in known:
            records[model] = known[model]
            continue
        try:
            config = load_config([f"models={model}", "models.load_format=dummy", "dtype=float16"])
        except ConfigError as error:
            raise ConfigError(
                f"nothing is known of model {model}: give a {MODELS_FILE} (--facts); {error}"
            ) from None
        records[model] = ModelRecord.of(model_facts(model, read_model_files(config).spec))
    return records


def _read_workload(path: Path) -> list[WorkloadRow]:
    rows = read_record(path, list[WorkloadRow])
    if not rows:
        raise ConfigError(f"{path}: holds no request")
    for index, row in enumerate(rows):
        if not 0 <= row.start_time < math.inf:
            raise ConfigError(
                f"{path}: [{index}] start_time={row.start_time}: give seconds, 0 or more"
            )
        for key, value in (("prompt_len", row.prompt_len), ("output_len", row.output_len)):
            if not 1 <= value <= MAX_TOKENS:
                raise ConfigError(f"{path}: [{index}] {key}={value}: give 1 to {MAX_TOKENS} tokens")
    return rows


def _as_csv(rows: Sequence[WorkloadRow]) -> str:
    """In the columns that traces are read by; times in seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arrival_s", "input_tokens", "output_tokens"])
    writer.writerows((row.start_time, row.prompt_len, row.output_len) for row in rows)
    return text.getvalue()


def _plain(name: str) -> str:
    """facebook/opt-13b -> opt-13b: a profile keeps a folder of that name."""
    return name.rpartition("/")[2]
