"""The control code on a virtual clock: what a service would do, before there is one.

`from chitu_like.simulator import simulate, InstanceShape` and the other public names cost nothing until
they are asked for: workloads are read by programs that simulate nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chitu_like.simulator.arrivals import arrival_times, counted_arrivals
    from chitu_like.simulator.clock import VirtualClock
    from chitu_like.simulator.executor import SimulatedExecutor
    from chitu_like.simulator.instance import InstanceShape, SimulatedInstance
    from chitu_like.simulator.layer_service import simulate_layers
    from chitu_like.simulator.recorder import FinishedRequest, Recorder
    from chitu_like.simulator.request_log import RequestLog
    from chitu_like.simulator.results import Results, Slo
    from chitu_like.simulator.service import Failure, SimulatedService, feed, simulate
    from chitu_like.simulator.traces import read_counts, read_lengths, read_trace
    from chitu_like.simulator.workload import PlannedRequest, at_rate, plan_requests, windowed

__all__ = [
    "Failure",
    "FinishedRequest",
    "InstanceShape",
    "PlannedRequest",
    "Recorder",
    "RequestLog",
    "Results",
    "SimulatedExecutor",
    "SimulatedInstance",
    "SimulatedService",
    "Slo",
    "VirtualClock",
    "arrival_times",
    "at_rate",
    "counted_arrivals",
    "feed",
    "plan_requests",
    "read_counts",
    "read_lengths",
    "read_trace",
    "simulate",
    "simulate_layers",
    "windowed",
]
_MODULES = (
    "arrivals",
    "clock",
    "executor",
    "instance",
    "layer_service",
    "recorder",
    "request_log",
    "results",
    "service",
    "traces",
    "workload",
)


def __getattr__(name: str) -> object:
    """Import a public name at its first use (PEP 562)."""
    if name in __all__:
        for module in _MODULES:
            found = import_module(f"{__name__}.{module}")
            if getattr(found, name, None) is not None:
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name the lazy attributes too, for completion in a shell."""
    return sorted({*globals(), *__all__})
