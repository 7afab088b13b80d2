"""Which interface reaches a peer, and that gloo and NCCL are told."""

import socket

import psutil
import pytest

from chitu_like.core.errors import PeerError
from chitu_like.distributed.interface import (
    interface_of,
    is_loopback,
    local_address_towards,
    local_ranks,
    pin_interface,
)

# Every address of this machine that an up interface has, by psutil's account.
OWN_ADDRESSES = [
    (address.address, name)
    for name, addresses in psutil.net_if_addrs().items()
    for address in addresses
    if address.family in (socket.AF_INET, socket.AF_INET6) and psutil.net_if_stats()[name].isup
]


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, range(0, 4)),
        ({"RANK": "6", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, range(4, 8)),
        ({"RANK": "3"}, range(3, 4)),
    ],
)
def test_a_node_holds_consecutive_ranks(environ: dict[str, str], ranks: range) -> None:
    assert local_ranks(environ) == ranks


@pytest.mark.parametrize(("address", "name"), OWN_ADDRESSES)
def test_an_own_address_is_reached_by_itself_and_has_its_interface(address: str, name: str) -> None:
    assert local_address_towards(address, 1).partition("%")[0] == address.partition("%")[0]
    assert interface_of(address) == name


def test_loopback_is_known_by_name_and_number() -> None:
    for host in ("localhost", "127.0.0.1", "127.0.1.1"):
        assert is_loopback(local_address_towards(host, 29500))
    assert is_loopback("::1")
    assert not is_loopback("192.0.2.2")
    assert not is_loopback("fe80::1%eth0")


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(PeerError, match=r"cannot find the way to no-such-host\.invalid"):
        local_address_towards("no-such-host.invalid", 29500)


def test_an_address_of_nobody_here_has_no_interface_and_pins_none() -> None:
    environ: dict[str, str] = {}
    for address in ("203.0.113.7", "2001:db8::7"):
        assert interface_of(address) is None
        pin_interface(environ, address)
    assert environ == {}


def test_the_users_own_choice_of_interface_stays() -> None:
    environ = {"NCCL_SOCKET_IFNAME": "ib0"}
    pin_interface(environ, "127.0.0.1")
    assert environ == {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "lo"}
