"""The network interface through which a node reaches the others.

gloo listens on the address to which the node's own name resolves. The Debian and Ubuntu installers
map that name to 127.0.1.1: nodes with such a hosts file could never connect.
"""

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ROUTES, _ROUTES_6 = Path("/proc/net/route"), Path("/proc/net/ipv6_route")
_UP, _REJECT = 0x1, 0x200  # RTF_UP and RTF_REJECT in Linux's include/uapi/linux/route.h


def own_address(host: str, port: int) -> str | None:
    """Return the local address used to reach `host`; None if it has no address or route.

    No packets are sent.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as probe:
            # Connecting a UDP socket only looks up the route, which fixes the local address.
            try:
                probe.connect(address)
            except OSError:
                continue
            return str(probe.getsockname()[0])
    return None


def is_loopback(address: str) -> bool:
    """Return whether only this node can reach the address."""
    return _parsed(address).is_loopback


def interface_to(address: str) -> str | None:
    """Return the interface that the kernel's main routing table gives for an address, or None."""
    target = _parsed(address)
    routes = _routes_6(_ROUTES_6) if target.version == 6 else _routes(_ROUTES)
    best: tuple[int, int, str] | None = None
    for network, metric, interface in routes:
        if target in network:
            # As in the kernel: the longest prefix wins, then the lowest metric, then the route
            # listed first.
            found = network.prefixlen, -metric, interface
            best = found if best is None or found[:2] > best[:2] else best
    return best[2] if best else None


def _parsed(address: str) -> Address:
    # After a `%` comes the scope of a link-local address; ::ffff:a.b.c.d is routed as IPv4.
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


_Route = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int, str]


def _routes(path: Path) -> Iterable[_Route]:
    """Yield IPv4 routes; their networks are hexadecimal, in little-endian byte order."""
    for line in _lines(path)[1:]:
        interface, destination, _, flags, _, _, metric, mask, *_ = line.split()
        if int(flags, 16) & _UP and not int(flags, 16) & _REJECT:
            # The kernel prints the big-endian address as a native integer, so on little-endian
            # machines its bytes are reversed: 0101A8C0 is 192.168.1.1.
            address, bits = (
                int.from_bytes(bytes.fromhex(x), "little") for x in (destination, mask)
            )
            yield ipaddress.IPv4Network((address, bits.bit_count())), int(metric), interface


def _routes_6(path: Path) -> Iterable[_Route]:
    for line in _lines(path):
        # Unlike in /proc/net/route, there is no header, and addresses are in network byte order.
        # The file may include routes to this machine's own addresses, through lo.
        destination, prefix, _, _, _, metric, _, _, flags, interface = line.split()
        if int(flags, 16) & _UP and not int(flags, 16) & _REJECT and interface != "lo":
            network = ipaddress.IPv6Network((int(destination, 16), int(prefix, 16)))
            yield network, int(metric, 16), interface


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
