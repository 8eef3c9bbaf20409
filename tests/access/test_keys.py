"""Which header carries a key, and the true address of whoever sent it."""

from __future__ import annotations

import gc
import hashlib
import types
from pathlib import Path

import pytest

from hilbert.access import ANONYMOUS, Keys, Proxies, group_of
from hilbert.access import keys as keys_module
from hilbert.config.networks import wrong_networks
from hilbert.errors import Unauthorized


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys"
    path.write_text("tok_file # alice\n")
    return Keys("tok_single", str(path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("authorization", "Bearer {}"),
        ("authorization", "bearer   {} "),
        ("authorization", "{}"),
        ("x-api-key", "{}"),
        ("x-api-key", " {}"),
    ],
)
def test_where_a_key_may_stand(keys: Keys, name: str, value: str) -> None:
    def ask(token: str) -> str:
        return keys.identify({name.encode(): value.format(token).encode()}).label

    assert ask("tok_file") == "alice" and ask("tok_single") == "api-key"
    for wrong in ("tok_", "tok_file2", "TOK_FILE", "Basic tok_file", ""):
        with pytest.raises(Unauthorized):
            ask(wrong)


def test_either_header_will_do_and_none_is_said(keys: Keys) -> None:
    assert keys.identify({b"authorization": b"Bearer old", b"x-api-key": b"tok_file"}).label == "alice"
    both = {b"authorization": b"Bearer tok_file", b"x-api-key": b"tok_single"}
    assert keys.identify(both).label == "alice"  # the one in `Authorization`
    both = {b"authorization": b"tok_single", b"x-api-key": b"tok_file"}
    assert keys.identify(both).label == "api-key"
    with pytest.raises(Unauthorized, match="needed"):
        keys.identify({})
    with pytest.raises(Unauthorized, match="wrong"):
        keys.identify({b"authorization": b"Bearer \xff\xfe"})


def test_the_single_key_administers_even_where_the_file_names_it_too(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("tok_single models=bge rate=1 # a guest\ntok_file # alice\n")
    keys = Keys("tok_single", str(path))
    for headers in ({b"authorization": b"Bearer tok_single"}, {b"x-api-key": b"tok_single"}):
        key = keys.identify(headers)
        assert (key.label, key.is_admin, key.models) == ("api-key", True, None)


@pytest.mark.parametrize("given", [b"", b" ", b"Bearer", b"Bearer ", b"bearer  ", b"two words"])
def test_what_is_no_key_is_none_even_where_a_line_is_its_digest(tmp_path: Path, given: bytes) -> None:
    """The digest of nothing is what a script writes whose variable is not set."""
    path = tmp_path / "keys"
    no_keys = (b"", b"Bearer", b"two words")
    path.write_text("".join(f"sha256:{hashlib.sha256(each).hexdigest()} # x\n" for each in no_keys))
    with pytest.raises(Unauthorized):
        Keys(keys_file=str(path)).identify({b"authorization": given})
    with pytest.raises(Unauthorized):
        Keys(keys_file=str(path)).identify({b"x-api-key": b""})


def test_without_keys_everyone_may_call() -> None:
    keys = Keys()
    assert keys.is_open and keys.identify({b"authorization": b"Bearer x"}) is ANONYMOUS


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ("", "10.0.0.1", "1.2.3.4", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.0/8", "11.0.0.1", "1.2.3.4", "11.0.0.1"),  # who is not trusted may not say who it is
        ("10.0.0.0/8", "10.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),  # the left is the client's own tale
        ("10.0.0.0/8", "10.0.0.1", "6.6.6.6, 1.2.3.4, 10.9.9.9", "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.1", "10.2.2.2", "10.2.2.2"),
        ("10.0.0.0/8", "10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", "1.2.3.4, nonsense\x1b", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1", "1.2.3.4:5678", "1.2.3.4"),
        ("10.0.0.1", "10.0.0.1", '"[2001:db8::1]:99"', "2001:db8::1"),
        ("10.0.0.1", "10.0.0.1", "::ffff:1.2.3.4", "1.2.3.4"),
        ("private", "172.18.0.5", "203.0.113.9", "203.0.113.9"),
        ("private", None, "203.0.113.9", "203.0.113.9"),
        ("unix", None, "203.0.113.9", "203.0.113.9"),
        ("10.0.0.0/8", None, "203.0.113.9", "unix"),
    ],
)
def test_the_true_address(trusted: str, peer: str | None, forwarded: str, client: str) -> None:
    headers = {b"x-forwarded-for": forwarded.encode("latin-1")} if forwarded else {}
    for _ in range(2):
        assert Proxies(trusted).client_of(peer, headers) == client


def test_networks_that_are_none() -> None:
    assert wrong_networks("10.0.0.0/8, private") is None
    assert "'nginx' is no address" in (wrong_networks("private,nginx") or "")


def test_limits_count_ipv6_customers_and_not_their_addresses() -> None:
    assert group_of("2001:db8:1:2:3::1") == group_of("2001:db8:1:2:ffff::9") == "2001:db8:1:2::"
    assert group_of("2001:db8:1:3::1") != group_of("2001:db8:1:2::1")
    assert group_of("::ffff:1.2.3.4") == "1.2.3.4" and group_of("unix") == "unix"


def test_no_token_stays_in_memory(keys: Keys) -> None:
    for token in (b"tok_file", b"tok_single"):
        keys.identify({b"authorization": b"Bearer " + token})
    seen: set[int] = set()
    ahead = [keys, *(each for each in vars(keys_module).values() if hasattr(each, "cache_info"))]
    while ahead:
        each = ahead.pop()
        if id(each) in seen or isinstance(each, types.ModuleType | types.FunctionType | type):
            continue
        seen.add(id(each))
        assert not isinstance(each, bytes) or b"tok_" not in each
        ahead += gc.get_referents(each)
    assert len(seen) > 10
