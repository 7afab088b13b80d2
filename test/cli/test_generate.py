from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chitu_like.cli import main
from chitu_like.cli.prompt_file import read_prompts
from chitu_like.cli.result_file import ResultFile, ResultStream, read_results
from chitu_like.core.errors import ConfigError

REPO = Path(__file__).resolve().parents[2]
TINY = ("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=128")

BAD = [
    ("{nonsense", "not JSON"),
    ("[]", "not a JSON object"),
    ('{"prompt": 3}', "text or a list of token ids"),
    ('{"prompt": ["a"]}', "text or a list of token ids"),
    ('{"text": "a"}', "unknown field 'text'"),
    ('{"prompt": "a", "logprobs": 1}', "unknown field 'logprobs'"),
    ("{}", "one of"),
    ('{"prompt": "a", "messages": []}', "one of"),
    ('{"messages": []}', "list of"),
    ('{"messages": ["a"]}', "role"),
    ('{"prompt": "a", "temperature": "hot"}', "temperature='hot'"),
    ('{"prompt": "a", "temperature": NaN}', "temperature=nan"),
    ('{"prompt": "a", "max_tokens": 2.5}', "max_tokens=2.5"),
    ('{"prompt": "a", "max_tokens": 0}', "max_tokens=0"),
    ('{"prompt": "a", "stop": 5}', "stop"),
    ('{"prompt": "a", "stop_token_ids": 5}', ""),
    ('{"prompt": "a", "logit_bias": [1]}', ""),
    ('{"prompt": "a", "top_p": []}', "top_p=[]"),
    ('{"prompt": []}', "empty"),
    ('{"prompt": [999999]}', "vocabulary"),
    ('{"prompt": [-1]}', "vocabulary"),
    ("[" * 100_000, ""),
]
GOOD = [
    '{"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "id": "greeting"}',
    '{"prompt": "Once upon a time", "max_tokens": 3}',
    '{"prompt": [5, 6, 7], "max_tokens": 2, "stop": ["zzz"], "id": 7}',
]


def rows_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_has_its_answer_or_its_error_in_order(tmp_path: Path) -> None:
    lines = []
    for index, (bad, _) in enumerate(BAD):
        lines += [bad, GOOD[index % 3]]
    lines = [GOOD[0], "", *lines]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    words = ["--input", str(source), "--output", str(target), "--max-tokens", "5"]
    assert main(["generate", *words, *TINY]) == 0
    rows = rows_of(target.read_text())
    assert [row["line"] for row in rows] == [1, *range(3, len(lines) + 1)]
    by_line = {row["line"]: row for row in rows}
    for index, (bad, fault) in enumerate(BAD):
        refused, answered = by_line[3 + 2 * index], by_line[4 + 2 * index]
        assert fault in str(refused["error"]), bad
        assert "text" not in refused
        assert answered["finish_reason"] in ("stop", "length")
    assert by_line[4]["id"] == "greeting"
    assert by_line[6]["num_output_tokens"] == 3
    assert (by_line[8]["id"], by_line[8]["num_prompt_tokens"]) == (7, 3)
    assert by_line[1]["num_output_tokens"] == 5  # of the command line
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_text_lines_are_prompts_or_with_chat_what_a_user_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.txt"
    source.write_bytes(b"\xef\xbb\xbfhi\r\n\r\n\xff\n")
    words = ["generate", "--input", str(source), "--output", "-", "--max-tokens", "4"]
    assert main([*words, *TINY]) == 0
    plain = rows_of(capsys.readouterr().out)
    assert main([*words, "--chat", *TINY]) == 0
    chat = rows_of(capsys.readouterr().out)
    assert [row["line"] for row in plain] == [1, 3]
    assert plain[1]["error"] == chat[1]["error"] == "byte 1 is not UTF-8"
    assert int(str(chat[0]["num_prompt_tokens"])) > int(str(plain[0]["num_prompt_tokens"]))


def test_standard_input_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD[1].encode())))
    assert main(["generate", "--input", "-", "--output", "-", *TINY]) == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert row["num_output_tokens"] == 3


