"""`chitu-like import-helix`: clusters, solutions and profiles of Helix as files of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from chitu_like.cli.command_line import Parser
from chitu_like.cli.helix_models import HELIX_MODELS
from chitu_like.cluster.cluster_file import write_cluster
from chitu_like.cluster.helix_files import (
    OFFSET,
    Solution,
    is_simulator_cluster,
    read_helix_cluster,
    read_simulator_cluster,
    read_solution,
)
from chitu_like.cluster.helix_machines import read_machines
from chitu_like.cluster.layer_placement_file import write_layer_placement
from chitu_like.cluster.layer_tables import (
    DECODE_FILE,
    PROMPT_FILE,
    LayerTables,
    MachineConstants,
    read_times,
)
from chitu_like.cluster.profile import MODELS_FILE, Profile
from chitu_like.cluster.profile_files import read_record
from chitu_like.cluster.profile_records import ModelRecord
from chitu_like.cluster.topology import Cluster
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _Paths:
    """What was typed."""

    cluster: Path
    machines: Path | None
    solution: Path | None
    profiles: Path | None
    constants: Path | None
    facts: Path | None
    model: str | None
    out: Path


def run(prog: str, arguments: Sequence[str]) -> int:
    """Read everything, then write OUT/cluster.yaml, OUT/placement.yaml and OUT/profile/.

    Raises: ConfigError naming file, section and key.
    """
    paths = _parse(prog, arguments)
    solution = read_solution(paths.solution) if paths.solution else None
    cluster = _read_cluster(paths, solution)
    profile = _read_profile(paths, cluster)
    placement = None
    if solution is not None and paths.solution is not None:
        known = {record.num_layers for record in profile.models.values()} if profile else set()
        num_layers = known.pop() if len(known) == 1 else None
        placement = solution.placement(cluster, num_layers, paths.solution)

    write_cluster(cluster, paths.out / "cluster.yaml", f"From {paths.cluster.name}, of Helix.")
    words = [f"cluster={paths.out / 'cluster.yaml'}"]
    print(f"{paths.out / 'cluster.yaml'}: {len(cluster.nodes)} nodes, {len(cluster.links)} links")
    if profile is not None:
        profile.write(paths.out / "profile")
        words += [f"profile={paths.out / 'profile'}", f"model={next(iter(profile.models))}"]
        print(f"{paths.out / 'profile'}: {_what_it_knows(profile)}")
    if placement is not None and paths.solution is not None:
        path = paths.out / "placement.yaml"
        write_layer_placement(placement, path, f"From {paths.solution.name}, of Helix.")
        words += ["plan.method=load", f"plan.load={path}"]
        print(f"{path}: {placement.num_layers} layers on {len(placement.held)} nodes")
        if missing := placement.uncovered():
            print(f"layers that no node holds: {', '.join(map(str, missing))}")
    print(f"next: chitu-like plan {' '.join(words)}")
    return DONE


def _parse(prog: str, arguments: Sequence[str]) -> _Paths:
    parser = Parser(
        prog,
        "Read files of Helix and write what `chitu-like plan` and `simulate` take: OUT/cluster.yaml, "
        "OUT/placement.yaml (with --solution) and OUT/profile/ (with --profiles). In those files "
        "kbps, mbps and gbps are thousands, millions and billions of bytes a second. "
        f"{' and '.join(HELIX_MODELS)} are known; other models bring a {MODELS_FILE}.",
        [
            f"{prog} --cluster cluster24.ini --machines machine_profiles.ini --out imported",
            f"{prog} --cluster cluster24.ini --machines machine_profiles.ini \\\n"
            "      --solution ilp_sol.ini --profiles model_manager --constants machines.json \\\n"
            "      --model llama2_70b --out imported",
        ],
    )
    parser.add_argument(
        "--cluster", type=Path, required=True, metavar="INI", help="a cluster, or a simulator's"
    )
    parser.add_argument(
        "--machines",
        type=Path,
        metavar="INI",
        help="machine profile: memory and network of each type; a simulator's cluster needs none",
    )
    parser.add_argument(
        "--solution", type=Path, metavar="INI", help="which node holds which layers"
    )
    parser.add_argument(
        "--profiles",
        type=Path,
        metavar="DIR",
        help=f"<model>/<device>/{PROMPT_FILE} and {DECODE_FILE}, or one model's folder",
    )
    parser.add_argument(
        "--constants",
        type=Path,
        metavar="JSON",
        help="model -> device -> what fits on it; --profiles needs it",
    )
    parser.add_argument("--model", metavar="NAME", help="only this one of the profiles' models")
    parser.add_argument(
        "--facts",
        type=Path,
        metavar="JSON",
        help=f"a {MODELS_FILE} with models that are not known here (default: DIR/{MODELS_FILE})",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder to write")
    return _Paths(**vars(parser.parse_args(arguments)))


def _read_cluster(paths: _Paths, solution: Solution | None) -> Cluster:
    machines = read_machines(paths.machines) if paths.machines else None
    if is_simulator_cluster(paths.cluster):
        if machines is not None:
            print(f"{paths.machines} is not needed: {paths.cluster} says what its machines are")
        return read_simulator_cluster(paths.cluster)
    if machines is None:
        raise ConfigError(
            f"{paths.cluster} names types of machines: say what they are (--machines)"
        )
    offset = OFFSET if solution is None else solution.offset
    return read_helix_cluster(paths.cluster, machines, offset=offset)


def _read_profile(paths: _Paths, cluster: Cluster) -> Profile | None:
    if paths.profiles is None or paths.constants is None:
        if paths.profiles != paths.constants:
            given, missing = ("--profiles", "--constants")[:: 1 if paths.profiles else -1]
            raise ConfigError(
                f"{given} needs {missing}: times of a layer, and what fits on a device"
            )
        records = _records(paths, [paths.model] if paths.model else [])
        return Profile(models=records) if records else None
    folders = _model_folders(paths.profiles)
    if paths.model is not None:
        folders = {name: folder for name, folder in folders.items() if name == paths.model}
    if not folders:
        wanted = f"{paths.model}/<device>" if paths.model else "<model>/<device>"
        raise ConfigError(f"--profiles {paths.profiles}: there is no {wanted}/{PROMPT_FILE}")
    records = _records(paths, folders)
    tables: dict[tuple[str, str], LayerTables] = {}
    for model, folder in folders.items():
        constants = _constants(paths.constants, model)
        for device in _devices(paths, cluster, model, folder, constants):
            inner = next(path for path in folder.iterdir() if path.name.lower() == device)
            tables[model, device] = LayerTables(
                model=model,
                device=device,
                prompt=read_times(inner / PROMPT_FILE),
                decode=read_times(inner / DECODE_FILE),
                machine=constants[device],
            )
    return Profile(models=records, tables=tables)


def _model_folders(profiles: Path) -> dict[str, Path]:
    """Model -> its folder: below, or the one that was named."""
    if any(profiles.glob(f"*/{PROMPT_FILE}")):
        return {profiles.resolve().name: profiles}
    found = {path.parents[1] for path in profiles.glob(f"*/*/{PROMPT_FILE}")}
    return {folder.name: folder for folder in sorted(found)}


def _records(paths: _Paths, models: Iterable[str]) -> dict[str, ModelRecord]:
    """What is known of each model."""
    own = paths.profiles / MODELS_FILE if paths.profiles else None
    path = paths.facts or (own if own is not None and own.is_file() else None)
    known = dict(HELIX_MODELS)
    if path is not None:
        known |= read_record(path, dict[str, ModelRecord])
    for model in models:
        if model not in known:
            raise ConfigError(
                f"nothing is known of model {model}: give its layers and sizes in a {MODELS_FILE} "
                f"(--facts), or name one of {', '.join(known)} (--model)"
            )
    return {model: known[model] for model in models}


def _devices(
    paths: _Paths,
    cluster: Cluster,
    model: str,
    folder: Path,
    constants: Mapping[str, MachineConstants],
) -> list[str]:
    """Devices with tables and constants, in lower case: all of the cluster's are among them."""
    measured = {path.parent.name.lower() for path in folder.glob(f"*/{PROMPT_FILE}")}
    for device in dict.fromkeys(node.device for node in cluster.nodes):
        if device.lower() not in measured:
            raise ConfigError(
                f"{folder}: there is no {device.lower()}/{PROMPT_FILE}, but the cluster has {device}"
            )
        if device.lower() not in constants:
            raise ConfigError(
                f"{paths.constants}: {model}: {device} is missing, but the cluster has it"
            )
    return sorted(measured & constants.keys())


def _constants(path: Path, model: str) -> dict[str, MachineConstants]:
    """Device in lower case -> what fits; of a file that is not ours, other keys are not looked at."""
    models = read_record(path, dict[str, object])
    try:
        devices = msgspec.convert(models.get(model, {}), dict[str, dict[str, object]])
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {model}: {error}") from None
    found = {}
    for device, values in devices.items():
        known = {key: values[key] for key in MachineConstants.__struct_fields__ if key in values}
        try:
            found[device.lower()] = msgspec.convert(known, MachineConstants, str_keys=True)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{path}: {model}: {device}: {error}") from None
        found[device.lower()].check(f"{path}: {model}: {device}")
    return found


def _what_it_knows(profile: Profile) -> str:
    parts = []
    for model in profile.models:
        devices = [device for name, device in profile.tables if name == model]
        parts.append(f"{model} on {', '.join(devices) or 'no device yet'}")
    return "; ".join(parts)
