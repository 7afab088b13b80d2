"""Services for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes import ByteTokenizer, say
from front_end_process import Service, Start, make_starter


@pytest.fixture(scope="session")
def byte_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ByteTokenizer.save(tmp_path_factory.mktemp("byte-tokenizer"))


@pytest.fixture
def start(byte_tokenizer_dir: Path) -> Iterator[Start]:
    """Start services with settings of their own; all end with the test."""
    with ExitStack() as stack:
        yield make_starter(stack, byte_tokenizer_dir)


@pytest.fixture(scope="module")
def shared(byte_tokenizer_dir: Path) -> Iterator[Service]:
    """One service for all tests of a module that leave it as they found it."""
    with ExitStack() as stack:
        yield make_starter(stack, byte_tokenizer_dir)()


@pytest.fixture
def service(shared: Service) -> Service:
    """The shared service with a fresh script."""
    shared.engine.script = say("Hello from the fake engine.")
    shared.engine.delay_s = 0.001
    shared.engine.added.clear()
    shared.engine.aborted.clear()
    return shared
