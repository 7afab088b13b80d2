from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from chitu_like.bench.startup import FRONT_END, Server, Start, run, startup_table
from chitu_like.cli.command_line import run_reporting

STRANGER = """
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({"data": [{"id": "some-model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "some-model" and body["max_tokens"] == 1
        self.reply({"choices": []})

    def reply(self, answer):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

print(os.environ["TRITON_CACHE_DIR"])
print("engine ready after 1.50 s: imports 1.00, weights 0.50")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which only waits for the system's init."""
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True


def stranger(tmp_path: Path) -> str:
    path = tmp_path / "stranger.py"
    path.write_text(STRANGER)
    return f"{sys.executable} {path} {{port}}"


def test_a_server_is_measured_from_its_start_to_two_answers(tmp_path: Path) -> None:
    path = tmp_path / "startup.json"
    command = ["--command", stranger(tmp_path), "--json", str(path), "--warm", "1"]
    assert run("startup", command) == 0
    found = json.loads(path.read_text())
    assert len(found["warm"]) == 1
    for start in (found["cold"], *found["warm"]):
        assert list(start["phases"]) == ["imports", "weights", FRONT_END]
        assert start["ready_s"] > 0
        assert len(start["answers_s"]) == 2


def test_a_server_that_ends_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = f"{sys.executable} -c 'print(\"no such model\"); raise SystemExit(3)'"
    assert run_reporting("startup", lambda: run("startup", ["--command", program])) == 2
    assert "no such model" in capsys.readouterr().err


def test_leaving_ends_what_the_server_started(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '1000']); "
        "print(child.pid, flush=True); child.wait()"
    )
    with Server([sys.executable, "-c", program], 1, tmp_path) as server:
        while not server.lines:
            time.sleep(0.01)
        child = int(server.lines[0])
    assert not runs(child)


def test_compiling_is_the_difference_to_a_start_with_its_kernels() -> None:
    cold = Start(phases={"imports": 3.0, "weights": 5.0}, ready_s=20.0, answers_s=[2.0, 0.1])
    warm = [
        Start(phases={"imports": 3.0, "weights": 4.0}, ready_s=ready_s, answers_s=[0.2, 0.1])
        for ready_s in (10.0, 14.0, 12.0)
    ]
    columns = [list(column.cells) for column in startup_table(cold, warm).columns]
    rows = {name: tuple(cells) for name, *cells in zip(*columns, strict=True)}
    assert rows["ready"] == ("20.00", "12.00", "8.00")
    assert rows["ready, weights excluded"] == ("15.00", "8.00", "7.00")
    assert rows["weights"] == ("5.00", "4.00", "1.00")
    assert rows["first answer"] == ("2.00", "0.20", "1.80")


@pytest.mark.slow
def test_the_service_tells_its_phases(tmp_path: Path) -> None:
    path = tmp_path / "startup.json"
    command = ["--warm", "1", "--json", str(path), "models=tiny-chat", "infer.device=cpu"]
    assert run("startup", [*command, f"log_dir={tmp_path}"]) == 0
    cold = json.loads(path.read_text())["cold"]
    assert {"configuration", "imports", "weights", "profile run", FRONT_END} <= set(cold["phases"])
    assert sum(cold["phases"].values()) == pytest.approx(cold["ready_s"], rel=0.05)
