"""The settings file while the server runs: an edit is applied, and a broken one is refused and said so."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from hilbert.cli.roster import Roster
from hilbert.config import BadSetting, ServerSettings
from hilbert.config.file import names_models
from hilbert.errors import ServingError

logger = logging.getLogger(__name__)

# The file is small and is read as a whole: that works on every file system, through bind mounts and atomic
# renames, and sees edits of the same size within one tick of the clock.
_LOOK_SECONDS = 0.5


@dataclass(slots=True)
class ConfigState:
    """What the last edit came to.

    Attributes:
        path: the file.
        applied_at: unix time at which the settings that count now were read.
        error: why the last edit was refused; None where it was applied.
        needs_restart: settings that were changed and count only after a restart.
        num_applied, num_refused: edits since the start.
    """

    path: str
    applied_at: float
    error: str | None = None
    needs_restart: tuple[str, ...] = ()
    num_applied: int = 0
    num_refused: int = 0


class ConfigWatch:
    """Watches one file.

    Args:
        path: the file.
        read: the settings as they are now, flags and environment included.
        roster: what they are applied to.

    Attributes:
        state: for `/admin/status`.
    """

    def __init__(self, path: str, read: Callable[[], ServerSettings], roster: Roster) -> None:
        self.state = ConfigState(path, time.time())
        self._read = read
        self._roster = roster
        self._seen = _content(path)
        self._names_models = names_models(self._seen or b"")

    def status(self) -> dict[str, object]:
        """For `/admin/status`."""
        return dataclasses.asdict(self.state)

    def edits(self) -> dict[str, int]:
        """For the metrics."""
        return {"accepted": self.state.num_applied, "refused": self.state.num_refused}

    async def run(self) -> None:
        """Look until cancelled."""
        before = self._seen
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            content = _content(self.state.path)
            # Two looks must agree: an editor that writes in place leaves half a file for a moment.
            if content == before != self._seen:
                self._seen = content
                await self.apply()
            before = content

    async def apply(self) -> None:
        """Read the file and serve what it says; when that cannot be done, nothing changes."""
        state = self.state
        try:
            settings = self._read()
            still_names_models = names_models(self._seen or b"")
            if self._names_models and not still_names_models:
                raise BadSetting(
                    f"{state.path} names no models any more; list them under `models:`, or stop the server"
                )
            needs_restart = await self._roster.apply(settings)
            self._names_models = still_names_models
        except Exception as error:  # whatever it is: the next edit must find somebody who looks
            is_expected = isinstance(error, BadSetting | ServingError | ValueError)
            state.error = str(error) if is_expected else f"{type(error).__name__}: {error}"
            state.num_refused += 1
            logger.error(
                "the edit of %s is refused, everything stays as it was: %s",
                state.path,
                state.error,
                exc_info=None if is_expected else error,
            )
            return
        state.num_applied += 1
        state.error, state.applied_at, state.needs_restart = None, time.time(), tuple(needs_restart)
        logger.info("%s was applied", state.path)
        if needs_restart:
            logger.warning("these changes count after a restart: %s", ", ".join(needs_restart))


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
