"""What `chitu-like plan` and `chitu-like simulate` read before they begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from chitu_like.cluster.cluster_file import find_cluster, read_cluster
from chitu_like.cluster.cost_model import LayerTimes, ModelFacts
from chitu_like.cluster.profile import Profile, find_profile
from chitu_like.cluster.topology import Cluster, Link
from chitu_like.config.architecture import read_model_spec
from chitu_like.config.files import model_entries, values_dir
from chitu_like.config.load import load_config
from chitu_like.config.planning import PlanningConfig
from chitu_like.core.errors import ConfigError
from chitu_like.planner.throughput import NodeThroughput, TypicalLoad, node_throughput
from chitu_like.simulator.workload_file import load_workload


@dataclass(frozen=True, kw_only=True)
class LayerProblem:
    """A model to be placed on a cluster, layer by layer.

    Attributes:
        cluster: nodes and links.
        profile: what layers cost.
        model: what is placed.
        load: what is served.
    """

    cluster: Cluster
    profile: Profile
    model: ModelFacts
    load: TypicalLoad

    @cached_property
    def layer_times(self) -> Mapping[str, LayerTimes]:
        """By device of the cluster."""
        devices = sorted({node.device for node in self.cluster.nodes})
        return self.profile.layer_times_of(self.model.name, devices)

    @cached_property
    def throughput(self) -> NodeThroughput:
        """Of the nodes, with this load."""
        return node_throughput(self.cluster, self.model, self.layer_times, self.load)


def read_problem(config: PlanningConfig) -> LayerProblem:
    """Read cluster, profile and model.

    Raises: ConfigError for a key that is needed and not given, or a file that is broken.
    """
    cluster = needed_cluster(config)
    profile, model = read_profile(config)
    return LayerProblem(
        cluster=cluster,
        profile=profile,
        model=profile.model(model),
        load=_load(config, profile, model),
    )


def needed_cluster(config: PlanningConfig) -> Cluster:
    """The cluster that is named. Raises: ConfigError where none is."""
    if config.cluster is None:
        raise ConfigError(
            "cluster is needed: name a file, or one of config/clusters/ (cluster=...)"
        )
    return read_cluster(find_cluster(config.cluster))


def read_profile(config: PlanningConfig) -> tuple[Profile, str]:
    """The profile, and the name of the model in it.

    A model of config/models/ that the profile does not describe is added to it: its roofline needs
    the shape alone.

    Raises: ConfigError where a choice is needed, with what there is.
    """
    if config.profile is None:
        raise ConfigError(
            "profile is needed: name a folder, or one of config/profiles/, e.g. profile=roofline"
        )
    profile = find_profile(config.profile)
    name = config.model
    if name is None:
        if len(profile.models) != 1:
            known = ", ".join(sorted(profile.models)) or "none"
            raise ConfigError(f"model is needed: {profile.name} has {known} (model=...)")
        return profile, next(iter(profile.models))
    if name not in profile.models and name in model_entries((values_dir(),)):
        entry = load_config([f"models={name}", "models.load_format=dummy"], environ={})
        profile = profile.with_model(name, read_model_spec(entry.models))
    profile.model(name)
    return profile, name


def pick_device(config: PlanningConfig, profile: Profile, model: str) -> str:
    """The device that instances run on.

    Raises: ConfigError where a choice is needed, with what there is.
    """
    if config.simulate.device is not None:
        return config.simulate.device
    if config.cluster is not None:
        found = sorted({node.device for node in needed_cluster(config).nodes})
    else:
        found = profile.devices_of(model)
    if len(found) != 1:
        known = ", ".join(found) or "none"
        raise ConfigError(f"which device do instances run on? simulate.device= one of {known}")
    return found[0]


def link_within(cluster: Cluster, device: str) -> Link:
    """The fastest link between two devices of one machine, which is a region of the cluster.

    Raises: ConfigError where there is none.
    """
    links = _links_between(cluster, device, same_machine=True)
    return max(links, key=lambda link: link.bandwidth)


def link_anywhere(cluster: Cluster, device: str) -> Link:
    """The slowest link between two devices: instances may stand wherever there is room.

    Raises: ConfigError where there is none.
    """
    links = _links_between(cluster, device, same_machine=False)
    return min(links, key=lambda link: link.bandwidth)


def _links_between(cluster: Cluster, device: str, *, same_machine: bool) -> list[Link]:
    region_of = {
        node.name: node.region for node in cluster.nodes if node.device.lower() == device.lower()
    }
    found = [
        link
        for link in cluster.links
        if link.source in region_of
        and link.target in region_of
        and (not same_machine or region_of[link.source] == region_of[link.target])
    ]
    if not found:
        where = " of one region" if same_machine else ""
        raise ConfigError(
            f"the cluster has no link between two {device}{where}: keys and values could not get "
            "from prefill to decode; add one"
        )
    return found


def results_folder(config: PlanningConfig) -> Path | None:
    """The folder of `out=`, made.

    Raises: ConfigError if it cannot be.
    """
    if config.out is None:
        return None
    folder = Path(config.out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={config.out} cannot be written: {error.strerror}") from None
    return folder


def _load(config: PlanningConfig, profile: Profile, model: str) -> TypicalLoad:
    figures = profile.planning(model)
    mean_input, mean_output = _mean_lengths(config) or (figures.mean_input, figures.mean_output)
    return TypicalLoad(
        mean_input=mean_input,
        mean_output=mean_output,
        typical_layers=figures.typical_layers,
        typical_layers_small=figures.typical_layers_small,
        start_speed=figures.start_speed,
    )


def _mean_lengths(config: PlanningConfig) -> tuple[float, float] | None:
    """Tokens of an average request and its answer; None where nobody gave them."""
    given_in, given_out = config.plan.input_len, config.plan.output_len
    if given_in is not None and given_out is not None:
        return given_in, given_out
    if config.workload is None:
        return None
    workload = load_workload(config.workload)
    return workload.mean_input_len, workload.mean_output_len
