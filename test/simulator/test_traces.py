from __future__ import annotations

from pathlib import Path

import pytest

from chitu_like.core.errors import ConfigError
from chitu_like.simulator.traces import read_lengths, read_trace
from chitu_like.simulator.workload import PlannedRequest

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
)
MOONCAKE = (
    '{"timestamp": 1000, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
    "\n"
    '{"timestamp": 4500, "input_length": 10, "output_length": 7, "hash_ids": [3]}\n'
)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_azures_seven_decimals_are_kept(tmp_path: Path) -> None:
    rows = read_trace(written(tmp_path, "azure.csv", AZURE))
    assert [(row.input_len, row.output_len) for row in rows] == [(374, 44), (396, 109)]
    assert rows[0].arrival_s == 0.0
    assert rows[1].arrival_s == pytest.approx(4.314579, abs=1e-6)


def test_mooncakes_milliseconds_and_hash_ids_are_read(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, "m.jsonl", MOONCAKE)) == [
        PlannedRequest(index=0, arrival_s=0.0, input_len=600, output_len=5, hash_ids=(0, 1)),
        PlannedRequest(index=1, arrival_s=3.5, input_len=10, output_len=7, hash_ids=(3,)),
    ]


@pytest.mark.parametrize("header", ["", "timestamp,input,output\n", "Time,Input_Tokens,Output\n"])
def test_a_plain_csv_is_read_with_and_without_a_header(tmp_path: Path, header: str) -> None:
    rows = read_trace(written(tmp_path, "t.csv", header + "3.5,1,2\n2.0,30,40\n"))
    assert [(row.arrival_s, row.input_len, row.output_len) for row in rows] == [
        (0.0, 30, 40),
        (1.5, 1, 2),
    ]


def test_time_zones_count(tmp_path: Path) -> None:
    text = "2024-05-10 02:00:00+02:00,1,1\n2024-05-10T00:00:01Z,1,1\n"
    rows = read_trace(written(tmp_path, "t.csv", text))
    assert [row.arrival_s for row in rows] == [0.0, 1.0]


def test_columns_are_found_by_name_wherever_they_stand(tmp_path: Path) -> None:
    text = "turns,output_tokens,input_tokens\n2,79,16\n2,80,17\n"
    assert read_lengths(written(tmp_path, "l.csv", text)) == [(16, 79), (17, 80)]


def test_lengths_of_a_trace_stay_in_the_files_order(tmp_path: Path) -> None:
    assert read_lengths(written(tmp_path, "m.jsonl", MOONCAKE)) == [(600, 5), (10, 7)]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("t.csv", "1.0,2,3\n1.0,2\n", "line 2: 2 columns"),
        ("t.csv", "1.0,2,3\nsoon,2,3\n", "line 2: timestamp='soon'"),
        ("t.csv", "1.0,2,3\n1.0,-2,3\n", "line 2: input='-2'"),
        ("t.csv", "1.0,2,3\n1.0,2,0\n", "line 2: output='0'"),
        ("t.csv", "1.0,2,3\n1.0,2.5,3\n", "line 2: input='2.5'"),
        ("t.csv", "1.0,2,3\n1.0,99999999999,3\n", "line 2: input='99999999999'"),
        ("t.csv", "1.0,2,3\nnan,2,3\n", "line 2: timestamp='nan'"),
        ("t.csv", "2023-13-01 00:00:00,2,3\n", "line 1: month must be"),
        ("t.csv", "timestamp,input\n1,2\n", "no column is called"),
        ("t.csv", "", "holds no request"),
        ("m.jsonl", '{"timestamp": 0}\n', "line 1: input_length=None"),
        ("m.jsonl", MOONCAKE + "{\n", "line 4: Expecting"),
        ("m.jsonl", "[]\n", "line 1: not a JSON object"),
        (
            "m.jsonl",
            '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ["x"]}\n',
            "line 1: hash_ids",
        ),
        ("m.jsonl", '{"timestamp": true, "input_length": 1, "output_length": 1}\n', "timestamp="),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_trace(written(tmp_path, name, text))
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
