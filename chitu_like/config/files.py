"""Find the files of the configuration: the folder of values, the top file, a model's entry."""

import difflib
from pathlib import Path

from chitu_like.core.errors import ConfigError

PACKAGE_DIR = Path(__file__).resolve().parents[1]
EMBEDDED_MODEL = "tiny-chat"
BASE_ENTRY = "base"  # lists the keys of every entry; no model itself


def values_dir(package_dir: Path = PACKAGE_DIR) -> Path:
    """The folder of values: `_values` inside an installed package, config/ beside a checkout's.

    Raises: ConfigError if neither is there.
    """
    for folder in (package_dir / "_values", package_dir.parent / "config"):
        if (folder / "serve.yaml").is_file():
            return folder
    raise ConfigError(
        f"no configuration beside {package_dir}: install the package again, config/ is missing"
    )


def find_top_file(config_name: str, values: Path) -> Path:
    """The file that `CONFIG_NAME` means: a name in `values`, with or without .yaml, or a path.

    Raises: ConfigError if there is none.
    """
    typed = Path(config_name).expanduser()
    if typed.name == config_name.strip():
        for name in (config_name, f"{config_name}.yaml"):
            if name.endswith(".yaml") and (values / name).is_file():
                return values / name
    for path in (typed, typed.with_name(f"{typed.name}.yaml") if typed.name else typed):
        if path.is_file():
            if path.suffix != ".yaml":
                raise ConfigError(f"CONFIG_NAME={config_name}: the file's name must end in .yaml")
            return path.absolute()
    known = ", ".join(sorted(path.stem for path in values.glob("*.yaml")))
    raise ConfigError(
        f"CONFIG_NAME={config_name}: no such file; give a path, or one of {known} in {values}"
    )


def model_entries(folders: tuple[Path, ...]) -> tuple[str, ...]:
    """Names of the entries in `models/` of each folder, in alphabetical order."""
    found = {path.stem for folder in folders for path in (folder / "models").glob("*.yaml")}
    return tuple(sorted(found - {BASE_ENTRY}, key=str.lower))


def find_model_entry(name: str, folders: tuple[Path, ...]) -> str:
    """The entry that `models=name` means, upper and lower case alike.

    Raises: ConfigError with the nearest entries and the list of all.
    """
    entries = model_entries(folders)
    if name in entries:
        return name
    by_lower = {entry.lower(): entry for entry in entries}
    wanted = name.strip().lower().removesuffix(".yaml")
    if wanted in by_lower:
        return by_lower[wanted]
    close = difflib.get_close_matches(wanted, by_lower, n=3, cutoff=0.6)
    hint = f": did you mean {' or '.join(by_lower[match] for match in close)}?" if close else "."
    raise ConfigError(
        f"models={name} is no entry in config/models{hint} For a folder of your own use "
        f"models=auto models.ckpt_dir=<folder>. Entries: {', '.join(entries)}"
    )


def expand_model_path(key: str, path: str) -> str:
    """Write out `package:NAME` (a model inside this package) and a leading `~`.

    Raises: ConfigError if NAME is no plain name.
    """
    if not path.startswith("package:"):
        return str(Path(path).expanduser())
    name = path.removeprefix("package:")
    if Path(name).name != name:
        raise ConfigError(f"{key}={path}: use package:{EMBEDDED_MODEL}, or the path of a folder")
    return str(PACKAGE_DIR / "assets" / name)
