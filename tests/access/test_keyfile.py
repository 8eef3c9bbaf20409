"""The keys file, line by line; promises 5 and 8 of seed 000."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilbert.access import BadKeyFile, KeyTable, keyfile, parse_keys
from hilbert.config.limits import Limits


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def labels(table: KeyTable) -> dict[bytes, str]:
    return {key.digest: key.label for key in table.keys.values()}


def test_every_form_of_a_line() -> None:
    text = (
        "\ufeff# the keys of this server\r\n"
        "\r\n"
        "tok_1 # alice <alice@example.com>\r\n"
        "   tok_2\t#   team b, second key #2   \r\n"
        "tok_3#c\r"
        f"sha256:{digest('tok_4').hex().upper()} # hashed\n"
        "tok_5\n"
        "tok_é # accented"  # no end of line
    )
    table = parse_keys(text.encode())
    assert table.complaints == ()
    assert labels(table) == {
        digest("tok_1"): "alice <alice@example.com>",
        digest("tok_2"): "team b, second key #2",
        digest("tok_3"): "c",
        digest("tok_4"): "hashed",
        digest("tok_5"): f"key-{digest('tok_5').hex()[:8]}",
        digest("tok_é"): "accented",
    }


def test_the_digest_that_is_quick_for_few_bytes_is_not_taken_for_many(monkeypatch) -> None:
    seen: list[int] = []
    real = keyfile._sha256_of_few
    monkeypatch.setattr(keyfile, "_sha256_of_few", lambda token: seen.append(len(token)) or real(token))
    for length in (0, 40, 512, 513, 65_536):
        assert keyfile.digest_of(b"x" * length) == hashlib.sha256(b"x" * length).digest()
    assert seen == [0, 40, 512]


def test_settings_of_one_key() -> None:
    table = parse_keys(b"t models=bge,e5 admin rate=2.5 burst=7 tokens=900 concurrent=3 # a\nu # b")
    key = table.find(b"t")
    assert key is not None and key.is_admin and key.models == {"bge", "e5"}
    assert key.limits == Limits(2.5, 7, 900, 3)
    plain = table.find(b"u")
    assert plain is not None and not plain.is_admin and plain.models is None and plain.limits == Limits()


@pytest.mark.parametrize(
    "line",
    [
        "tok_secret modls=bge # x",
        "tok_secret rate=0",
        "tok_secret models=",
        "sha256:secret # x",
        "a tok_secret",
    ],
)
def test_a_bad_line_lets_nobody_in_and_leaves_the_others_alone(line: str) -> None:
    table = parse_keys(f"good # one\n{line}\n".encode())
    assert list(labels(table).values()) == ["one"]
    [complaint] = table.complaints
    assert complaint.startswith("line 2: ") and "secret" not in complaint


def test_a_token_twice() -> None:
    table = parse_keys(b"t # free\nt models=bge # bound")
    assert table.complaints and table.find(b"t").models == {"bge"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no key"),
        (b"\n  \n# only a comment\n", "no key"),
        ("tok_1 # alice".encode("utf-16"), "not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00", "not UTF-8"),
        (b"tok_1 # a\n\0\0\0", "zero byte"),
        (b"tok_1 nonsense\n", "line 1"),
    ],
)
def test_what_is_no_keys_file(content: bytes, why: str) -> None:
    with pytest.raises(BadKeyFile, match=why):
        parse_keys(content)


def test_a_label_stays_on_its_line() -> None:
    [label] = labels(parse_keys(b"t # a\x1b[31m\x0bx\xe2\x80\xa8y")).values()
    assert label == "a?[31m?x?y"


@given(st.binary(max_size=200))
def test_any_bytes_are_keys_or_a_reason(content: bytes) -> None:
    try:
        table = parse_keys(content)
    except BadKeyFile:
        return
    assert table.keys and all(key.label.isprintable() for key in table.keys.values())
