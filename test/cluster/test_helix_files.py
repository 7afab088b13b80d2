from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helix_examples import CLUSTER, MACHINES, SIMULATOR, SOLUTION

from chitu_like.cluster.helix_files import (
    is_simulator_cluster,
    read_helix_cluster,
    read_simulator_cluster,
    read_solution,
)
from chitu_like.cluster.helix_machines import Machine, read_machines
from chitu_like.cluster.topology import SINK, SOURCE, Link, Node
from chitu_like.core.errors import ConfigError

TWICE = "[Link-2-0]\nbandwidth=1\nlatency=1\n"


def write(folder: Path, text: str, name: str = "file.ini") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def machines_of(folder: Path) -> dict[str, Machine]:
    return read_machines(write(folder, MACHINES, "machines.ini"))


def test_machines_are_in_bytes_and_minus_one_is_none(tmp_path: Path) -> None:
    machines = machines_of(tmp_path)
    assert list(machines) == ["SourceNode", "SinkNode", "A100", "T4"]
    assert machines["A100"] == Machine(memory_bytes=40e9, nic_in=10e9, nic_out=5e9, disk=1e9)
    assert machines["T4"] == Machine(memory_bytes=16e9, nic_in=2e9, nic_out=2e9, disk=math.inf)


def test_a_cluster_has_its_links_both_ways(tmp_path: Path) -> None:
    cluster = read_helix_cluster(write(tmp_path, CLUSTER), machines_of(tmp_path))
    assert [(node.name, node.device) for node in cluster.nodes] == [
        ("compute_node_2", "A100"),
        ("compute_node_3", "T4"),
        ("compute_node_4", "T4"),  # the file says t4
    ]
    assert cluster.nodes[0] == Node(
        name="compute_node_2",
        device="A100",
        memory_bytes=40e9,
        nic_in=10e9,
        nic_out=5e9,
        disk=1e9,
    )
    between = cluster.link_between
    assert set(between) == {
        (SOURCE, "compute_node_2"),
        (SOURCE, "compute_node_4"),
        ("compute_node_3", SINK),
        ("compute_node_4", SINK),
        ("compute_node_2", "compute_node_3"),
        ("compute_node_3", "compute_node_2"),
        ("compute_node_2", "compute_node_4"),
        ("compute_node_4", "compute_node_2"),
    }
    assert between["compute_node_3", "compute_node_2"].bandwidth == 1.25e9
    for source in ("compute_node_3", "compute_node_4"):
        link = between[source, SINK]
        assert (link.bandwidth, link.latency_s) == (12.5e6, 0.05)


def test_a_simulator_cluster_has_its_links_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, SIMULATOR)
    cluster = read_simulator_cluster(path)
    assert [(n.name, n.device, n.memory_bytes, n.nic_out) for n in cluster.nodes] == [
        ("compute_node_2", "A100", 40e9, 5e9),
        ("compute_node_3", "T4", 16e9, 2e9),
    ]
    assert cluster.links[1] == Link(
        source="compute_node_2", target="compute_node_3", bandwidth=5e8, latency_s=0.002
    )
    assert ("compute_node_3", "compute_node_2") not in cluster.link_between


def test_the_two_forms_of_a_cluster_are_told_apart(tmp_path: Path) -> None:
    assert is_simulator_cluster(write(tmp_path, SIMULATOR))
    assert not is_simulator_cluster(write(tmp_path, CLUSTER))


def test_a_solution_leaves_out_nodes_without_layers(tmp_path: Path) -> None:
    solution = read_solution(write(tmp_path, SOLUTION))
    assert solution.offset == 2
    assert solution.held == {"compute_node_2": range(3), "compute_node_3": range(2, 4)}
    cluster = read_simulator_cluster(write(tmp_path, SIMULATOR))
    assert solution.placement(cluster, None, tmp_path).num_layers == 4
    assert solution.placement(cluster, 80, tmp_path).num_layers == 80


def test_names_match_without_case_as_keys_of_ini_files_do(tmp_path: Path) -> None:
    text = SIMULATOR.replace("compute_node_2", "Node_A")
    cluster = read_simulator_cluster(write(tmp_path, text))
    solution = read_solution(write(tmp_path, "[Settings]\noffset=2\n[Solution]\nNode_A=[0]\n"))
    assert solution.placement(cluster, None, tmp_path).held == {"Node_A": range(1)}


