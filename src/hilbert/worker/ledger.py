"""Where every unanswered request is, and what becomes of it when the worker dies. Sans-IO.

It decides which requests may be sent to the worker and whom a loss is blamed on. It does not know
sockets, clocks, frames or models (a model is a number here).

The rules:

- A request is *waiting* (not in the worker), *inside* (sent, not answered) or a *suspect* (a loss hit it
  while it was computed).
- After a loss, what was inside is sent again. Requests that were only queued in the worker are merely
  waiting again; those that were being computed become suspects. When nothing was being computed, nobody
  is suspected the first time and everybody the second time (of a crash: at once).
- A suspect is tried **alone**: it is sent when nothing is inside, and nothing is sent until it is
  answered. So a request that kills workers can take others down once, never twice. While its model is not
  loaded it keeps nobody waiting.
- A suspect whose trial ends in another loss is **convicted**. A SIGKILL from outside proves little (an
  operator, the kernel's memory killer), and so does a loss while the worker built a model, so it takes two
  of them.
- Nothing is ever lost or sent to the same worker twice: every id leaves through `answered`, `abandon`
  or a conviction.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from enum import StrEnum


class Loss(StrEnum):
    """Why a worker was lost."""

    CRASHED = "crashed"  # a signal of its own making, or an exit nobody asked for
    KILLED = "killed"  # SIGKILL from outside
    HUNG = "hung"  # no sign of life within the limit; the front killed it


class _Entry:
    __slots__ = ("model", "num_trials", "num_unexplained")

    def __init__(self, model: int) -> None:
        self.model = model
        self.num_trials = 0
        self.num_unexplained = 0  # losses at which nothing was being computed


class Ledger:
    """The unanswered requests of one worker, in order of arrival."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Entry] = {}
        self._suspects: dict[int, _Entry] = {}
        self._inside: dict[int, _Entry] = {}
        self._trial: int | None = None
        self._trial_is_abandoned = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects) + len(self._inside)

    @property
    def trial(self) -> int | None:
        """The suspect that is alone in the worker."""
        return self._trial

    def keeps_waiting(self, ready: Container[int]) -> bool:
        """Whether newcomers wait until what can be tried alone was tried.

        Args:
            ready: the models that the worker has loaded.
        """
        return self._trial is not None or any(entry.model in ready for entry in self._suspects.values())

    @property
    def has_waiting(self) -> bool:
        """Whether anything is not in the worker."""
        return bool(self._waiting or self._suspects)

    def enter(self, request_id: int, model: int, ready: Container[int]) -> bool:
        """Take a new request in. True: send it now; False: `next_to_send` will name it."""
        entry = _Entry(model)
        if model in ready and not self.keeps_waiting(ready):
            self._inside[request_id] = entry
            return True
        self._waiting[request_id] = entry
        return False

    def next_to_send(self, ready: Container[int]) -> list[int]:
        """The requests that are to be sent now; from here on they are inside.

        Args:
            ready: the models that the worker has loaded; empty without a worker.
        """
        if self._trial is not None:
            return []
        suspect = next((i for i, entry in self._suspects.items() if entry.model in ready), None)
        if suspect is not None:
            if self._inside:
                return []  # it must be alone
            entry = self._suspects.pop(suspect)
            entry.num_trials += 1
            self._inside[suspect] = entry
            self._trial = suspect
            return [suspect]
        sent = [i for i, entry in self._waiting.items() if entry.model in ready]
        for request_id in sent:
            self._inside[request_id] = self._waiting.pop(request_id)
        return sent

    def answered(self, request_id: int) -> bool:
        """The worker has answered. True: more may be sent now, ask `next_to_send`."""
        self._inside.pop(request_id, None)
        if request_id == self._trial:
            self._trial = None
            self._trial_is_abandoned = False
            return True
        return bool(self._suspects) and not self._inside

    def abandon(self, request_id: int) -> bool:
        """Nobody waits for it any more. True: tell the worker to drop it.

        A trial that is abandoned goes on: until it is answered the worker is not quiet.
        """
        if request_id == self._trial:
            self._trial_is_abandoned = True
            return False
        if self._inside.pop(request_id, None) is not None:
            return True
        self._waiting.pop(request_id, None)
        self._suspects.pop(request_id, None)
        return False

    def lost(self, loss: Loss, running: Collection[int] | None, *, was_building: bool = False) -> list[int]:
        """The worker is gone.

        Args:
            loss: how.
            running: what it was computing; None when that is unknown.
            was_building: whether it was building a model, which may be the reason as well.

        Returns:
            The convicted requests; they have left the ledger.
        """
        convicted: list[int] = []
        inside, self._inside = self._inside, {}
        trial, self._trial = self._trial, None
        is_abandoned, self._trial_is_abandoned = self._trial_is_abandoned, False
        proves_little = was_building or loss is Loss.KILLED
        if not running and not proves_little and loss is Loss.CRASHED:
            running = None  # it died while it read or answered: any of them may be the reason
        again: dict[int, _Entry] = {}
        suspects: dict[int, _Entry] = {}
        for request_id, entry in inside.items():
            if not running:
                entry.num_unexplained += 1
            if request_id == trial:
                if is_abandoned:
                    continue
                was_running = running is None or request_id in running
                if _is_guilty(entry, was_running, proves_little=proves_little):
                    convicted.append(request_id)
                else:
                    suspects[request_id] = entry
            elif running is None or request_id in running or entry.num_unexplained > 1:
                suspects[request_id] = entry
            else:
                again[request_id] = entry
        self._suspects = {**suspects, **self._suspects}
        self._waiting = {**again, **self._waiting}
        return convicted


def _is_guilty(entry: _Entry, was_running: bool, *, proves_little: bool) -> bool:
    """Whether a loss during the trial of this request proves something."""
    if proves_little:
        return was_running and entry.num_trials > 1
    return was_running or entry.num_trials > 1
