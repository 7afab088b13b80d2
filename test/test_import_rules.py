"""Who may import whom: the table of STYLE section 3 as data, and its consequences.

Imports inside functions and under TYPE_CHECKING count like any other: a type that two rooms need
belongs in the lower one. Packages that are not written yet are simply absent.
"""

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

GROUND = {"core", "config"}
SERVING = GROUND | {"kvcache", "cluster"}
DECIDING = SERVING | {"scheduler", "engine", "router", "disagg", "autoscale"}
LAYER_PARTS = GROUND | {"ops", "quantization", "attention", "distributed"}

# Room -> what it may import of ours, besides itself: a room, or one module of it.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "config": {"core"},
    "kvcache": GROUND,
    "cluster": GROUND | {"kvcache.spec"},
    "scheduler": SERVING,
    "engine": SERVING | {"scheduler"},
    "router": SERVING | {"scheduler", "engine"},
    "disagg": SERVING | {"scheduler", "engine", "router"},
    "autoscale": SERVING | {"scheduler", "engine", "router"},
    "simulator": DECIDING,
    "planner": DECIDING | {"simulator"},
    "server": GROUND | {"router", "engine.messages", "engine.client"},
    "distributed": GROUND | {"cluster.placement", "ops"},
    "transfer": GROUND | {"distributed", "kvcache.spec"},
    "ops": GROUND,
    "quantization": GROUND | {"ops"},
    "attention": GROUND | {"ops"},
    "layers": LAYER_PARTS,
    "models": LAYER_PARTS | {"layers"},
    "checkpoint": LAYER_PARTS | {"layers", "models"},
    "worker": LAYER_PARTS
    | {"layers", "models", "checkpoint", "transfer", "kvcache.spec", "engine.executor"},
}
CONTROL_WING = {*DECIDING, "simulator", "planner", "server"}
# These see both wings, and no room imports them. The empty name is chitu_like/__init__.py.
ROOF = {
    "",
    "__main__",
    "answer",
    "bench",
    "cli",
    "front_end_process",
    "instance",
    "layout",
    "launch",
    "llm",
    "local_ranks",
    "model_files",
    "openmp",
    "preprocess",
    "rank",
    "startup_report",
    "supervisor",
    "torchrun",
}

# Package of others -> the only rooms or modules (and the roof) that may import it.
ONLY_IN: dict[str, set[str]] = {
    "torch": set(MAY_IMPORT) - CONTROL_WING,
    "triton": {"ops"},
    "hydra": {"config.load"},
    "omegaconf": {"config.load"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "transformers": set(),
}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name: `from a import b` is a.b, whether b is a module or not."""

    importer: str
    name: str
    where: str


def modules_of(package: Path) -> dict[str, Path]:
    """Map each dotted module name of a package to its file."""
    modules = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def imports_of(module: str, file: Path) -> Iterator[Import]:
    """Yield every import of a module, at whatever depth it stands."""
    parents = module.split(".")
    if file.name != "__init__.py":
        parents.pop()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(importer=module, name=name, where=where)


def all_imports(package: Path) -> list[Import]:
    return [
        found for module, file in modules_of(package).items() for found in imports_of(module, file)
    ]


def is_within(name: str, places: set[str]) -> bool:
    """Whether a dotted name is one of the places or lies in one."""
    return any(name == place or name.startswith(place + ".") for place in places)


def forbidden_imports(package: Path) -> list[str]:
    """Return one sentence for each import that the tables forbid."""
    faults = []
    for found in all_imports(package):
        importer = found.importer.removeprefix(package.name).lstrip(".")
        room = importer.partition(".")[0]
        if room in ROOF:
            continue
        if room not in MAY_IMPORT:
            faults.append(f"{found.where}: {room} has no row in MAY_IMPORT")
        elif is_within(found.name, {package.name}):
            target = found.name.removeprefix(package.name).lstrip(".")
            if target != "__version__" and not is_within(target, MAY_IMPORT[room] | {room}):
                faults.append(f"{found.where}: {importer} may not import {target or package.name}")
        else:
            others = found.name.partition(".")[0]
            if others in ONLY_IN and not is_within(importer, ONLY_IN[others]):
                faults.append(f"{found.where}: {importer} may not import {others}")
    return faults


def import_cycle(package: Path) -> list[str]:
    """Return the modules of one import cycle, or nothing."""
    modules = modules_of(package)
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for found in all_imports(package):
        target = found.name
        if target == f"{package.name}.__version__":
            continue
        while target and target not in modules:
            target = target.rpartition(".")[0]
        if target and target != found.importer:
            graph[found.importer].add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_import_is_allowed_by_the_table() -> None:
    assert forbidden_imports(REPO / "chitu_like") == []


def test_no_module_imports_itself_through_others() -> None:
    assert import_cycle(REPO / "chitu_like") == []


def test_the_control_wing_runs_without_torch() -> None:
    """The server is apart: what it may load is checked by ONLY_IN."""
    rooms = {f"chitu_like.{room}" for room in CONTROL_WING - {"server"}}
    modules = [name for name in modules_of(REPO / "chitu_like") if is_within(name, rooms)]
    code = "\n".join(["import sys", *(f"import {name}" for name in ["chitu_like", *modules])])
    code += "\nprint(sorted({'torch', 'triton', 'transformers'} & set(sys.modules)))"
    result = run_python(code)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_the_package_gives_sampling_params_without_torch() -> None:
    code = "import sys; from chitu_like import SamplingParams; print('torch' in sys.modules)"
    assert run_python(code).stdout == "False\n"


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("core/a.py", "from toy.config import schema", "core.a may not import config.schema"),
        ("core/a.py", "import torch.nn", "core.a may not import torch"),
        ("core/a.py", "def f():\n    import toy.server", "core.a may not import server"),
        ("core/a.py", "if TYPE_CHECKING:\n    from ..ops import x", "core.a may not import ops.x"),
        ("worker/a.py", "from toy.engine import engine", "worker.a may not import engine.engine"),
        ("server/a.py", "from toy import llm", "server.a may not import llm"),
        ("attention/a.py", "import toy.quantization", "attention.a may not import quantization"),
        ("config/schema.py", "import omegaconf", "config.schema may not import omegaconf"),
        ("models/a.py", "import transformers", "models.a may not import transformers"),
        ("utils/a.py", "import os", "utils has no row in MAY_IMPORT"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, source: str, fault: str) -> None:
    path = tmp_path / "toy" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert [sentence.partition(": ")[2] for sentence in forbidden_imports(tmp_path / "toy")] == [
        fault
    ]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("worker/a.py", "from toy.engine.executor import Executor\nfrom . import b\nimport torch"),
        ("server/api.py", "from toy import __version__\nfrom toy.core.errors import X"),
        ("launch.py", "import toy.worker, toy.server, torch"),
        ("config/load.py", "from omegaconf import OmegaConf"),
    ],
)
def test_an_allowed_import_is_left_alone(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / "toy" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert forbidden_imports(tmp_path / "toy") == []


def test_a_cycle_through_a_function_is_found(tmp_path: Path) -> None:
    room = tmp_path / "toy" / "core"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text("from toy.core.a import A")
    (room / "a.py").write_text("from .b import B")
    (room / "b.py").write_text("B = 1")
    assert import_cycle(tmp_path / "toy") == []
    (room / "b.py").write_text("def f():\n    from toy.core import a")
    assert set(import_cycle(tmp_path / "toy")) == {"toy.core.a", "toy.core.b"}
