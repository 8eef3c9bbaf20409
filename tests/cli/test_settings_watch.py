"""The settings file of a running server: whatever goes wrong with one edit, the next one is seen."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hilbert.cli import watch
from hilbert.config import ServerSettings


class Roster:
    """Has trouble with the first settings that it is given."""

    def __init__(self) -> None:
        self.num_applied = 0

    async def apply(self, settings: ServerSettings) -> list[str]:
        self.num_applied += 1
        if self.num_applied == 1:
            raise OSError(5, "Input/output error")
        return []


@pytest.mark.anyio
async def test_an_edit_that_nobody_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.005)
    file = tmp_path / "hilbert.yaml"
    file.write_text("models: [{id: a}]")
    watched = watch.ConfigWatch(str(file), ServerSettings, Roster())
    watching = asyncio.create_task(watched.run())
    await asyncio.sleep(0)
    for edit in ("models: [{id: b}]", "models: [{id: c}]"):
        before = watched.edits()
        file.write_text(edit)
        async with asyncio.timeout(5):
            while watched.edits() == before and not watching.done():
                await asyncio.sleep(0.005)
        if edit.endswith("b}]"):
            assert "OSError: [Errno 5] Input/output error" in str(watched.status()["error"])
    assert watched.edits() == {"accepted": 1, "refused": 1} and watched.status()["error"] is None
    watching.cancel()