def test_comments_are_left_out(tmp_path: Path) -> None:
    text = MACHINES.replace("40 * GB", "40 * GB  # of 40").replace("[T4]", "; old\n[T4]")
    assert machines_in(tmp_path, text) == machines_in(tmp_path, MACHINES)


def test_a_solution_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[Solution\]: no node holds a layer"):
        solution_in(tmp_path, "[Settings]\noffset=2\n[Solution]\ncompute_node_2=[]\n")


def test_the_offset_decides_what_nodes_are_called(tmp_path: Path) -> None:
    cluster = read_helix_cluster(write(tmp_path, CLUSTER), machines_of(tmp_path), offset=7)
    assert cluster.nodes[0].name == "compute_node_7"


def cluster_in(folder: Path, text: str) -> object:
    return read_helix_cluster(write(folder, text), machines_of(folder))


def machines_in(folder: Path, text: str) -> object:
    return read_machines(write(folder, text))


def simulator_in(folder: Path, text: str) -> object:
    return read_simulator_cluster(write(folder, text))


def solution_in(folder: Path, text: str) -> object:
    cluster = read_simulator_cluster(write(folder, SIMULATOR, "simulator.ini"))
    path = write(folder, text)
    return read_solution(path).placement(cluster, 4, path)


@pytest.mark.parametrize(
    ("read", "good", "old", "new", "message"),
    [
        (machines_in, MACHINES, MACHINES, "", ": there is no section"),
        (machines_in, MACHINES, "[A100]\nin", "[A100]\nx", "[A100] inbound_nic_speed is missing"),
        (machines_in, MACHINES, "40 * GB", "40 * GiB", "[A100] vram_size=40 * GiB: give a number"),
        (machines_in, MACHINES, "5 * gbps", "0", "[A100] outbound_nic_speed=0: give more than 0"),
        (machines_in, MACHINES, "[T4]", "[A100]", ": no ini file: While reading"),
        (machines_in, MACHINES, "[T4]", "[T4", ": no ini file: "),
        (cluster_in, CLUSTER, "[NodeNames]", "[Names]", ": there is no section [NodeNames]"),
        (cluster_in, CLUSTER, "nodes=3", "nodes=4", ": there is no section [ComputeNode-3]"),
        (cluster_in, CLUSTER, "nodes=3", "nodes=2", ": [ComputeNode-2]: [NodeNames] total_compute"),
        (cluster_in, CLUSTER, "nodes=3", "nodes=1e9", "total_compute_nodes: 1e9 must be a whole"),
        (cluster_in, CLUSTER, "type=T4", "type=B4", "[ComputeNode-1] type=B4: the machine profile"),
        (cluster_in, CLUSTER, "type=T4", "type=SinkNode", "vram_size = -1: give bytes"),
        (cluster_in, CLUSTER, "[0, 'sink']", "0, 'sink'", "[ComputeNode-1] connected_nodes=0, 's"),
        (cluster_in, CLUSTER, "[0, 'sink']", "[0, 9]", "[ComputeNode-1] connected_nodes: 9 is no"),
        (cluster_in, CLUSTER, "[0, 'sink']", "[0,, 2]", "connected_nodes=[0,, 2]: give a list"),
        (
            cluster_in,
            CLUSTER,
            "[0, 'sink']",
            "[0, print()]",
            "[ComputeNode-1] connected_nodes: pri",
        ),
        (
            cluster_in,
            CLUSTER,
            "[0, 'sink']",
            "[0, 2]",
            "connected_nodes: there is no section [Link-",
        ),
        (
            cluster_in,
            CLUSTER,
            "[0, 'sink']",
            "[1]",
            "[ComputeNode-1] connected_nodes: 1 is no other",
        ),
        (cluster_in, CLUSTER, "[Link-0-1]", "[Link-1-2]", "there is no section [Link-0-1]"),
        (cluster_in, CLUSTER, "[Link-0-1]", "[Link-0-5]", ": [Link-0-5]: a link is Link-a-b"),
        (cluster_in, CLUSTER, "[Link-0-1]", "[Link-0]", ": [Link-0]: a link is Link-a-b"),
        (cluster_in, CLUSTER, "latency=0\n", f"latency=0\n{TWICE}", "is there twice"),
        (cluster_in, CLUSTER, "[Link-0-1]", "[Lonk-0-1]", ": unknown section [Lonk-0-1]"),
        (cluster_in, CLUSTER, "[Link-0-1]", "[Link-source-sink]", "no link to itself"),
        (
            cluster_in,
            CLUSTER,
            "12.5 * mbps",
            "12.5 * MB",
            "[Link-1-sink] bandwidth=12.5 * MB: give",
        ),
        (cluster_in, CLUSTER, "12.5 * mbps", "0 * mbps", "[Link-1-sink] bandwidth=0 * mbps: give"),
        (cluster_in, CLUSTER, "latency=0.05", "latency=-1", "[Link-2-sink] latency=-1: give 0 or"),
        (cluster_in, CLUSTER, "latency=0.05", "", "[Link-2-sink] latency is missing"),
        (solution_in, SOLUTION, "offset=2", "offset=x", "[Settings] offset: x must be a whole"),
        (
            solution_in,
            SOLUTION,
            "[0, 1, 2]",
            "[0, 2]",
            "[Solution] compute_node_2: a node holds con",
        ),
        (
            solution_in,
            SOLUTION,
            "[0, 1, 2]",
            "[2, 1, 0]",
            "[Solution] compute_node_2: a node holds",
        ),
        (solution_in, SOLUTION, "[0, 1, 2]", "[0, 'a']", "[Solution] compute_node_2: a must be a"),
        (solution_in, SOLUTION, "[0, 1, 2]", "[99999]", "compute_node_2: 99999 must be a whole"),
        (
            solution_in,
            SOLUTION,
            "[2, 3]",
            "[3, 4]",
            "[Solution]: node compute_node_3 holds layers 3",
        ),
        (solution_in, SOLUTION, "_4=[]", "_9=[1]", "compute_node_9: the cluster has no such node"),
        (solution_in, SOLUTION, "_4=[]", "_3=[1]", ": no ini file: While reading"),
        (solution_in, SOLUTION, "[Solution]", "[Solutions]", "there is no section [Solution]"),
        (
            simulator_in,
            SIMULATOR,
            '"T4"\nkv',
            '"V4"\nkv',
            "[compute_node_3] machine_type=V4: [Mach",
        ),
        (simulator_in, SIMULATOR, "city=100", "city=-1", "[compute_node_3] kv_cache_capacity: -1"),
        (
            simulator_in,
            SIMULATOR,
            "in=source",
            "in=saucer",
            "link saucer -> compute_node_2: there is",
        ),
        (simulator_in, SIMULATOR, "'between', ", "", ": section [between] is neither among [Comp"),
        (simulator_in, SIMULATOR, "[between]", "[beyond]", ": section [beyond] is neither among"),
        (simulator_in, SIMULATOR, "500.0 * mbps", "500.0 * mb", "[between] bandwidth=500.0 * mb:"),
        (simulator_in, SIMULATOR, "[Coordinator]\nin", "[Coordinator]\nx", "[Coordinator] inbound"),
    ],
)
def test_a_mistake_is_one_line_with_file_section_and_key(
    tmp_path: Path,
    read: Callable[[Path, str], object],
    good: str,
    old: str,
    new: str,
    message: str,
) -> None:
    assert good.count(old) >= 1
    read(tmp_path, good)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        read(tmp_path, good.replace(old, new, 1))
    assert str(error.value).startswith(str(tmp_path / "file.ini"))
    assert "\n" not in str(error.value)


def test_a_section_called_default_changes_no_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[T4\] disk_speed is missing"):
        machines_in(
            tmp_path,
            "[T4]\nvram_size=1\ninbound_nic_speed=1\noutbound_nic_speed=1\n[DEFAULT]\ndisk_speed=1",
        )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.ini cannot be read: No such file"):
        read_machines(tmp_path / "none.ini")
    (tmp_path / "bytes.ini").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.ini: no ini file"):
        read_machines(tmp_path / "bytes.ini")


def test_a_long_line_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "m.ini"
    path.write_text("x" * 10_000)
    with pytest.raises(ConfigError, match="no ini file: File contains no section headers") as error:
        read_machines(path)
    assert len(str(error.value)) < 250 + len(str(path))
