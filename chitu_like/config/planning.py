"""The keys of `chitu-like plan` and `chitu-like simulate`; their file is config/plan.yaml.

What decides in a simulation is the code that serves, so it is told by the keys that serving has:
infer, deploy, router and scheduler are the very same sections. Keys of theirs that only a real
device could feel are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from chitu_like.config.schema import (
    MAX_RANKS,
    MAX_SECONDS,
    MAX_TOKENS,
    DeployConfig,
    InferConfig,
    RouterConfig,
    SchedulerConfig,
)
from chitu_like.config.section import Auto, Section, setting, settings_of, show
from chitu_like.core.errors import ConfigError

Method: TypeAlias = Literal[
    "local_search", "milp", "petals", "swarm", "homogeneous", "distserve", "load"
]
Affinity: TypeAlias = Literal["high", "low"]
Mode: TypeAlias = Literal["offline", "online"]
LayerRouter: TypeAlias = Literal["maxflow", "swarm", "random", "shortest_queue"]

DEFAULT_WORKLOAD = "poisson"
MAX_RATE = 1e6  # requests/s; a simulation of a second of it takes minutes
MAX_REQUESTS = 10_000_000
MAX_PROCESSES = 1024
# Of the sections shared with serving, what a simulated instance is built from.
SIMULATED = (
    "tp_size",
    "pp_size",
    "max_seq_len",
    "max_reqs",
    "block_size",
    "memory_utilization",
    "num_blocks",
    "swap_space_gib",
    "enable_prefix_caching",
    "prefill_chunk_size",
    "schedule_overlap",
)


@dataclass(frozen=True, kw_only=True)
class PlanSection(Section):
    """How a placement is searched."""

    prefix: ClassVar[str] = "plan."

    method: Method = setting(
        "local_search",
        "local_search: simulated annealing over placements of layers, scored by flow and Little's "
        "law; milp: the exact program, solved by HiGHS; petals, swarm, homogeneous: heuristics to "
        "compare with; distserve: parallelism of prefill and decode instances under an SLO; load: "
        "evaluate the placement of plan.load",
    )
    time_limit_s: float = setting(
        60.0,
        "seconds until a placement is there; of local_search's, 20 for each of plan.num_simulated, but "
        "no more than half, are kept for simulating the best few; what they leave unsimulated ranks last",
        low=0.01,
        high=MAX_SECONDS,
    )
    out: str | None = setting(
        None, "file that the placement is written to; null: out/placement.yaml"
    )
    load: str | None = setting(None, "placement file that plan.method=load evaluates")
    seed: int = setting(
        0, "seed of the search: the same seed, the same placement", low=0, high=2**63 - 1
    )
    evaluations: int | None = setting(
        None,
        "local_search: placements looked at; plan.time_limit_s then ends nothing, so that no clock "
        "disturbs the result; null: until plan.time_limit_s",
        low=1,
        high=10**12,
    )
    objective: Literal["served", "flow"] = setting(
        "served", "local_search: what is scored: flow and Little's law, or the flow alone"
    )
    num_simulated: int = setting(
        3,
        "local_search: the best few that are simulated (120 s to warm up, 300 s to measure), so that "
        "the best of them is taken; 0: the score decides",
        low=0,
        high=100,
    )
    input_len: float | None = setting(
        None,
        "layers: prompt tokens of an average request; null: as workload says, or else the profile",
        low=1,
        high=MAX_TOKENS,
    )
    output_len: float | None = setting(
        None,
        "layers: output tokens of an average request; null: as workload says, or else the profile",
        low=1,
        high=MAX_TOKENS,
    )
    partial_inference: bool = setting(
        True,
        "milp: a request may enter a node behind its first layer; false is the smaller program",
    )
    affinity: Affinity = setting(
        "high",
        "distserve: high: any link is fast, each phase is planned by itself; low: prefill and "
        "decode of the same layers share a machine",
    )
    rate: float | None = setting(
        None,
        "distserve: requests/s to serve; null: one instance of each phase",
        low=1e-6,
        high=MAX_RATE,
    )
    max_tp: int = setting(
        8, "distserve: largest tensor parallel degree tried", low=1, high=MAX_RANKS
    )
    max_pp: int = setting(
        4, "distserve: largest pipeline parallel degree tried", low=1, high=MAX_RANKS
    )
    num_requests: int = setting(
        300, "distserve: requests of each simulation", low=10, high=MAX_REQUESTS
    )
    precision: float = setting(
        0.02, "distserve: bisection ends at this relative width", low=1e-4, high=0.5
    )
    processes: int | Auto = setting(
        "auto", "distserve: searches in parallel; auto: one a core", low=1, high=MAX_PROCESSES
    )

    def __post_init__(self) -> None:
        """Raise ConfigError where plan.load and plan.method contradict each other."""
        super().__post_init__()
        if self.method == "load" and self.load is None:
            raise ConfigError("plan.method=load: say which placement, plan.load=FILE")
        if self.method != "load" and self.load is not None:
            raise ConfigError(
                f"plan.load={self.load} has no effect with plan.method={self.method}: add "
                "plan.method=load, or leave it out"
            )
        if (self.input_len is None) != (self.output_len is None):
            raise ConfigError("plan.input_len and plan.output_len belong together: give both")
        if self.method == "distserve" and self.input_len is not None:
            raise ConfigError(
                f"plan.input_len={show(self.input_len)} has no effect with plan.method=distserve: "
                "workload= says how long requests are"
            )


@dataclass(frozen=True, kw_only=True)
class SloSection(Section):
    """What a request is promised."""

    prefix: ClassVar[str] = "slo."

    ttft_s: float = setting(
        0.4, "seconds to the first token of a good request", low=1e-6, high=MAX_SECONDS
    )
    tpot_s: float = setting(
        0.1, "seconds for each further token of a good request", low=1e-6, high=MAX_SECONDS
    )
    attainment: float = setting(0.9, "share of requests that must be good", low=0.01, high=1.0)


@dataclass(frozen=True, kw_only=True)
class SimulateSection(Section):
    """What is simulated, and for how long."""

    prefix: ClassVar[str] = "simulate."

    mode: Mode = setting(
        "online", "online: requests come when they come; offline: as many as the system takes"
    )
    router: LayerRouter = setting(
        "maxflow",
        "placements of layers: how a request's way through the nodes is chosen (instances: "
        "router.policy)",
    )
    warmup_s: float = setting(
        60.0, "simulated seconds before results count", low=0, high=MAX_SECONDS
    )
    duration_s: float = setting(
        600.0, "simulated seconds that results count for", low=0.001, high=MAX_SECONDS
    )
    rate: float | None = setting(
        None, "requests/s; null: as the workload says", low=1e-6, high=MAX_RATE
    )
    seed: int = setting(0, "seed of arrivals, lengths and routing", low=0, high=2**63 - 1)
    device: str | None = setting(
        None, "instances: device of the profile; null: the only one of cluster or profile"
    )
    prefill_replicas: int = setting(
        0,
        "of deploy.replicas, the instances that only prefill; the others then only decode",
        low=0,
        high=MAX_RANKS,
    )
    kv_bytes_per_s: float | None = setting(
        None,
        "prefill and decode apart: at which an instance sends keys and values; null: over the "
        "cluster's links, each device of the instance over its own",
        low=1e3,
        high=1e15,
    )
    swap_bytes_per_s: float = setting(
        25e9,
        "instances: at which a device swaps KV blocks to the host (infer.swap_space_gib)",
        low=1e3,
        high=1e15,
    )
    watch: bool = setting(False, "show the simulated system while it runs")


@dataclass(frozen=True, kw_only=True)
class PlanningConfig(Section):
    """Everything that `chitu-like plan` and `chitu-like simulate` may be told."""

    cluster: str | None = setting(None, "machines and links: a file, or a name in config/clusters/")
    profile: str | None = setting(None, "what steps cost: a folder, or a name in config/profiles/")
    model: str | None = setting(None, "a model of the profile; null: its only one")
    placement: str | None = setting(None, "file of a placement, as `chitu-like plan` writes it")
    workload: str | None = setting(
        None,
        "requests: a name in config/workloads/, a yaml like those, or a trace; null: poisson, and for "
        "plans of layers the mean lengths that the profile says",
    )
    out: str | None = setting(None, "folder for result.json, tables and plots; null: print only")
    plan: PlanSection = PlanSection()
    slo: SloSection = SloSection()
    simulate: SimulateSection = SimulateSection()
    infer: InferConfig = field(default_factory=InferConfig)
    deploy: DeployConfig = field(default_factory=DeployConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for keys that no simulation can feel, or that contradict each other."""
        super().__post_init__()
        for item in settings_of(InferConfig):
            value = getattr(self.infer, item.name)
            if item.name not in SIMULATED and value != item.default:
                raise ConfigError(
                    f"infer.{item.name}={show(value)} has no effect on plan and simulate: leave it "
                    "out"
                )
        replicas, prefill = self.deploy.replicas, self.simulate.prefill_replicas
        if prefill and prefill >= replicas:
            raise ConfigError(
                f"simulate.prefill_replicas={prefill} of deploy.replicas={replicas} leave no "
                "instance to decode: use fewer"
            )
