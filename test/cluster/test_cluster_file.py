from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chitu_like.cluster import cluster_file
from chitu_like.cluster.cluster_file import find_cluster, read_cluster, write_cluster
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.core.errors import ConfigError

BY_HAND = """\
nodes:
  - {name: big, device: A100, memory_bytes: 40 * GB, nic_in: 10 * GB/s, region: east}
  - {name: small, count: 2, device: L4, memory_bytes: 2.4e10, disk: 1e9}
links:
  - {source: source, target: all, bandwidth: 1 * GB/s, latency_s: 1 * ms}
  - {source: all, target: all, bandwidth: 500 * MB/s}
  - {source: [big, small-1], target: sink, bandwidth: 1000000, latency_s: 0.25}
"""

sizes = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)
names = st.one_of(st.just("all"), st.text(min_size=1, max_size=6)).filter(
    lambda name: name not in (SOURCE, SINK)
)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    rates = st.one_of(st.just(math.inf), sizes)
    nodes = [
        Node(
            name=name,
            device=draw(names),
            memory_bytes=draw(rates),
            nic_in=draw(rates),
            nic_out=draw(rates),
            disk=draw(rates),
            region=draw(st.text(max_size=4)),
        )
        for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))
    ]
    ends = [node.name for node in nodes]
    pairs = [
        (a, b)
        for a in (SOURCE, *ends)
        for b in (*ends, SINK)
        if a != b and (a, b) != (SOURCE, SINK)
    ]
    some = draw(st.lists(st.sampled_from(pairs), unique=True))
    figures = st.tuples(sizes, st.floats(min_value=0, allow_nan=False, allow_infinity=False))
    kinds = draw(st.lists(figures, min_size=1, max_size=2))
    links = []
    for a, b in some:
        bandwidth, latency_s = draw(st.sampled_from(kinds))
        links.append(Link(source=a, target=b, bandwidth=bandwidth, latency_s=latency_s))
    return Cluster(tuple(nodes), tuple(links))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(clusters())
def test_a_cluster_is_read_back_as_it_was_written(tmp_path: Path, cluster: Cluster) -> None:
    path = tmp_path / "new" / "cluster.yaml"
    write_cluster(cluster, path, comment="A cluster.\n\nOf two lines.")
    assert read_cluster(path) == cluster


