"""`chitu-like doctor`: a dry run of everything. Will it fit, and with which settings?"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from chitu_like.cli.command_line import Parser
from chitu_like.config.keys import known_keys
from chitu_like.config.load import load_config
from chitu_like.config.overrides import parse_overrides
from chitu_like.config.report import show_masked, value_of
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.config.schema import ServeConfig
from chitu_like.core.ending import DONE
from chitu_like.core.errors import CapacityError, ConfigError


def run(prog: str, arguments: Sequence[str]) -> int:
    """Report on the machine, the configuration and the memory.

    Raises:
        CapacityError: it does not fit.
        ConfigError: something else keeps the service from starting.
    """
    parser = Parser(
        prog,
        "Find out whether a configuration would start, without loading a weight: the machine, "
        "what every `auto` becomes and why, where the memory goes, the checkpoint's files and "
        "headers, the tokenizer, the port. Ranks that this machine has no devices for are taken "
        "to have devices like its own. A model of config/models/ needs no folder. Exit code 0: "
        "it fits; 2: it does not, and one line says why.",
        [
            prog,
            f"{prog} models=llama-3-8b infer.max_seq_len=8192",
            f"{prog} models=auto models.ckpt_dir=/models/Qwen3-0.6B dtype=bfloat16",
            f"{prog} models=llama-3-70b infer.tp_size=4 infer.pp_size=2",
        ],
    )
    parser.add_overrides()
    config = _load(parser.parse_intermixed_args(arguments).overrides)
    return _examine(config, Console(highlight=False, soft_wrap=True))


def _load(overrides: Sequence[str]) -> ServeConfig:
    """Load the configuration; a named model without a folder is looked at all the same."""
    try:
        return load_config(overrides)
    except ConfigError:
        given = {override.name for override in parse_overrides(overrides)}
        if given & {"models.ckpt_dir", "models.load_format", "infer.do_load"}:
            raise
        return load_config([*overrides, "models.load_format=dummy"])


def _examine(config: ServeConfig, console: Console) -> int:
    # Here and not above: torch takes seconds, and `--help` needs none of it.
    from chitu_like.cli.checkup import check_up
    from chitu_like.cli.fit import fit_memory
    from chitu_like.cli.machine import describe_machine, describe_packages
    from chitu_like.config.resolve import resolve
    from chitu_like.instance import runner_options
    from chitu_like.model_files import read_model_files
    from chitu_like.startup_report import memory_table
    from chitu_like.worker.device import device_facts

    files = read_model_files(config)
    facts = device_facts(config.infer.device)
    _print(console, "machine", describe_machine(facts))
    _print(console, "optional packages", describe_packages())
    resolved = resolve(config, facts, files.spec)
    findings = check_up(config, files, runner_options(resolved, files.spec), facts)
    _print(console, "checks", [(f.name, f"{'!! ' * f.is_fault}{f.detail}") for f in findings])
    fit = fit_memory(resolved, files.spec, facts)
    _print(console, "configuration (the rest is at its default)", _settings(fit.resolved))
    console.print(memory_table(fit.memories, fit.resolved, fit.num_host_blocks))
    faults = [finding for finding in findings if finding.is_fault]
    if fit.fault is not None:
        raise CapacityError(f"{config.models.name} does not fit: {fit.fault}")
    if faults:
        names = ", ".join(finding.name for finding in faults)
        raise ConfigError(f"{config.models.name} would not start ({names}): {faults[0].detail}")
    replicas = config.deploy.replicas
    console.print(
        f"[bold]{config.models.name} fits[/bold]: {fit.resolved.max_reqs} requests at once, "
        f"{fit.resolved.max_seq_len} tokens each at most"
        f"{f', in each of {replicas} instances' if replicas > 1 else ''}"
    )
    return DONE


def _settings(resolved: ResolvedConfig) -> list[tuple[str, str, str]]:
    """(key, value, why) of each key that was decided or set."""
    decided = {decision.key: decision for decision in resolved.decisions}
    rows = [("models", resolved.config.models.name, "")]
    for key in known_keys().values():
        value = value_of(resolved.config, key)
        if key.name in decided:
            rows.append((key.name, decided[key.name].value, f"auto: {decided[key.name].reason}"))
        elif value != key.default and not key.name.startswith("models.hf_"):
            rows.append((key.name, show_masked(key, value), "set"))
    return rows


def _print(console: Console, title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """A title and aligned columns; a line is as long as it must be, so that it can be searched."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    console.print(f"[bold]{title}[/bold]")
    console.print("\n".join(f"  {line}" for line in lines), markup=False)
    console.print()
