"""Where a peer is, and under which name its connections are counted together.

An address of this machine or of a private network, or a UNIX socket, may be a proxy's, behind which there are many.
Whoever comes from the open network is counted as what he is, whatever his headers say, unless it was said how
many proxies are to be trusted.
"""

from __future__ import annotations

import ipaddress
import re
from enum import Enum
from functools import lru_cache

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

__all__ = ["PROXIES", "Where", "forwarded_for", "is_local", "is_passed_on", "place_of", "where_from"]

#: Headers, by names in lower case, by which a proxy says that it passes on what another has asked for.
PROXIES = frozenset({"via", "forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})

_PASSED_ON = re.compile(rb"\r\n(?:x-forwarded-[a-z-]+|%b)[ \t]*:" % "|".join(sorted(PROXIES)).encode(), re.IGNORECASE)
_FORWARDED_FOR = re.compile(rb"\r\nx-forwarded-for[ \t]*:([^\r\n]*)", re.IGNORECASE)
_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")

# RFC 1918, 3927, 4193, 4291 and 6598: networks from which nobody comes through the open one.
_PRIVATE = [
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
]


class Where(Enum):
    """How far away an address is."""

    HERE = "this machine"
    NEAR = "a private network"
    FAR = "the open network"


def is_local(address: object) -> bool:
    """Whether a transport's peer is on this machine: loopback, or a UNIX socket."""
    if isinstance(address, UNIXAddress):
        return True
    if not isinstance(address, IPv4Address | IPv6Address):
        return False
    return place_of(address.host)[1] is Where.HERE


@lru_cache(maxsize=4096)
def place_of(host: str) -> tuple[str, Where]:
    """The name under which connections of `host` are counted together, and how far away it is.

    Of IPv6 it is the /64, which is what one customer has (RFC 6177); what is no address is counted as it is.
    """
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host, Where.FAR
    # On a listener for both families an IPv4 peer looks like `::ffff:127.0.0.1`.
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback:
        return str(ip), Where.HERE
    where = Where.NEAR if any(ip in network for network in _PRIVATE if network.version == ip.version) else Where.FAR
    if ip.version == 4:
        return str(ip), where
    return str(ipaddress.ip_network((int(ip), 64), strict=False)), where


def where_from(peer: object, head: bytes, trusted: int) -> tuple[str | None, Where]:
    """The name under which a request is counted, None for nobody's in particular, and how far away it comes from.

    `peer` is the transport's address, `head` the request's, `trusted` how many proxies append to X-Forwarded-For.
    """
    forwarded = forwarded_for(head, trusted) if trusted else None
    if forwarded:
        name, where = place_of(forwarded)
        # Nobody comes from here by a proxy: where there are fewer of them than are trusted, a stranger may write that.
        return name, Where.FAR if where is Where.HERE else where
    if not isinstance(peer, IPv4Address | IPv6Address):
        return None, Where.HERE
    name, where = place_of(peer.host)
    return (None if where is not Where.FAR and is_passed_on(head) else name), where


def forwarded_for(head: bytes, trusted: int) -> str | None:
    """Whom a request was passed on for, as the first of `trusted` proxies says; None where it says nothing.

    It is at most 64 characters long, all of them visible ASCII.
    """
    named = b",".join(_FORWARDED_FOR.findall(head)).decode("ascii", "replace")
    names = [name.strip() for name in named.split(",")][-trusted:]
    name = "".join(char for char in names[0] if "!" <= char <= "~")[:64]
    port = _PORT.fullmatch(name)
    return (port[1] or port[2] if port else name) or None


def is_passed_on(head: bytes) -> bool:
    """Whether a request's headers say that a proxy passed it on."""
    return _PASSED_ON.search(head) is not None
