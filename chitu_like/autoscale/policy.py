"""How many instances a load needs: a band for each role, and where in it to go (BlitzScale, OSDI'25)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chitu_like.autoscale.monitor import Signals
from chitu_like.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Band:
    """How much of something one instance should have: between `low` and `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ConfigError(f"a band from {self.low} to {self.high}: give 0 < low <= high")

    def needed(self, amount: float) -> tuple[int, int]:
        """Fewest and most instances for an amount, at least one."""
        return max(1, math.ceil(amount / self.high)), max(1, math.ceil(amount / self.low))


@dataclass(frozen=True, kw_only=True)
class ScalingPolicy:
    """What an instance can do, and how full it should be.

    Attributes:
        prefill_tokens_per_s: prompt tokens that a prefill instance computes (v_p).
        prefill_wait_s: how long the prompts that wait may keep it busy.
        decode_kv_tokens: tokens whose keys and values a decode instance holds (v_d).
        decode_fill: share of them in use.
        max_prefill, max_decode: instances.
    """

    prefill_tokens_per_s: float
    decode_kv_tokens: float
    prefill_wait_s: Band = Band(low=0.2, high=1.0)
    decode_fill: Band = Band(low=0.4, high=0.8)
    max_prefill: int = 1 << 20
    max_decode: int = 1 << 20

    def __post_init__(self) -> None:
        for name in ("prefill_tokens_per_s", "decode_kv_tokens", "max_prefill", "max_decode"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"{name}={value}: give a finite number above 0")

    def num_prefill(self, current: int, newest: Signals, peak: Signals) -> int:
        """Prefill instances to have, from those there are (loading ones included)."""
        band = _times(self.prefill_wait_s, self.prefill_tokens_per_s)
        fewest, _ = band.needed(newest.waiting_prefill_tokens)
        _, most = band.needed(peak.waiting_prefill_tokens)
        return min(self.max_prefill, towards(current, fewest, most))

    def num_decode(self, current: int, newest: Signals, peak: Signals) -> int:
        """Decode instances to have; what is on its way will be held there too."""
        band = _times(self.decode_fill, self.decode_kv_tokens)
        fewest, _ = band.needed(newest.used_kv_tokens + newest.migrating_tokens)
        _, most = band.needed(peak.used_kv_tokens + peak.migrating_tokens)
        return min(self.max_decode, towards(current, fewest, most))


def towards(current: int, fewest: int, most: int) -> int:
    """Below the band up to its middle at once; above it one down a tick; never below one."""
    if current < fewest:
        return (fewest + max(fewest, most) + 1) // 2
    return max(1, current - 1) if current > most else current


def _times(band: Band, factor: float) -> Band:
    return Band(low=band.low * factor, high=band.high * factor)
