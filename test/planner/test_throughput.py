"""Tokens a second of a node: by hand where all nodes are alike, and the fixed point where they are not."""

from __future__ import annotations

import pytest
from planner.straight_times import StraightTimes

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.topology import Cluster, Node
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.planner import TypicalLoad, node_throughput

MODEL = ModelFacts(name="toy", num_layers=10, layer_bytes=1e9, activation_bytes=100)
LOAD = TypicalLoad(mean_input=100, mean_output=50)


def times_of(kv: int, *, slower: float = 1.0) -> StraightTimes:
    """1 ms a prompt token, 10 ms + 0.1 ms a decode, `slower` times that."""
    return StraightTimes(
        kv,
        prompt_token_s=slower * 1e-3,
        decode_base_s=slower * 10e-3,
        decode_token_s=slower * 1e-4,
    )


def cluster(**counts: int) -> Cluster:
    return Cluster(
        tuple(
            Node(name=f"{device}-{i}", device=device, memory_bytes=10e9)
            for device, count in counts.items()
            for i in range(count)
        ),
        (),
    )


def test_with_much_memory_a_round_is_a_prompt_and_its_answer():
    """w = 2/10, avail = 150000: 200 decodes and 4 prompts a round, so one prompt: (1, 100, 50)."""
    found = node_throughput(cluster(a=5), MODEL, {"a": times_of(500_000)}, LOAD)
    assert found.of("a", 2) == pytest.approx(150 / (2 * (0.1 + 0.015)))


def test_with_little_memory_a_prompt_comes_once_in_several_rounds():
    """w = 2/10, avail = 15000: 20 decodes and 0.4 prompts a round, 2.5 rounds for a prompt."""
    found = node_throughput(cluster(a=5), MODEL, {"a": times_of(50_000)}, LOAD)
    assert found.of("a", 2) == pytest.approx((60 / 0.4) / (2 * (0.1 + 0.012 / 0.4)))


def test_the_first_guess_does_not_matter_and_speeds_follow_from_themselves():
    """Batches of a thousand, so that rounding them to whole numbers changes a thousandth."""
    times = {"a": times_of(100_000_000), "b": times_of(150_000_000, slower=3.0)}
    typical = {"a": 3, "b": 2}
    guesses = [{}, {"a": 1.0, "b": 500.0}, {"a": 80.0, "b": 2.0}]
    found = [
        node_throughput(
            cluster(a=4, b=4),
            MODEL,
            times,
            TypicalLoad(
                mean_input=1000, mean_output=5000, typical_layers=typical, start_speed=guess
            ),
        )
        for guess in guesses
    ]
    for device in "ab":
        expected = pytest.approx(found[0].tokens_per_s[device], rel=2e-3)
        assert [other.tokens_per_s[device] for other in found[1:]] == [expected, expected]
    speed = {device: typical[device] * found[0].of(device, typical[device]) for device in "ab"}
    mean_s = (4 * 3 / speed["a"] + 4 * 2 / speed["b"]) / (4 * 3 + 4 * 2)
    for device, slower in (("a", 1.0), ("b", 3.0)):
        for k in (1, 2, 3, 4):
            share = (k / speed[device]) / ((10 - k) * mean_s + k / speed[device])
            decodes = min(5000.0, 0.3 * times[device].kv / 6000 * share)
            rounds = 5000 / decodes
            seconds = slower * (1.0 + (10e-3 + decodes * 1e-4) * rounds)
            assert found[0].of(device, k) == pytest.approx(6000 / (k * seconds), rel=2e-3)


def test_the_compute_bound_takes_the_best_number_of_layers_of_each_node():
    found = node_throughput(cluster(a=5), MODEL, {"a": times_of(500_000)}, LOAD)
    best = max(k * found.of("a", k) for k in (1, 2, 3, 4))
    assert found.compute_bound(cluster(a=5)) == pytest.approx(5 * best / 10)


