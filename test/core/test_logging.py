import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chitu_like.core.errors import ConfigError
from chitu_like.core.logging import PACKAGE, configure_logging


@pytest.fixture(autouse=True)
def untouched_logger() -> Iterator[None]:
    logger = logging.getLogger(PACKAGE)
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level, logger.propagate = before[0], before[1], before[2]


def test_a_line_says_time_level_and_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure_logging(rank=3, log_dir=tmp_path, started="now")
    logging.getLogger("chitu_like.engine").warning("%d blocks left", 7)
    assert path == tmp_path / "now" / "rank3.log"
    line = path.read_text()
    pattern = (
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} WARNING rank3 chitu_like\.engine: 7 blocks left\n"
    )
    assert re.fullmatch(pattern, line)
    assert capsys.readouterr().err == line


def test_secrets_never_reach_the_log(tmp_path: Path) -> None:
    path = configure_logging(rank="http", log_dir=tmp_path, started="x", secrets=("sk-1", "sk-12"))
    logging.getLogger("chitu_like.server").info("key sk-12 and sk-1")
    assert path is not None
    assert path.name == "http.log"
    assert path.read_text().endswith("key *** and ***\n")


def test_no_message_can_pass_for_a_line_of_its_own(tmp_path: Path) -> None:
    path = configure_logging(rank=0, log_dir=tmp_path, started="x")
    logging.getLogger("chitu_like").info("a\n2025-01-01 forged\r\x1b[2J")
    assert path is not None
    first, second = path.read_text().splitlines()
    assert first.endswith(": a")
    assert second == r"    2025-01-01 forged\r\x1b[2J"


def test_a_second_call_replaces_the_first(tmp_path: Path) -> None:
    old = configure_logging(rank=0, log_dir=tmp_path, started="a")
    new = configure_logging(rank=0, log_dir=tmp_path, started="b")
    logging.getLogger("chitu_like").info("once")
    assert old is not None
    assert new is not None
    assert old.read_text() == ""
    assert new.read_text().count("once") == 1


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"^log_dir: cannot write .*set log_dir to a writable folder$"
    ):
        configure_logging(rank=0, log_dir=tmp_path / "file")


def test_a_trace_goes_to_the_file_and_its_last_line_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure_logging(rank=1, log_dir=tmp_path, started="x")
    try:
        raise RuntimeError("connection closed by peer\nmore of it")
    except RuntimeError:
        logging.getLogger("chitu_like").exception("the step failed")
        logging.getLogger("chitu_like").exception("the step failed: connection closed by peer")
    assert path is not None
    assert path.read_text().count("Traceback (most recent call last)") == 2
    first, second = capsys.readouterr().err.splitlines()
    end = f"(trace in {path})"
    assert first.endswith(f": the step failed: RuntimeError: connection closed by peer {end}")
    assert second.endswith(f": the step failed: connection closed by peer {end}")


def test_without_a_file_stderr_has_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(rank=1)
    try:
        raise RuntimeError("no room")
    except RuntimeError:
        logging.getLogger("chitu_like").exception("the step failed")
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_console_may_hear_less_than_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure_logging(rank=1, log_dir=tmp_path, started="x", console_level=logging.WARNING)
    logging.getLogger("chitu_like").info("all is well")
    assert path is not None
    assert path.read_text().endswith("all is well\n")
    assert capsys.readouterr().err == ""
