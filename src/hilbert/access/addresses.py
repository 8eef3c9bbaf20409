"""The true address of a client behind proxies that we trust.

A trusted proxy appends the address it saw to ``X-Forwarded-For``; what stands further left was written by
somebody it saw, and may be a lie. So the list is read from the right, through trusted addresses only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache

from hilbert.config.networks import parse_networks

UNIX = "unix"


class Proxies:
    """Whom to believe.

    Args:
        text: see `hilbert.config.networks.parse_networks`.
    Raises:
        ValueError: it is no list of addresses.
    """

    def __init__(self, text: str = "") -> None:
        self._trusted = parse_networks(text)
        self._believes_nobody = not text.strip()
        self._walk = lru_cache(4096)(self._walk_back)

    def client_of(self, peer: str | None, headers: Mapping[bytes, bytes]) -> str:
        """The address of whoever asked.

        Args:
            peer: the other end of the connection; None for a unix socket.
            headers: by lower-case name.
        """
        address = UNIX if peer is None else peer
        if self._believes_nobody:
            return address
        return self._walk(address, headers.get(b"x-forwarded-for", b""))

    def _walk_back(self, address: str, forwarded: bytes) -> str:
        if not self._trusts(address):
            return address
        for hop in reversed(forwarded.decode("latin-1").split(",")):
            found = _plain(hop)
            if found is None:
                return address
            address = found
            if not self._trusts(address):
                return address
        return address

    def _trusts(self, address: str) -> bool:
        if address == UNIX:
            return self._trusted.has_unix
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._trusted.networks)


def group_of(address: str) -> str:
    """The address that limits count for: of IPv6 the /64, as each customer has one to pick from."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Address(int(found) >> 64 << 64))


def _plain(hop: str) -> str | None:
    """An address as a proxy wrote it, without brackets and port; None where it is none."""
    text = hop.strip().strip('"')
    bracketed = re.fullmatch(r"\[([^\]]*)\](:\d+)?", text)
    if bracketed is not None:
        text = bracketed[1]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(found)
