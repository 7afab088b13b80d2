"""Feeders: as many as fit, or each when it comes."""

from __future__ import annotations

from layer_cluster import requests_of

from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.feeders import OfflineFeeder, OnlineFeeder
from chitu_like.simulator.workload import PlannedRequest


class Door:
    """Lets in as many as it has places."""

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self.entered: list[tuple[int, float]] = []

    def submit(self, request: PlannedRequest, born_s: float) -> bool:
        if len(self.entered) < self.num_places:
            self.entered.append((request.index, born_s))
            return True
        return False

    def has_room(self) -> bool:
        return len(self.entered) < self.num_places


def test_offline_begins_with_twenty_a_tenth_of_a_second_apart() -> None:
    clock, door = VirtualClock(), Door(100)
    OfflineFeeder(clock, iter(requests_of(*[(1, 1)] * 50)), door.submit, door.has_room).start(3.0)
    clock.run()
    assert door.entered == [(i, 3.0 + i * 0.1) for i in range(20)]


def test_offline_sends_one_more_for_each_that_is_finished_while_there_is_room() -> None:
    clock, door = VirtualClock(), Door(22)
    feeder = OfflineFeeder(clock, iter(requests_of(*[(1, 1)] * 50)), door.submit, door.has_room)
    feeder.start(0.0)
    for time_s in (5.0, 5.0, 5.0, 6.0):
        clock.at(time_s, feeder.freed)
    clock.run()
    assert door.entered[20:] == [(20, 5.1), (21, 5.1)]
    assert not feeder.is_done


def test_offline_tries_a_request_that_found_no_way_again() -> None:
    clock, door = VirtualClock(), Door(2)
    feeder = OfflineFeeder(
        clock, iter(requests_of((1, 1), (1, 1), (1, 1))), door.submit, lambda: True
    )
    feeder.start(0.0)
    clock.run()
    assert door.entered == [(0, 0.0), (1, 0.1)]
    door.num_places = 3
    feeder.freed()
    clock.run()
    assert [index for index, _ in door.entered] == [0, 1, 2]
    assert feeder.is_done


def test_online_submits_each_when_it_comes() -> None:
    clock, door = VirtualClock(), Door(9)
    feeder = OnlineFeeder(clock, iter(requests_of(*[(1, 1)] * 3, gap_s=0.5)), door.submit)
    feeder.start(2.0)
    clock.run()
    assert door.entered == [(0, 2.0), (1, 2.5), (2, 3.0)]
    assert feeder.is_done


def test_online_keeps_who_finds_no_way_in_order_and_remembers_when_they_came() -> None:
    clock, door = VirtualClock(), Door(1)
    feeder = OnlineFeeder(clock, iter(requests_of(*[(1, 1)] * 4, gap_s=0.5)), door.submit)
    feeder.start(0.0)
    clock.run()
    assert (feeder.num_waiting, feeder.is_done) == (3, False)
    door.num_places = 3
    feeder.freed()
    assert door.entered == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert feeder.num_waiting == 1