def test_a_file_by_hand_may_say_much_in_few_lines(tmp_path: Path) -> None:
    cluster = read_cluster(write(tmp_path, BY_HAND))
    big, *small = cluster.nodes
    assert big == Node(name="big", device="A100", memory_bytes=40e9, nic_in=10e9, region="east")
    assert [node.name for node in small] == ["small-0", "small-1"]
    assert {(node.memory_bytes, node.disk, node.nic_in) for node in small} == {
        (24e9, 1e9, math.inf)
    }
    assert len(cluster.links) == 3 + 3 * 2 + 2
    assert cluster.link_between["big", "small-1"] == Link(
        source="big", target="small-1", bandwidth=5e8, latency_s=0.0
    )
    assert cluster.link_between[SOURCE, "small-0"].latency_s == 0.001
    assert cluster.link_between["small-1", SINK].bandwidth == 1e6
    assert ("small-0", SINK) not in cluster.link_between


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nodes:", "node:", "unknown key 'node': use nodes, links"),
        ("nodes:", "links: []\nnodes:", "line 5: no yaml: key 'links' is there twice"),
        ("device: A100", "devise: A100", "nodes[0]: unknown key 'devise': use name, count"),
        ("device: A100, ", "", "nodes[0]: device is missing"),
        ("device: A100", "device: []", "nodes[0]: device=[]: must be a text"),
        ("40 * GB", "40 * gb", "nodes[0]: memory_bytes=40 * gb: give a number, or a number times"),
        ("10 * GB/s", "10 * gbps", "nodes[0]: nic_in=10 * gbps: give a number"),
        ("10 * GB/s", "0", "node big: nic_in=0.0: give more than 0"),
        ("40 * GB", "yes", "memory_bytes=True: must be a number"),
        ("40 * GB", ".nan", "memory_bytes=nan: must be a number"),
        ("40 * GB", "1" + "0" * 400, "must be a number"),
        ("count: 2", "count: 0", "nodes[1]: count=0: must be a whole number from 1 to 4096"),
        ("count: 2", "count: 999999999", "nodes[1]: count=999999999: must be a whole number"),
        ("count: 2", "count: 4096", "nodes[1]: too many nodes: 4096 at most"),
        ("name: big", "name: source", "node source: the name is taken"),
        ("name: big", "name: small-1", "node small-1: the name is taken"),
        ("[big, small-1]", "[big, huge]", "link huge -> sink: there is no node huge"),
        ("[big, small-1]", "[big, big]", "link big -> sink is there twice"),
        ("[big, small-1]", "[big, {}]", "links[2]: source: 1={}: must be a text"),
        ("1000000", "-1", "link big -> sink: bandwidth=-1.0"),
        ("1000000", ".inf", "link big -> sink: bandwidth=inf"),
        ("links:", "links: 3\nx:", "unknown key 'x'"),
        ("nodes:", "nodes: [\n", "no yaml"),
        ("links:", "x: &a {k: 1}\ny: {<<: [*a, *a]}\nlinks:", "no yaml: keys cannot be merged"),
        ("count: 2", "count: 0x" + "f" * 5000, "no yaml: a number of more than 1000 digits"),
        ("name: big", "name: 0x" + "f" * 5000, "no yaml: a number of more than 1000 digits"),
        ("nodes:", "nodes: !!python/object/apply:os.system [ls]\nx:", "no yaml"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in BY_HAND
    path = write(tmp_path, BY_HAND.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        read_cluster(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping of keys to values, not None"),
        ("[1, 2]", "must be a mapping"),
        ("nodes: 3\nlinks: []", "nodes=3: must be a list"),
        ("nodes: [3]\nlinks: []", "nodes[0]: must be a mapping"),
        ("nodes: []\nlinks: []", "at least one node"),
        ("[" * 5000, "no yaml"),
        ("a: \x00", "no yaml"),
    ],
)
def test_what_is_no_cluster_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_cluster(write(tmp_path, text))


def test_a_short_file_that_means_a_long_one_is_refused_at_once(tmp_path: Path) -> None:
    lists = "[&a [x, x, x, x, x, x, x, x, x, x]"
    for inner, outer in itertools.pairwise("abcdefghijkl"):
        lists += f", &{outer} [{', '.join([f'*{inner}'] * 10)}]"
    path = write(tmp_path, f"nodes: [{{region: {lists}], device: T4, name: *l}}]\nlinks: []")
    with pytest.raises(ConfigError, match=r"nodes\[0\]: name=\[.*: must be a text") as error:
        read_cluster(path)
    assert len(str(error.value)) < 150 + len(str(path))


def test_links_are_counted_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_file, "MAX_LINKS", 11)
    with pytest.raises(ConfigError, match=r"links\[1\]: too many links: 11 at most"):
        read_cluster(write(tmp_path, BY_HAND))


def test_nodes_and_links_take_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    write_cluster(read_cluster(write(tmp_path, BY_HAND)), path, "Three.\n\nSee there.")
    assert path.read_text().splitlines() == [
        "# Three.",
        "#",
        "# See there.",
        "nodes:",
        "- {name: big, device: A100, memory_bytes: 40 * GB, nic_in: 10 * GB/s, region: east}",
        "- {name: small-0, device: L4, memory_bytes: 24 * GB, disk: 1 * GB/s}",
        "- {name: small-1, device: L4, memory_bytes: 24 * GB, disk: 1 * GB/s}",
        "links:",
        "- {source: source, target: [big, small-0, small-1], bandwidth: 1 * GB/s, latency_s: 1 * ms}",
        "- {source: big, target: [small-0, small-1], bandwidth: 500 * MB/s, latency_s: 0.0}",
        "- {source: small-0, target: [big, small-1], bandwidth: 500 * MB/s, latency_s: 0.0}",
        "- {source: small-1, target: [big, small-0], bandwidth: 500 * MB/s, latency_s: 0.0}",
        "- {source: big, target: sink, bandwidth: 1 * MB/s, latency_s: 250 * ms}",
        "- {source: small-1, target: sink, bandwidth: 1 * MB/s, latency_s: 250 * ms}",
    ]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    cluster = read_cluster(write(tmp_path, BY_HAND))
    with pytest.raises(ConfigError, match="cannot be written"):
        write_cluster(cluster, tmp_path / "cluster.yaml" / "below")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file"):
        read_cluster(tmp_path / "none.yaml")


def test_a_cluster_is_found_by_path_or_name(tmp_path: Path) -> None:
    path = write(tmp_path, BY_HAND)
    assert find_cluster(str(path)) == path
    assert find_cluster("mixed-24").name == "mixed-24.yaml"
    with pytest.raises(ConfigError, match=r"cluster=mixed24: .*did you mean mixed-24"):
        find_cluster("mixed24")
    with pytest.raises(ConfigError, match="one of h100x8, h200, mixed-24, regions-24"):
        find_cluster("a/b.yaml")


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return path
