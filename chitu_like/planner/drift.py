"""Is a plan still the plan for what comes in? Rate and lengths observed, against those planned for.

A pure decision with hysteresis: a figure has to leave by a lot to count, counts until it is nearly back,
and has to stay away for a while. So neither noise nor one burst moves layers.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from chitu_like.core.errors import ConfigError

Figure = Literal["rate_per_s", "prompt_tokens", "output_tokens"]
_WORDS: dict[Figure, str] = {
    "rate_per_s": "requests a second",
    "prompt_tokens": "prompt tokens a request",
    "output_tokens": "output tokens a request",
}


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is asked of a service.

    Attributes:
        rate_per_s: requests.
        prompt_tokens, output_tokens: of the average request; 0 where none was seen.
        window_s: that this was seen in; inf for figures that are given.
    """

    rate_per_s: float
    prompt_tokens: float
    output_tokens: float
    window_s: float = math.inf

    def figure(self, name: Figure) -> float:
        """One of the three."""
        return {
            "rate_per_s": self.rate_per_s,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
        }[name]


@dataclass(frozen=True, kw_only=True)
class DriftLimits:
    """Which difference is worth a new plan. Factors work both ways: 1.5 is half more or a third less.

    Attributes:
        leave: factor from which on a figure has drifted.
        back: factor below which it no longer has; less than `leave`.
        hold_s: that a drift has to last.
        rest_s: between a plan and the next.
        min_requests: fewer say nothing. The average of a hundred is off by a tenth where lengths vary
            as much as they measure.

    Raises: ConfigError for limits that make no sense.
    """

    leave: float = 1.5
    back: float = 1.25
    hold_s: float = 300.0
    rest_s: float = 1800.0
    min_requests: int = 100

    def __post_init__(self) -> None:
        if not 1 < self.back < self.leave < math.inf:
            raise ConfigError(
                f"drift back={self.back}, leave={self.leave}: give 1 < back < leave, both finite"
            )
        for key, value in {"hold_s": self.hold_s, "rest_s": self.rest_s}.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"drift {key}={value}: give seconds, at least 0")
        if self.min_requests < 1:
            raise ConfigError(f"drift min_requests={self.min_requests}: give at least 1")


@dataclass(frozen=True, kw_only=True)
class DriftState:
    """What one look leaves to the next.

    Attributes:
        planned_s: when the plan was made.
        away_since_s: figure -> when it left; figures near the plan are absent.
    """

    planned_s: float
    away_since_s: dict[Figure, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DriftVerdict:
    """What to do.

    Attributes:
        replan: make a plan for what is seen, and go on with DriftState(planned_s=now).
        why: a sentence for the log, also where nothing is to be done.
        state: for the next look at the same plan.
    """

    replan: bool
    why: str
    state: DriftState


def look_for_drift(
    planned: Demand, seen: Demand, state: DriftState, now_s: float, limits: DriftLimits
) -> DriftVerdict:
    """Compare what is seen with what was planned for, and say whether to plan anew.

    Args:
        planned: all three figures above 0.
        seen: in the last while.
        state: left by the last look.
        now_s: by the clock of the state.
        limits: what is worth it.
    """
    away = {
        name: state.away_since_s.get(name, now_s)
        for name in _WORDS
        if _says_enough(name, planned, seen, limits)
        and _distance(planned.figure(name), seen.figure(name))
        >= (limits.back if name in state.away_since_s else limits.leave)
    }
    state = DriftState(planned_s=state.planned_s, away_since_s=away)
    if not away:
        return DriftVerdict(replan=False, why="demand is as planned", state=state)
    why = "; ".join(
        f"{seen.figure(name):.4g} {_WORDS[name]} instead of {planned.figure(name):.4g} for "
        f"{now_s - since_s:.0f} s"
        for name, since_s in away.items()
    )
    age_s = now_s - state.planned_s
    if now_s - min(away.values()) < limits.hold_s:
        return DriftVerdict(replan=False, why=f"{why}: not yet {limits.hold_s:g} s", state=state)
    if age_s < limits.rest_s:
        why = f"{why}: the plan is {age_s:.0f} s old and rests until {limits.rest_s:g} s"
        return DriftVerdict(replan=False, why=why, state=state)
    return DriftVerdict(replan=True, why=why, state=state)


class DemandWindow:
    """The demand of the last while.

    Arrivals make the rate, not requests that are done: an overloaded service finishes what it can,
    whatever comes.

    Args:
        length_s: how far it looks back.
        now_s: when it begins to look.
    """

    def __init__(self, length_s: float, now_s: float) -> None:
        self._length_s, self._start_s = length_s, now_s
        self._prompts: deque[tuple[float, int]] = deque()
        self._outputs: deque[tuple[float, int]] = deque()

    def arrived(self, now_s: float, prompt_tokens: int) -> None:
        """A request came."""
        self._prompts.append((now_s, prompt_tokens))
        self._forget(self._prompts, now_s)

    def finished(self, now_s: float, output_tokens: int) -> None:
        """A request is done, and how long its answer became is known."""
        self._outputs.append((now_s, output_tokens))
        self._forget(self._outputs, now_s)

    def demand(self, now_s: float) -> Demand:
        """As seen from now."""
        window_s = min(self._length_s, now_s - self._start_s)
        for events in (self._prompts, self._outputs):
            self._forget(events, now_s)
        return Demand(
            rate_per_s=len(self._prompts) / window_s if window_s > 0 else 0.0,
            prompt_tokens=_mean(self._prompts),
            output_tokens=_mean(self._outputs),
            window_s=window_s,
        )

    def _forget(self, events: deque[tuple[float, int]], now_s: float) -> None:
        while events and events[0][0] <= now_s - self._length_s:
            events.popleft()


def _says_enough(name: Figure, planned: Demand, seen: Demand, limits: DriftLimits) -> bool:
    """Whether enough requests came, or, for the rate, should have come."""
    if name == "rate_per_s":
        return max(seen.rate_per_s, planned.rate_per_s) * seen.window_s >= limits.min_requests
    return seen.figure(name) > 0 and seen.rate_per_s * seen.window_s >= limits.min_requests


def _distance(planned: float, seen: float) -> float:
    """The factor between two figures, at least 1."""
    return max(seen / planned, planned / seen if seen > 0 else math.inf)


def _mean(events: deque[tuple[float, int]]) -> float:
    return sum(tokens for _, tokens in events) / len(events) if events else 0.0
