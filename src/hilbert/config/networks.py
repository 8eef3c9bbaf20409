"""Addresses and networks as an operator writes them: ``10.0.0.0/8, 203.0.113.7, private, unix``."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

# What the word `private` stands for: addresses that nobody outside can have.
_PRIVATE = (
    "127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7",
    "fe80::/10", "unix",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Networks:
    """A set of addresses.

    Attributes:
        networks: what belongs to it.
        has_unix: whether the other end of a unix socket belongs to it.
    """

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    has_unix: bool = False


def parse_networks(text: str) -> Networks:
    """Read a list divided by commas; ``private`` is all that is not public, ``unix`` any unix socket.

    Raises:
        ValueError: a word is no address; the message is the remedy.
    """
    import ipaddress  # few need it, and every start would pay

    networks = []
    has_unix = False
    given = [word.strip() for word in text.split(",") if word.strip()]
    for word in chain.from_iterable(_PRIVATE if word == "private" else (word,) for word in given):
        if word == "unix":
            has_unix = True
            continue
        try:
            networks.append(ipaddress.ip_network(word, strict=False))
        except ValueError:
            raise ValueError(
                f"{word!r} is no address; give addresses or networks such as 10.0.0.0/8, private or unix"
            ) from None
    return Networks(tuple(networks), has_unix)


def wrong_networks(text: str) -> str | None:
    """What is wrong with such a list, or None."""
    try:
        parse_networks(text)
    except ValueError as error:
        return str(error)
    return None
