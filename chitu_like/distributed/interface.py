"""Which of this machine's interfaces reaches the other ranks. No torch.

torchrun tells each process how many ranks its node has and where the master is; the routing table of
the system tells the rest.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from chitu_like.core.errors import PeerError

LOOPBACK = "127.0.0.1"

_SIOCGIFCONF = 0x8912
_IFREQ = struct.Struct("16s4x4s16x")  # name, a sockaddr_in's IPv4 address; 40 bytes where we run
_MAX_ADDRESSES = 1024


def local_ranks(environ: Mapping[str, str]) -> range:
    """World ranks of this node: torchrun numbers them one after the other.

    Without torchrun's variables nothing is known of the node, so this rank alone.
    """
    rank = int(environ["RANK"])
    first = rank - int(environ.get("LOCAL_RANK", "0"))
    return range(first, first + int(environ.get("LOCAL_WORLD_SIZE", "1")))


def local_address_towards(host: str, port: int) -> str:
    """The address of the one interface that packets to a host leave by; none is sent.

    A host that is this one gives the very address its name resolves to.

    Raises: PeerError where the name is unknown or no route leads there.
    """
    try:
        for family, kind, _, _, peer in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                if probe.connect_ex(peer) == 0:
                    return str(probe.getsockname()[0])
    except OSError as error:
        raise PeerError(f"cannot find the way to {host}: {error.strerror}") from None
    raise PeerError(f"no route from this machine leads to {host}")


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def interface_of(address: str) -> str | None:
    """The interface that has an address of this machine; None where none has."""
    wanted = ipaddress.ip_address(address.partition("%")[0])
    pairs = _ipv4_interfaces() if wanted.version == 4 else _ipv6_interfaces()
    return next((name for name, own in pairs if own == wanted), None)


def pin_interface(environ: MutableMapping[str, str], address: str) -> None:
    """Make gloo and NCCL meet on the interface of an address, where the user named none."""
    name = interface_of(address)
    if name is not None:
        environ.setdefault("GLOO_SOCKET_IFNAME", name)
        environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # '=': NCCL else takes a prefix


def _ipv4_interfaces() -> Iterator[tuple[str, ipaddress.IPv4Address]]:
    """(interface, address) of this machine; an interface may have several."""
    found = array.array("B", bytes(_MAX_ADDRESSES * _IFREQ.size))
    where, _ = found.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFCONF, struct.pack("iP", len(found), where))
    (size, _) = struct.unpack("iP", answer)
    for name, address in _IFREQ.iter_unpack(found.tobytes()[:size]):
        yield name.rstrip(b"\0").decode(), ipaddress.IPv4Address(address)


def _ipv6_interfaces() -> Iterator[tuple[str, ipaddress.IPv6Address]]:
    """As above; the system lists them as text: address, index, prefix, scope, flags, interface."""
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else ():
        digits, *_, name = line.split()
        yield name, ipaddress.IPv6Address(bytes.fromhex(digits))