def test_a_small_cluster_holds_more_than_is_typical():
    """3 nodes x 2 layers are fewer than 1.2 x 10, so the other figures count: here they differ."""
    times = {"a": times_of(50_000), "b": times_of(50_000, slower=2.0)}
    load = TypicalLoad(
        mean_input=100,
        mean_output=50,
        typical_layers={"a": 2, "b": 2},
        typical_layers_small={"a": 4, "b": 1},
    )
    same = TypicalLoad(mean_input=100, mean_output=50, typical_layers={"a": 4, "b": 1})
    few = node_throughput(cluster(a=2, b=1), MODEL, times, load)
    assert few.tokens_per_s != node_throughput(cluster(a=3, b=3), MODEL, times, load).tokens_per_s
    assert few.tokens_per_s != node_throughput(cluster(a=3, b=3), MODEL, times, same).tokens_per_s
    assert few.of("a", 4) > 0


def test_figures_of_a_device_count_however_it_is_spelled():
    load = TypicalLoad(
        mean_input=100,
        mean_output=50,
        typical_layers={"A": 2, "B": 1},
        typical_layers_small={"A": 1, "B": 2},
        start_speed={"A": 1e-3},
    )
    times = {name: times_of(50_000, slower=1 + (name in "bB")) for name in "abAB"}
    for count in (2, 5):
        lower = node_throughput(cluster(a=count, b=2), MODEL, times, load)
        upper = node_throughput(cluster(A=count, B=2), MODEL, times, load)
        assert list(lower.tokens_per_s.values()) == list(upper.tokens_per_s.values())


def test_a_device_that_holds_no_layer_is_left_aside():
    times = {"a": times_of(50_000), "tiny": StraightTimes(0, max_layers=0)}
    alone = node_throughput(cluster(a=5), MODEL, times, LOAD)
    both = node_throughput(cluster(a=5, tiny=2), MODEL, times, LOAD)
    assert both.tokens_per_s == {**alone.tokens_per_s, "tiny": ()}
    assert both.max_layers(Node(name="t", device="tiny", memory_bytes=10e9)) == 0
    with pytest.raises(CapacityError, match=r"holds 0 \(2 tiny x 0\)"):
        node_throughput(cluster(tiny=2), MODEL, times, LOAD)


def test_memory_and_profile_both_limit_the_layers_of_a_node():
    found = node_throughput(cluster(a=5), MODEL, {"a": times_of(50_000)}, LOAD)
    small = Node(name="a", device="a", memory_bytes=7e9)
    assert found.max_layers(small) == 3
    assert found.rates(small) == found.tokens_per_s["a"][:3]
    for much in (1e12, float("inf")):
        assert found.max_layers(Node(name="a", device="a", memory_bytes=much)) == 4


def test_a_model_that_does_not_fit_is_one_line_saying_by_how_much():
    with pytest.raises(CapacityError) as error:
        node_throughput(cluster(a=2), MODEL, {"a": times_of(50_000)}, LOAD)
    assert str(error.value) == (
        "toy has 10 layers and the cluster holds 8 (2 a x 4): add nodes, or memory, or let weights "
        "take more than 50% of it"
    )


def test_a_device_without_times_is_named():
    with pytest.raises(ConfigError, match=r"node b-0: .* no times of toy on b, only on a"):
        node_throughput(cluster(a=3, b=1), MODEL, {"a": times_of(50_000)}, LOAD)


def test_a_node_without_room_for_a_request_is_refused():
    with pytest.raises(CapacityError, match="KV cache for 100 tokens"):
        node_throughput(cluster(a=5), MODEL, {"a": times_of(100)}, LOAD)


@pytest.mark.parametrize(
    "figures",
    [{"mean_input": 0}, {"mean_output": float("nan")}, {"kv_share": 0.0}, {"weight_share": 1.5}],
)
def test_figures_that_make_no_sense_are_refused(figures):
    with pytest.raises(ConfigError, match=next(iter(figures))):
        TypicalLoad(**figures)
