"""What is packaged: the wheel holds everything that serving needs, and builds without torch."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
# No header of torch: those take half a minute to compile.
CPP_SOURCE = """
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "A toy.", -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
"""


def copy_checkout(target: Path) -> Path:
    """Copy what packaging reads, so that a build leaves nothing behind in the checkout."""
    target.mkdir()
    for name in ("chitu_like", "config", "csrc", "script"):
        if (REPO / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(REPO / name, target / name, ignore=ignored)
    for name in ("setup.py", "MANIFEST.in", "LICENSE", "README.md", "requirements-build.txt"):
        if (REPO / name).is_file():
            shutil.copy(REPO / name, target / name)
    return target


def setup_py(checkout: Path, *arguments: str, **environment: str) -> str:
    """Run setup.py in a checkout, failing the test if it fails; return all that it printed."""
    result = subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=checkout,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def build_wheel(checkout: Path, **environment: str) -> tuple[zipfile.ZipFile, str]:
    """Build a wheel of a checkout; return it, opened, with what the build printed."""
    printed = setup_py(checkout, "-q", "bdist_wheel", "-d", "wheels", **environment)
    (wheel,) = (checkout / "wheels").glob("*.whl")
    return zipfile.ZipFile(wheel), printed


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def files_under(folder: Path) -> set[str]:
    """Return the files of a folder as paths relative to it, caches left out."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)) for file in files if "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("wheel") / "checkout")


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> zipfile.ZipFile:
    stale = checkout / "build" / "lib" / "chitu_like" / "deleted_long_ago.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    return build_wheel(checkout)[0]


def test_the_wheel_holds_the_package_and_its_values_and_nothing_else(
    wheel: zipfile.ZipFile, checkout: Path
) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {f"chitu_like/{name}" for name in files_under(checkout / "chitu_like")}
    values = {f"chitu_like/_values/{name}" for name in files_under(checkout / "config")}
    assert packed == package | values


def test_the_wheel_is_importable_and_says_its_version(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    wheel.extractall(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", "import chitu_like; print(chitu_like.__version__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == metadata_of(wheel)["Version"]


def test_the_core_needs_fewer_than_15_packages_none_pinned(wheel: zipfile.ZipFile) -> None:
    requirements = metadata_of(wheel).get_all("Requires-Dist")
    core = [requirement for requirement in requirements if "extra ==" not in requirement]
    assert 0 < len(core) < 15
    assert not [requirement for requirement in core if re.search("==|<|~=", requirement)]


def test_the_extras_are_those_the_readme_may_name(wheel: zipfile.ZipFile) -> None:
    extras = {name.replace("-", "_") for name in metadata_of(wheel).get_all("Provides-Extra")}
    attention = {"flash_attn", "flash_mla", "flashinfer"}
    assert extras == attention | {"structured", "quant", "plot", "planner", "test", "dev"}


def test_a_build_without_torch_says_so_in_one_sentence(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    (checkout / "csrc" / "toy.cpp").write_text(CPP_SOURCE)
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '-q', '--version'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True
    )
    sentence, version = result.stdout.splitlines()
    assert sentence.startswith("chitu_like: building without the compiled extension: torch is not")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


@pytest.mark.slow
@pytest.mark.needs("c++")
def test_a_source_in_csrc_becomes_the_extension(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    (checkout / "csrc" / "toy.cpp").write_text(CPP_SOURCE)
    wheel, _ = build_wheel(checkout, CHITU_LIKE_BUILD_EXT="1")
    wheel.extractall(tmp_path / "unpacked")
    code = "import torch, chitu_like._C as extension; print(extension.__doc__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "unpacked",
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "A toy.\n"


@pytest.mark.slow
@pytest.mark.needs("c++")
def test_a_source_that_does_not_compile_costs_only_the_extension(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    (checkout / "csrc" / "toy.cpp").write_text("this is not C++")
    wheel, printed = build_wheel(checkout)
    assert "chitu_like: the extension was not built, its compilation failed" in printed
    assert "chitu_like/__init__.py" in wheel.namelist()


def run_lib(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the functions of script/lib.sh."""
    return subprocess.run(
        ["bash", "-c", f'set -eu; . "$1"; {command}', "lib", str(REPO / "script" / "lib.sh")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def fake_python(folder: Path, name: str, version: tuple[int, int]) -> Path:
    """Write a program that answers lib.sh as a Python of that version would."""
    program = folder / name
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; sys.version_info = {version}; $2"\n'
    )
    program.chmod(0o755)
    return program


def test_an_old_python_is_refused_in_one_sentence(tmp_path: Path) -> None:
    result = run_lib("find_python", PYTHON=str(fake_python(tmp_path, "python3", (3, 9))))
    assert result.returncode == 1
    assert result.stderr.endswith("is older than Python 3.10: name a newer one\n")
    assert result.stderr.count("\n") == 1


def test_a_newer_python_is_found_beside_an_old_python3(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", (3, 9))
    fake_python(tmp_path, "python3.13", (3, 13))
    result = run_lib("find_python", PYTHON="", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.stdout == "python3.13\n"


def test_the_installation_is_renewed_when_the_requirements_change(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    lib = checkout / "script" / "lib.sh"
    fingerprint = f'. "{lib}"; fingerprint'
    before = run_lib(fingerprint).stdout
    assert before == run_lib(fingerprint).stdout != ""
    with (checkout / "setup.py").open("a") as file:
        file.write("# one more requirement\n")
    assert run_lib(fingerprint).stdout != before


@pytest.mark.slow
def test_quickstart_installs_once_and_refuses_a_wrong_key_in_one_line(tmp_path: Path) -> None:
    """The Python of this test has torch and the rest, so that nothing is fetched."""
    checkout = copy_checkout(tmp_path / "checkout")
    command = [str(checkout / "script" / "quickstart.sh"), "models.no_such_key=1"]
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
    printed = []
    for _ in range(2):
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 2, result.stderr
        printed.append(result.stderr)
    assert "==> installing chitu_like" in printed[0]
    assert printed[1].count("\n") == 1
    assert "models.no_such_key" in printed[1]
