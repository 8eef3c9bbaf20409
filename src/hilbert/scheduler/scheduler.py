"""Orders sequences into batches: fair between requests, in order within each. Sans-IO.

It decides which sequences form the next batch and which requests are too late. It does not know
threads, clocks or devices: whoever calls it passes `now` and guards it with a lock.

The rules:

- **Round robin by tokens** (surplus round robin, a form of deficit round robin). Requests stand in a
  ring. At its visit a request sends sequences until it has spent its balance; the last one may
  overdraw it. Each later visit pays in one quantum, and a request in debt is passed over. So over time
  all get equal tokens, and a newcomer never waits for more than one visit of each request before it.
- **The quantum is a quarter of a batch.** Beside a request of 2048 texts a short query is in the very
  next batch. A request with at most two quanta left is finished in one visit: splitting it would delay
  it and help nobody for long.
- **Arrival order inside a request.** A request's sequences leave from first to last, so a batch holds
  runs of consecutive indexes.
- **A batch wants one set of outputs.** Requests that ask for other outputs stand in another lane, with
  a ring of its own; lanes take turns by batch. (A union would make dense requests pay for sparse ones.)
- **A batch keeps both budgets**, except that a sequence longer than the token budget runs alone.
- **A request is known from `add` to `finish`**, so that its deadline also counts while it runs.

The cost of a batch is O(visits) with a bisection per visit, and a visit sends at least one sequence or
pays in a quantum: nothing depends on how many sequences or requests wait.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections import deque
from itertools import accumulate

from hilbert.core import Batch, OutputType, Request, Sequence
from hilbert.errors import EngineError, InvalidInput


class _Lane:
    """The ring of requests that want one set of outputs, and what they have queued."""

    __slots__ = ("num_sequences", "num_tokens", "outputs", "ring")

    def __init__(self, outputs: frozenset[OutputType]) -> None:
        self.outputs = outputs
        self.ring: deque[_Entry] = deque()
        self.num_tokens = 0
        self.num_sequences = 0


class _Entry:
    """One request: what it has sent, and its balance in tokens.

    `ends[i]` is the number of tokens in the first i sequences; `[position:]` are still queued.
    """

    __slots__ = ("balance", "deadline", "ends", "lane", "position", "sequences")

    def __init__(self, request: Request, lane: _Lane, balance: int) -> None:
        lengths = [s.num_tokens for s in request.sequences]
        if not lengths:
            raise InvalidInput("a request needs at least one sequence", param="input")
        if 0 in lengths:
            raise InvalidInput("a sequence needs at least one token", param="input", index=lengths.index(0))
        self.sequences = request.sequences
        self.ends = list(accumulate(lengths, initial=0))
        self.position = 0
        self.balance = balance
        self.lane = lane
        self.deadline = request.deadline

    @property
    def num_queued_tokens(self) -> int:
        return self.ends[-1] - self.ends[self.position]

    @property
    def num_queued_sequences(self) -> int:
        return len(self.sequences) - self.position


# Rarely the limit: a batch of one-token texts at the token budget of a GPU.
MAX_BATCH_SEQUENCES = 2048


class Scheduler:
    """The queue of one engine.

    Args:
        max_batch_tokens: token budget of a batch.
        max_batch_sequences: how many sequences a batch may hold; None takes `MAX_BATCH_SEQUENCES`.

    Attributes:
        num_queued_tokens: tokens that wait for a batch.
        num_queued_sequences: sequences that wait for a batch.
    """

    def __init__(self, max_batch_tokens: int, max_batch_sequences: int | None = None) -> None:
        if max_batch_sequences is None:
            max_batch_sequences = MAX_BATCH_SEQUENCES
        if max_batch_tokens < 1 or max_batch_sequences < 1:
            raise ValueError(
                f"a batch needs room: max_batch_tokens={max_batch_tokens}, "
                f"max_batch_sequences={max_batch_sequences}"
            )
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sequences = max_batch_sequences
        self.num_queued_tokens = 0
        self.num_queued_sequences = 0
        self._quantum = max(1, max_batch_tokens // 4)
        self._entries: dict[int, _Entry] = {}
        self._lanes: deque[_Lane] = deque()  # the lanes that have something queued, next one first
        self._lane_of: dict[frozenset[OutputType], _Lane] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap; may name requests that have left

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def has_full_batch(self) -> bool:
        """Whether the next batch would not grow by waiting."""
        return bool(self._lanes) and self._is_full(self._lanes[0])

    def add(self, request: Request, now: float) -> None:
        """Queue every sequence of a request, behind the requests that are there.

        Raises:
            InvalidInput: no sequences, or one without tokens.
            EngineError: the id is in use.
        """
        if request.id in self._entries:
            raise EngineError(f"request id {request.id} is already queued")
        lane = self._lane_of.get(request.outputs)
        if lane is None:
            lane = self._lane_of[request.outputs] = _Lane(request.outputs)
        entry = _Entry(request, lane, self._quantum)
        self._entries[request.id] = entry
        if not lane.num_sequences:
            self._lanes.append(lane)
        lane.ring.append(entry)
        self._count(lane, entry.ends[-1], len(entry.sequences))
        if request.deadline is not None:
            self._remember_deadline(request.deadline, request.id)

    def next_batch(
        self, now: float, *, only_full: bool = False, max_tokens: float = math.inf
    ) -> Batch | None:
        """Take the next batch out of the queue.

        Args:
            now: the time on the engine's clock.
            only_full: take nothing unless the batch is as large as it may be. An engine that is
                computing asks so: a batch that cannot start yet should stay open for newcomers.
            max_tokens: a smaller budget for this batch alone.
        """
        if not self._lanes or (only_full and not self._is_full(self._lanes[0])):
            return None
        lane = self._lanes.popleft()
        sequences: list[Sequence] = []
        tokens_left = int(min(self.max_batch_tokens, max(1.0, max_tokens)))
        while lane.num_sequences:
            entry = lane.ring[0]
            position, ends = entry.position, entry.ends
            if position == len(entry.sequences):  # it was cancelled
                lane.ring.popleft()
                continue
            if entry.balance <= 0:
                entry.balance += self._quantum
                if entry.balance <= 0:
                    lane.ring.rotate(-1)
                    continue
            start = ends[position]
            fits = bisect_right(ends, start + tokens_left, position) - 1
            fits = min(fits, position + self.max_batch_sequences - len(sequences))
            if fits == position:
                if sequences:
                    break
                fits = position + 1  # longer than the budget: alone
            if ends[-1] - start <= 2 * self._quantum:
                end = min(fits, len(entry.sequences))
            else:
                end = min(fits, bisect_left(ends, start + entry.balance, position + 1, len(ends) - 1))
            sequences += entry.sequences[position:end]
            num_tokens = ends[end] - start
            tokens_left -= num_tokens
            entry.position = end
            entry.balance -= num_tokens
            self._count(lane, -num_tokens, position - end)
            if end == len(entry.sequences):
                lane.ring.popleft()
            elif entry.balance <= 0:
                lane.ring.rotate(-1)
            if tokens_left <= 0:
                break
        if lane.num_sequences:
            self._lanes.append(lane)
        else:
            lane.ring.clear()
        return Batch(tuple(sequences), lane.outputs)

    def cancel(self, request_id: int) -> bool:
        """Drop what is queued of a request and forget it; True if it was known."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return False
        if entry.position < len(entry.sequences):
            lane = entry.lane
            self._count(lane, -entry.num_queued_tokens, -entry.num_queued_sequences)
            entry.sequences, entry.ends, entry.position = (), [0], 0  # the ring drops it at its next visit
            if not lane.num_sequences:
                lane.ring.clear()
                self._lanes.remove(lane)
        return True

    def finish(self, request_id: int) -> bool:
        """Forget a request that has been answered; the same as `cancel`."""
        return self.cancel(request_id)

    def expire(self, now: float) -> list[int]:
        """Drop and forget the requests whose deadline has passed.

        Returns:
            Their ids, earliest deadline first.
        """
        expired: list[int] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, request_id = heapq.heappop(self._deadlines)
            self.cancel(request_id)
            expired.append(request_id)
        return expired

    def next_deadline(self) -> float | None:
        """The earliest deadline of the requests that are known."""
        while self._deadlines:
            deadline, request_id = self._deadlines[0]
            entry = self._entries.get(request_id)
            if entry is not None and entry.deadline == deadline:
                return deadline
            heapq.heappop(self._deadlines)
        return None

    def _is_full(self, lane: _Lane) -> bool:
        return lane.num_tokens >= self.max_batch_tokens or lane.num_sequences >= self.max_batch_sequences

    def _count(self, lane: _Lane, num_tokens: int, num_sequences: int) -> None:
        lane.num_tokens += num_tokens
        lane.num_sequences += num_sequences
        self.num_queued_tokens += num_tokens
        self.num_queued_sequences += num_sequences

    def _remember_deadline(self, deadline: float, request_id: int) -> None:
        # Answered requests stay in the heap until they surface. Under long time limits they would pile
        # up, so it is rebuilt when most of it is stale: O(1) per request on average.
        if len(self._deadlines) > 2 * len(self._entries) + 64:
            self._deadlines = [
                (entry.deadline, known_id)
                for known_id, entry in self._entries.items()
                if entry.deadline is not None and known_id != request_id
            ]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, request_id))
