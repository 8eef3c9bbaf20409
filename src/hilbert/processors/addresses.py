"""Which network addresses a server may visit on behalf of a stranger: those of the public internet.

Everything else could be the operator's own: this machine, its neighbours, the metadata service of a cloud.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

# What is assigned to hosts of the internet (IANA, IPv6 address space); all else is special.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# RFC 6052: an IPv4 address in the last 32 bits, for networks that have only IPv6.
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Whether a numeric address belongs to the public internet.

    An IPv6 address that stands for an IPv4 address (mapped, 6to4, Teredo, NAT64) is judged by that.
    """
    address = ip_address(text)
    if isinstance(address, IPv4Address):
        return _is_public_v4(address)
    inner = _inner(address)
    if inner:
        return all(map(_is_public_v4, inner))
    return address in _GLOBAL_UNICAST and address.is_global and not address.is_multicast


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved


def _inner(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address leads to."""
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFF_FFFF),)
    return ()
