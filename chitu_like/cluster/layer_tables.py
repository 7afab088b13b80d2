"""Measured times of one layer, by tokens in the batch: Helix's tables (arXiv:2406.01566).

A folder holds `prompt_bs2time.csv` and `decode_bs2time.csv` (two columns without a header: tokens,
milliseconds of ONE layer) and `machine.json`, what fits beside so many layers.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import msgspec

from chitu_like.cluster.curve import Curve
from chitu_like.cluster.profile_files import read_record, write_record, write_text
from chitu_like.core.errors import ConfigError

PROMPT_FILE, DECODE_FILE = "prompt_bs2time.csv", "decode_bs2time.csv"
MACHINE_FILE = "machine.json"
BLOCK_TOKENS = 16
"""Tokens of a KV block in these tables, whatever the engine's block_size."""
LONGEST_PROMPT = 2048
"""Tokens; so many times the prompts of a batch are the tokens that tables of prompts reach to."""
MAX_ROWS = 1 << 20


class MachineConstants(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device holds and takes at once; tables by the number of layers it holds.

    Attributes:
        max_num_layers: at most.
        vllm_num_blocks_by_layers: KV blocks of 16 tokens, in each of the layers.
        prompt_max_requests_by_layers: prompts of a batch.
        decode_max_tokens_by_layers: decodes of a batch.
    """

    max_num_layers: int
    vllm_num_blocks_by_layers: dict[int, int]
    prompt_max_requests_by_layers: dict[int, int]
    decode_max_tokens_by_layers: dict[int, int]

    def check(self, where: str) -> None:
        """Every table says something for each number of layers.

        Raises: ConfigError naming table and number.
        """
        if not 1 <= self.max_num_layers <= 10_000:
            raise ConfigError(f"{where}: max_num_layers={self.max_num_layers}: give 1 to 10000")
        for name in msgspec.structs.asdict(self).keys() - {"max_num_layers"}:
            table: dict[int, int] = getattr(self, name)
            for num_layers in range(1, self.max_num_layers + 1):
                if table.get(num_layers, 0) < 1:
                    raise ConfigError(
                        f"{where}: {name}[{num_layers}]={table.get(num_layers)}: give a number above "
                        f"0 for every 1 to max_num_layers={self.max_num_layers}"
                    )


@dataclass(frozen=True, kw_only=True)
class LayerTables:
    """LayerTimes from measured tables.

    Attributes:
        model, device: whose tables these are, for messages.
        prompt, decode: tokens in the batch -> seconds of one layer.
        machine: what fits.
    """

    model: str
    device: str
    prompt: Curve
    decode: Curve
    machine: MachineConstants

    def __post_init__(self) -> None:
        self.machine.check(f"{self.model} on {self.device}")

    @classmethod
    def read(cls, folder: Path, *, model: str, device: str) -> LayerTables:
        """Read the three files of a folder.

        Raises: ConfigError naming file and row or key.
        """
        return cls(
            model=model,
            device=device,
            prompt=read_times(folder / PROMPT_FILE),
            decode=read_times(folder / DECODE_FILE),
            machine=read_record(folder / MACHINE_FILE, MachineConstants),
        )

    def write(self, folder: Path) -> None:
        """Write the files that `read` reads. Raises: ConfigError if they cannot be written."""
        for name, curve in ((PROMPT_FILE, self.prompt), (DECODE_FILE, self.decode)):
            rows = (f"{x:.17g},{seconds * 1e3:.12g}\n" for x, seconds in curve.points)
            write_text(folder / name, "".join(rows))
        write_record(folder / MACHINE_FILE, self.machine)

    @property
    def max_layers(self) -> int:
        """See LayerTimes."""
        return self.machine.max_num_layers

    def prompt_s(self, num_tokens: float) -> float:
        """See LayerTimes."""
        return self._look_up(self.prompt, num_tokens, "prompt")

    def decode_s(self, num_tokens: float) -> float:
        """See LayerTimes."""
        return self._look_up(self.decode, num_tokens, "decode")

    def kv_tokens(self, num_layers: int) -> int:
        """See LayerTimes."""
        blocks = self._of_layers(self.machine.vllm_num_blocks_by_layers, num_layers)
        return BLOCK_TOKENS * blocks

    def max_prompt_requests(self, num_layers: int) -> int:
        """See LayerTimes."""
        return self._of_layers(self.machine.prompt_max_requests_by_layers, num_layers)

    def max_prompt_tokens(self, num_layers: int) -> float:
        """See LayerTimes."""
        return LONGEST_PROMPT * self.max_prompt_requests(num_layers)

    def max_decode_tokens(self, num_layers: int) -> int:
        """See LayerTimes."""
        return self._of_layers(self.machine.decode_max_tokens_by_layers, num_layers)

    def _look_up(self, curve: Curve, num_tokens: float, kind: str) -> float:
        if num_tokens == 0:
            return 0.0
        if not curve.covers(num_tokens):
            raise ConfigError(
                f"{self.model} on {self.device}: no {kind} batch of {num_tokens:g} tokens was "
                f"measured, only {curve.xs[0]:g} to {curve.xs[-1]:g}: measure more, or let batches "
                "be smaller"
            )
        return curve(num_tokens)

    def _of_layers(self, table: dict[int, int], num_layers: int) -> int:
        if num_layers not in table or num_layers > self.max_layers:
            raise ConfigError(
                f"{self.model} on {self.device}: {num_layers} layers do not fit: it holds 1 to "
                f"{self.max_layers}"
            )
        return table[num_layers]


def read_times(path: Path) -> Curve:
    """A csv of tokens and milliseconds as a curve of seconds.

    Raises: ConfigError naming the file, and the row that is wrong.
    """
    xs: list[float] = []
    ys: list[float] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row:
                    continue
                if number > MAX_ROWS:
                    raise ConfigError(f"{path}: more than {MAX_ROWS} rows")
                x, milliseconds = _numbers(path, number, row)
                xs.append(x)
                ys.append(milliseconds / 1e3)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        return Curve(xs, ys)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _numbers(path: Path, number: int, row: list[str]) -> tuple[float, float]:
    try:
        x, milliseconds = map(float, row)
    except ValueError:
        raise ConfigError(
            f"{path}: row {number} is {','.join(row)[:60]!r}: give two numbers, tokens and "
            "milliseconds of a layer"
        ) from None
    return x, milliseconds
