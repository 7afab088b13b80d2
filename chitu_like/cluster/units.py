"""Figures with a unit, as files spell them: "40 * GB", "10 * gbps", "1 * MilliSec", or a plain number.

A number times a known unit is parsed, never evaluated. Two vocabularies are apart on purpose. Ours says
GB/s; Helix's files say gbps and mean 1e9 BYTES a second, not bits. So gbps is known in Helix's files
only, and nobody can take the one for the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from chitu_like.core.errors import ConfigError

Units: TypeAlias = Mapping[str, float]

BYTES: Units = MappingProxyType({"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12})
RATES: Units = MappingProxyType({f"{unit}/s": value for unit, value in BYTES.items()})
SECONDS: Units = MappingProxyType({"us": 1e-6, "ms": 1e-3, "s": 1.0})

HELIX_BYTES: Units = MappingProxyType({"Byte": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9})
HELIX_RATES: Units = MappingProxyType({"kbps": 1e3, "mbps": 1e6, "gbps": 1e9})
HELIX_SECONDS: Units = MappingProxyType({"MilliSec": 1e-3, "Sec": 1.0})

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*(?:\*\s*([A-Za-z/]+)\s*)?", re.ASCII)
_MAX_CHARS = 100


def parse_quantity(text: str, units: Units, where: str) -> float:
    """The figure that a text means, in bytes, bytes a second or seconds.

    Args:
        text: a number, or a number times one of the units.
        units: name -> what one of it is.
        where: file, section and key, for the message.

    Raises: ConfigError for anything else, and for what no float holds.
    """
    found = _QUANTITY.fullmatch(text) if len(text) <= _MAX_CHARS else None
    unit = found[2] if found else None
    if found is None or not (unit is None or unit in units):
        shown = text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."
        right = "a number"
        if units:
            right += f", or a number times one of {', '.join(units)}, like 1.5 * {list(units)[-1]}"
        raise ConfigError(f"{where}={shown}: give {right}")
    value = _times(float(found[1]), 1.0 if unit is None else units[unit])
    if not math.isfinite(value):
        raise ConfigError(f"{where}={text}: give a finite number")
    return value


def format_quantity(value: float, units: Units) -> float | str:
    """What `parse_quantity` (or a plain yaml number) reads back as the same float, bit for bit.

    Args:
        value: finite or inf.
        units: the largest that makes a short text is taken; else the plain number.
    """
    for unit, size in sorted(units.items(), key=lambda item: -item[1]):
        if size == 1 or not size <= value < math.inf:
            continue
        short = f"{value / size:g}"
        if "e" not in short and _times(float(short), size) == value:
            return f"{short} * {unit}"
    return value


def _times(number: float, unit: float) -> float:
    """Their product, where 3 * 1e-3 is the float nearest to 0.003: dividing by 1e3 rounds once."""
    return number * unit if unit >= 1 else number / round(1 / unit)