def test_an_output_that_is_there_is_not_overwritten_by_accident(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(GOOD[1])
    target.write_text('{"line": 1, "text": "precious", "finish_reason": "stop"}\n')
    words = ["generate", "--input", str(source), "--output", str(target), *TINY]
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert "precious" in target.read_text()
    assert main([*words, "--resume"]) == 0
    assert "precious" in target.read_text()
    assert main([*words, "--overwrite"]) == 0
    assert "precious" not in target.read_text()


def test_the_input_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.txt"
    source.write_text("hi\n")
    other = tmp_path / "link.txt"
    other.symlink_to(source)
    words = ["generate", "--input", str(source), "--output", str(other), "--overwrite", *TINY]
    assert main(words) == 2
    assert "is the input" in capsys.readouterr().err
    assert source.read_text() == "hi\n"


def test_a_model_that_does_not_load_costs_no_earlier_answer(tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("hi\nho\n")
    kept = '{"line": 1, "text": "precious", "finish_reason": "stop"}\n'
    target.write_text(kept)
    words = ["generate", "--input", str(source), "--output", str(target), "--resume"]
    assert main([*words, "models.ckpt_dir=/not/there", "models=auto"]) == 2
    assert target.read_text() == kept


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--input", "not-there.txt", "--output", "-"], "cannot be read"),
        (["--input", "IN", "--output", "/not/there/out.jsonl", *TINY], "cannot be written"),
        (["--input", "IN", "--output", "-", "infer.sed=3"], "unknown key"),
        (["--input", "IN", "--output", "-", "--temperature", "-3", *TINY], "temperature"),
        (["--input", "IN", "--output", "-", "--resume", "--overwrite"], "not allowed"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("hi\n")
    assert main(["generate", *(str(source) if word == "IN" else word for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert hint in line


def start(*words: str) -> subprocess.Popen[str]:
    code = "import sys; from chitu_like.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, "generate", *words],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(path: Path, number: int) -> None:
    deadline_s = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < number:
        assert time.monotonic() < deadline_s, f"{path} never had {number} lines"
        time.sleep(0.01)


def interruptible(folder: Path) -> tuple[Path, Path, list[str]]:
    """Two requests at a time: the first never ends, the others soon do."""
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    lines = ['{"prompt": "long", "ignore_eos": true, "max_tokens": 2000}']
    lines += ['{"prompt": "short", "max_tokens": 30, "ignore_eos": true}'] * 12
    source.write_text("\n".join(lines))
    words = ["--input", str(source), "--output", str(target), "infer.max_reqs=2", *TINY]
    return source, target, words


@pytest.mark.slow
def test_ctrl_c_keeps_every_answer_in_order_and_resume_does_the_rest(tmp_path: Path) -> None:
    _, target, words = interruptible(tmp_path)
    process = start(*words)
    wait_for_lines(target, 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    rows = rows_of(target.read_text())
    assert [row["line"] for row in rows] == sorted(int(str(row["line"])) for row in rows)
    assert rows[0]["line"] == 1  # it was under way all the time: what there was is kept
    assert rows[0]["finish_reason"] == "abort"
    assert 0 < int(str(rows[0]["num_output_tokens"])) < 2000
    finished = [row for row in rows if row["finish_reason"] == "length"]
    assert len(finished) >= 3
    source = tmp_path / "in.jsonl"  # the rest, with a shorter first line so that it ends
    source.write_text(source.read_text().replace("2000", "20"))
    process = start(*words, "--resume")
    assert process.wait(120) == 0
    assert process.stderr is not None
    assert f"{len(finished)} kept from before" in process.stderr.read()
    rows = rows_of(target.read_text())
    assert [row["line"] for row in rows] == list(range(1, 14))
    assert {row["finish_reason"] for row in rows} == {"length"}
    assert all(row in rows for row in finished)


@pytest.mark.slow
def test_a_process_that_is_killed_loses_nothing_that_had_ended(tmp_path: Path) -> None:
    _, target, words = interruptible(tmp_path)
    process = start(*words)
    wait_for_lines(target, 3)
    process.kill()
    process.wait(60)
    assert len(read_results(target)) >= 3


def test_half_a_line_is_left_out_of_a_resumed_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole = '{"line": 2, "text": "a", "finish_reason": "stop"}\n'
    path.write_text(whole + '{"line": 5, "error": "x"}\n' + '{"line": 7, "te')
    kept = read_results(path)
    assert [row["line"] for row in kept] == [2]
    with ResultFile(path, kept) as results:
        assert path.read_text() == whole
        results.write({"line": 1, "error": "y"})
    assert [row["line"] for row in rows_of(path.read_text())] == [1, 2]


@pytest.mark.parametrize("text", ['{"a": 1}\n', "[]\n", '{"line": "1"}\n'])
def test_somebody_elses_file_is_not_resumed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="not written by"):
        read_results(path)


def test_a_stream_holds_back_what_is_out_of_order() -> None:
    stream = io.StringIO()
    with ResultStream(stream, [1, 3, 4, 9]) as results:
        results.write({"line": 4})
        assert stream.getvalue() == ""
        results.write({"line": 1})
        assert rows_of(stream.getvalue()) == [{"line": 1}]
        results.write({"line": 9})
    assert [row["line"] for row in rows_of(stream.getvalue())] == [1, 4, 9]


def test_the_format_is_guessed_from_the_first_line_that_is_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text('\n  {"prompt": "a"}\n')
    assert read_prompts(str(path))[0].prompt == "a"
    assert read_prompts(str(path), "text")[0].prompt == '  {"prompt": "a"}'
    path.write_text('say {"prompt": "a"}\n')
    assert read_prompts(str(path))[0].prompt == 'say {"prompt": "a"}'
    path.write_text("")
    assert read_prompts(str(path)) == []
