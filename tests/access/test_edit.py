"""Keys are added and revoked whole or not at all, and nothing else in the file is touched."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from hilbert.access import edit, parse_keys
from hilbert.access.keyfile import digest_of


def test_a_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    token = edit.add(path, "alice <alice@example.com>", "rate=5 admin")
    assert token.startswith("tok_") and len(token) == 36
    assert path.read_text() == f"{token} rate=5 admin # alice <alice@example.com>\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    hashed = edit.add(path, "bob", is_hashed=True)
    assert hashed not in path.read_text()
    assert parse_keys(path.read_bytes()).find(hashed.encode()).label == "bob"  # type: ignore[union-attr]


def test_everything_else_stays_as_it_is(tmp_path: Path) -> None:
    path, link = tmp_path / "keys", tmp_path / "link"
    before = b"\xef\xbb\xbf# staff\r\n\r\ntok_1   # alice\r\nbad line here # x\r\ntok_2 # bob"
    path.write_bytes(before)
    path.chmod(0o640)
    link.symlink_to(path)
    token = edit.add(link, "carol")
    assert path.read_bytes() == before + f"\r\n{token} # carol\r\n".encode()
    assert [key.label for key in edit.revoke(link, "bob")] == ["bob"]
    assert path.read_bytes() == before.removesuffix(b"tok_2 # bob") + f"{token} # carol\r\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and link.is_symlink()
    assert [key.label for key in edit.revoke(path, digest_of(token.encode()).hex()[:8])] == ["carol"]
    assert [key.label for key in edit.keys_of(path)] == ["alice"]
    assert sorted(os.listdir(tmp_path)) == ["keys", "link"]


def test_what_cannot_be_done_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("tok_1 # alice\n")
    for label, settings in (("", ""), (" x", ""), ("a\nb", ""), ("x", "rate=no"), ("x", "model=a")):
        with pytest.raises(edit.CannotEdit):
            edit.add(path, label, settings)
    with pytest.raises(edit.CannotEdit, match="there are: alice"):
        edit.revoke(path, "bob")
    with pytest.raises(edit.CannotEdit, match="does not exist"):
        edit.revoke(tmp_path / "none", "bob")
    with pytest.raises(edit.CannotEdit, match="cannot be opened"):
        edit.add(tmp_path / "none" / "keys", "bob")
    for number, why in ((16, "mount its folder"), (28, "cannot be written")):

        def fail(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(edit, "os", SimpleNamespace(**vars(os) | {"replace": fail}))
        with pytest.raises(edit.CannotEdit, match=why):
            edit.add(path, "bob")
        monkeypatch.undo()
    assert path.read_text() == "tok_1 # alice\n" and os.listdir(tmp_path) == ["keys"]


def test_many_at_once_lose_nothing_and_a_reader_sees_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    edit.add(path, "first")
    done = threading.Event()
    torn: list[str] = []

    def read() -> None:
        while not done.is_set():
            torn.extend(parse_keys(path.read_bytes()).complaints)

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(4) as pool:
        tokens = list(pool.map(lambda n: edit.add(path, f"user {n}"), range(40)))
    done.set()
    reader.join()
    assert len(set(tokens)) == 40 and len(edit.keys_of(path)) == 41 and torn == []
