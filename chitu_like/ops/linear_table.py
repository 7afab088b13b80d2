"""Which linear layers the skinny kernel computes faster than the vendor's library: measurements.

A table is a JSON file of one device, shipped with the package and written by
benchmarks/tune_linear.py. A device without a table, and a shape without a row, take the library.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from chitu_like.core.errors import ConfigError
from chitu_like.ops.linear_tiles import MAX_TOKENS, LinearWork, SkinnyTile, token_bucket

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "linear"

Key = tuple[LinearWork, int, int, str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """What was measured of one shape.

    Attributes:
        work: what was computed.
        out_features, in_features: of the weight.
        dtype: of all tensors, as torch names it, without "torch.".
        num_tokens: one of linear_tiles.BUCKETS.
        tile: the fastest that was found.
        tile_us: microseconds it took.
        other_us: microseconds of the same work without the kernel. For plain LINEAR that is the
            library's product; else the ordinary kernels, with the faster of both products. An ADD
            counts the product alone, and a norm in front the addition too, as in a decoder layer.
    """

    work: LinearWork
    out_features: int
    in_features: int
    dtype: str
    num_tokens: int
    tile: SkinnyTile
    tile_us: float
    other_us: float

    @property
    def key(self) -> Key:
        """What a table finds it by."""
        return self.work, self.out_features, self.in_features, self.dtype, self.num_tokens


class LinearTable:
    """The rows of one device.

    Args:
        rows: of any shapes; of the same key the last counts.
    """

    def __init__(self, rows: Iterable[TableRow] = ()) -> None:
        self._rows = {row.key: row for row in rows}

    def rows(self) -> Iterator[TableRow]:
        """Every row."""
        yield from self._rows.values()

    def row(self, work: LinearWork, weight: Tensor, num_tokens: int) -> TableRow | None:
        """What is known of `work` on a weight [out_features, in_features]; None for nothing."""
        if not 0 < num_tokens <= MAX_TOKENS or weight.dim() != 2:
            return None
        out_features, in_features = weight.shape
        dtype = str(weight.dtype).removeprefix("torch.")
        return self._rows.get((work, out_features, in_features, dtype, token_bucket(num_tokens)))

    def faster_tile(self, work: LinearWork, weight: Tensor, num_tokens: int) -> SkinnyTile | None:
        """The tile that is faster than doing without the kernel, or None."""
        row = self.row(work, weight, num_tokens)
        return row.tile if row is not None and row.tile_us < row.other_us else None

    def merged(self, rows: Iterable[TableRow]) -> LinearTable:
        """A table of these rows and `rows`, which count where both have one."""
        return LinearTable([*self._rows.values(), *rows])

    def to_json(self, about: dict[str, str]) -> str:
        """The file, a line a row.

        Args:
            about: where and with what it was measured.
        """
        lines = [json.dumps(_to_dict(row)) for row in sorted(self._rows.values(), key=_order)]
        rows = ",\n".join(f"    {line}" for line in lines)
        return f'{{\n  "about": {json.dumps(about)},\n  "rows": [\n{rows}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str, source: str) -> LinearTable:
        """Read what `to_json` wrote.

        Raises: ConfigError naming `source`.
        """
        try:
            rows = json.loads(text)["rows"]
            return cls(_from_dict(row) for row in rows)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{source}: no table of linear layers ({error!r}): measure it again with "
                "benchmarks/tune_linear.py, or delete it"
            ) from error


def table_file(device_name: str) -> Path:
    """Where the table of a device is kept."""
    return FOLDER / (re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_") + ".json")


def table_for(device: torch.device) -> LinearTable:
    """The table of a device; empty where there is none, as for every CPU, and without Triton.

    Raises: ConfigError for a damaged file.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return LinearTable()
    return _read(table_file(torch.cuda.get_device_name(device)))


@functools.cache
def _read(file: Path) -> LinearTable:
    if not file.is_file():
        return LinearTable()
    return LinearTable.from_json(file.read_text(encoding="utf-8"), str(file))


def _order(row: TableRow) -> tuple[str, int, int, str, int]:
    return row.dtype, row.in_features, row.out_features, row.work.name, row.num_tokens


def _to_dict(row: TableRow) -> dict[str, object]:
    return {**asdict(row), "work": row.work.name, "tile": asdict(row.tile)}


def _from_dict(values: dict[str, object]) -> TableRow:
    work, tile = values["work"], values["tile"]
    if not isinstance(work, str) or not isinstance(tile, dict):
        raise TypeError(f"work is {work!r}, tile is {tile!r}")
    known = {field.name: values[field.name] for field in fields(TableRow)}
    if missing := values.keys() - known.keys():
        raise ValueError(f"unknown {', '.join(sorted(missing))}")
    known |= {"work": LinearWork.from_name(work), "tile": SkinnyTile(**tile)}
    return TableRow(**known)  # type: ignore[arg-type]  # checked by name
