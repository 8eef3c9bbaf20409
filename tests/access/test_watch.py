"""An edit of the keys file counts for the very next look; promises 6, 7 and 8 of seed 000."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from hilbert.access import KeyFile
from hilbert.access import watch as module
from hilbert.testing.clock import ManualClock


def lets_in(file: KeyFile, token: str) -> bool:
    return file.table().find(token.encode()) is not None


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    os.replace(new, path)


def test_add_revoke_rename_truncate_and_return(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one # a\n")
    file = KeyFile(str(path))
    assert lets_in(file, "one") and not lets_in(file, "two")
    with path.open("a") as end:
        end.write("two # b\n")
    assert lets_in(file, "one") and lets_in(file, "two")
    path.write_text("two # b\n")
    assert not lets_in(file, "one") and lets_in(file, "two")
    replace(path, "thr # c\n")
    assert not lets_in(file, "two") and lets_in(file, "thr")
    os.truncate(path, 0)
    assert not lets_in(file, "thr")
    path.unlink()
    assert not lets_in(file, "thr")
    path.write_text("thr # c\n")
    assert lets_in(file, "thr")


def same_times(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the file system's clock stand still, as it does within a tick."""
    first = os.stat(path)
    real = os.stat

    def stat(name: str) -> os.stat_result:
        found = list(real(name))
        found[7:10] = first[7:10]
        times = {name: getattr(first, name) for name in ("st_ctime_ns", "st_mtime_ns")}
        return os.stat_result(found, times)

    monkeypatch.setattr(module, "os", SimpleNamespace(**vars(os) | {"stat": stat}))
    assert stat(str(path)).st_ctime_ns == first.st_ctime_ns


@pytest.mark.parametrize("write", [Path.write_text, replace], ids=["in place", "renamed"])
def test_a_thousand_edits_of_the_same_size_within_a_tick(tmp_path: Path, monkeypatch, write) -> None:
    path = tmp_path / "keys"
    path.write_text("tok_0000 # a\n")
    same_times(path, monkeypatch)
    file = KeyFile(str(path))
    for number in range(1000):
        write(path, f"tok_{number:04} # a\n")
        assert lets_in(file, f"tok_{number:04}")
        assert not lets_in(file, f"tok_{number - 1:04}")


def test_a_settled_file_is_not_read_again(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "keys"
    path.write_text("tok_1 # a\n")
    clock = ManualClock()
    file = KeyFile(str(path), clock)
    opened: list[str] = []
    real = os.open
    counted = {"open": lambda name, flags: opened.append(name) or real(name, flags)}
    monkeypatch.setattr(module, "os", SimpleNamespace(**vars(os) | counted))
    for _ in range(3):
        assert lets_in(file, "tok_1")
    assert len(opened) == 3  # its clock may not have ticked yet
    clock.advance(4)
    for _ in range(3):
        assert lets_in(file, "tok_1")
    assert len(opened) == 4
    path.write_text("tok_2 # a\n")
    assert lets_in(file, "tok_2") and len(opened) == 5


def test_one_look_holds_for_all_that_had_come_before_it_and_for_no_other(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "keys"
    path.write_text("tok_1 # a\n")
    clock = ManualClock(10.0)
    file = KeyFile(str(path), clock)
    looks: list[str] = []
    real = os.stat
    counted = {"stat": lambda name: looks.append(name) or real(name)}
    monkeypatch.setattr(module, "os", SimpleNamespace(**vars(os) | counted))
    first = file.table(9.0)
    path.write_text("tok_2 # b\n")
    assert file.table(9.999) is first and len(looks) == 1
    assert file.table(10.0) is not first and len(looks) == 2  # it may have come after the look
    clock.advance(1.0)
    path.unlink()
    assert not file.table(10.5).keys and not file.table(10.9).keys and len(looks) == 3
    path.write_text("tok_3 # c\n")
    assert lets_in(file, "tok_3") and len(looks) == 4


def test_a_look_that_fails_holds_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("tok_1 # a\n")
    clock = ManualClock(10.0)
    file = KeyFile(str(path), clock)
    assert lets_in(file, "tok_1")
    clock.advance(1.0)
    path.write_text("tok_2 # b\n")

    def read(path: str, identity: object) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(module, "_content", read)
        for came in (10.5, 10.6):
            with pytest.raises(MemoryError):
                file.table(came)
    assert file.table(10.5).find(b"tok_2") and not file.table(10.6).find(b"tok_1")


@pytest.mark.parametrize("broken", ["missing", "folder", "pipe", "empty", "binary", "unreadable", "loop"])
def test_what_cannot_be_read_lets_nobody_in_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "keys"
    path.write_text("tok_secret # a\n")
    file = KeyFile(str(path))
    assert lets_in(file, "tok_secret")
    path.unlink()
    if broken == "folder":
        path.mkdir()
    elif broken == "pipe":
        os.mkfifo(path)
    elif broken == "loop":
        path.symlink_to(path)
    elif broken != "missing":
        path.write_bytes({"empty": b"", "binary": b"\xff\xfe\0t"}.get(broken, b"tok_secret # a\n"))
    if broken == "unreadable":  # modes mean nothing to root

        def refuse(name: str, flags: int) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(module, "os", SimpleNamespace(**vars(os) | {"open": refuse}))
    with caplog.at_level(logging.INFO, "hilbert.access"):
        for _ in range(3):
            assert not lets_in(file, "tok_secret")
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "lets nobody in" in record.message and "secret" not in record.message
    monkeypatch.undo()
    if broken == "folder":
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_text("tok_secret # a\n")
    assert lets_in(file, "tok_secret")
