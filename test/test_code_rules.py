"""What stands nowhere in the package: ways to run foreign code, and ways to hide a fault."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

# Loading with any of these runs what the bytes say. Their error classes may be caught: torch.load
# raises them.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve"}


def is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def call_fault(call: ast.Call) -> str | None:
    """Say what is wrong with a call, or None."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    name = ast.unparse(call.func)
    if name in {"eval", "exec"}:
        return f"{name}() runs text as code"
    if name == "torch.load" and not is_true(keywords.get("weights_only", ast.Constant(None))):
        return "torch.load without weights_only=True"
    for unsafe in ("shell", "allow_pickle", "trust_remote_code"):
        if unsafe in keywords and is_true(keywords[unsafe]):
            return f"{unsafe}=True"
    if name == "yaml.load":
        return "yaml.load: use yaml.safe_load"
    return None


def fault_of(node: ast.AST) -> str | None:
    """Say what is wrong with a node of the syntax tree, or None."""
    if isinstance(node, ast.Call):
        return call_fault(node)
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        return "bare except"
    if isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and not node.test.value:
        return "assert False: raise an error that says what happened"
    used: list[str] = []
    if isinstance(node, ast.Attribute):
        used = [ast.unparse(node)]
    elif isinstance(node, ast.ImportFrom):
        used = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in used:
        if name.partition(".")[0] in UNSAFE_MODULES and not name.endswith("Error"):
            return f"{name}: loading runs what the bytes say"
    return None


def faults_in(source: str) -> list[str]:
    return [fault for node in ast.walk(ast.parse(source)) if (fault := fault_of(node))]


def test_the_package_holds_no_forbidden_construct() -> None:
    found = {
        str(file.relative_to(REPO)): faults
        for file in sorted((REPO / "chitu_like").rglob("*.py"))
        if (faults := faults_in(file.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "import pickle\npickle.Unpickler(file)",
        "def f():\n    from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "yaml.load(text)",
        "try:\n    f()\nexcept:\n    pass",
        "assert False, 'never'",
    ],
)
def test_a_forbidden_construct_is_found(source: str) -> None:
    assert len(faults_in(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "assert x is False",
        "try:\n    f()\nexcept pickle.UnpicklingError:\n    raise",
    ],
)
def test_a_harmless_construct_is_left_alone(source: str) -> None:
    assert faults_in(source) == []
