"""What every test gets: a quiet, deterministic process, and a reason where it is skipped."""

import collections
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

# Before anything imports torch or transformers. Children of a test inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads only wait for each other
# OpenMP's threads else spin for milliseconds at every barrier where another process has their core.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs a download is wrong
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
for _proxy_exception in ("NO_PROXY", "no_proxy"):
    os.environ[_proxy_exception] = "127.0.0.1,localhost,::1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's job in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

SEED = 20240229


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--sample", type=int, default=1, metavar="N", help="of the slow tests run every Nth alone"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run all tests in two processes, a file at a time, unless -n is given; `-n 0` is in this one.

    On a GPU they run in this one, or those of two processes would share its memory.
    """
    is_everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    is_inner = "PYTEST_XDIST_WORKER" in os.environ
    watched = config.option.usepdb or config.option.capture == "no"
    if not is_everything or is_inner or watched or Path("/dev/nvidiactl").exists():
        return
    if config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None:
        config.option.numprocesses = 2
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False


def count_gpus() -> int:
    """CUDA devices that torch can use; torch is imported only when a collected test needs one."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpus_wanted(item: pytest.Item) -> int:
    """CUDA devices that the test's markers ask for."""
    wanted = 1 if item.get_closest_marker("gpu") else 0
    marker = item.get_closest_marker("multi_gpu")
    if marker is not None:
        wanted = marker.kwargs.get("count", marker.args[0] if marker.args else 2)
    return wanted


def missing_programs(item: pytest.Item) -> list[str]:
    """Programs that the test's `needs` markers name and this machine lacks."""
    names = [name for marker in item.iter_markers("needs") for name in marker.args]
    # /usr/sbin (ip, nft) is not on every user's PATH.
    path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin" + os.pathsep + "/sbin"
    return [name for name in names if shutil.which(name, path=path) is None]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run_slow = config.getoption("--slow") or "slow" in config.getoption("markexpr")
    slow = [item for item in items if item.get_closest_marker("slow")]
    sample = set(slow[:: config.getoption("sample")])
    wanted = [gpus_wanted(item) for item in items]
    num_gpus = count_gpus() if any(wanted) else 0
    for item, num_wanted in zip(items, wanted, strict=True):
        if item.get_closest_marker("slow") and not run_slow:
            item.add_marker(pytest.mark.skip(reason="slow: add --slow"))
        elif item.get_closest_marker("slow") and item not in sample:
            item.add_marker(pytest.mark.skip(reason="slow, and not in the sample"))
        if num_wanted > num_gpus:
            item.add_marker(
                pytest.mark.skip(reason=f"needs {num_wanted} CUDA device(s), found {num_gpus}")
            )
        if missing := missing_programs(item):
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}: see .ci/run"))
    if run_slow:
        put_long_files_first(items)


def put_long_files_first(items: list[pytest.Item]) -> None:
    """So that at the end no worker of pytest-xdist has a long file while the others have nothing."""
    lengths: collections.Counter[Path] = collections.Counter()
    for item in items:
        timeout = item.get_closest_marker("timeout")
        length = timeout.args[0] if timeout else int(item.get_closest_marker("slow") is not None)
        lengths[item.path] = max(lengths[item.path], length)
    items.sort(key=lambda item: -lengths[item.path])


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Give each test the same random numbers, whatever ran before it."""
    random.seed(SEED)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)
