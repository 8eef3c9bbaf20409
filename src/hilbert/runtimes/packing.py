"""Laying a batch out in memory: packed rows, and the length groups that attention runs on. numpy only.

Decides the order of the sequences, the borders of the groups and the rounding of shapes. Rounding
bounds how many shapes a compiled graph ever sees: exact shapes grew a process to 939 MB, T rounded to
32 and S to 16 kept it flat at 380 MB for 1 % of padding (bench/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from hilbert.core import Sequence
from hilbert.core.request import IntArray

IndexArray = npt.NDArray[np.int64]
Whole = TypeVar("Whole", int, IndexArray)

# Groups of a packed batch. With 4 a batch in arrival order runs as fast as a sorted one; 8 cost more
# than they save (bench/LOG.md).
NUM_GROUPS = 4

TOKEN_MULTIPLE = 32
LENGTH_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch as a packed program reads it.

    Attributes:
        order: ``[B]``: row b of the program's output belongs to sequence ``order[b]`` of the batch.
        input_ids: ``[T]`` int32, sequences from short to long, rounded up to `TOKEN_MULTIPLE`.
        position_ids: ``[T]`` int32, counted from 0 within each sequence.
        token_type_ids: ``[T]`` int32.
        lengths: ``[B]`` int32 in packed order.
        group_lengths: per group ``[B_g]`` int32: tokens that the others of their sequence see.
        skips: ``[B]`` int32 in packed order: leading rows kept out of the pool.
        slots: per group ``[B_g, S_g]`` int32 (see `programs.layout.GroupedLayout`).
        unpad: ``[T]`` int32.
        num_groups: groups that hold sequences; the rest are dummies of one slot.
    """

    order: IndexArray
    input_ids: IntArray
    position_ids: IntArray
    token_type_ids: IntArray
    lengths: IntArray
    skips: IntArray
    slots: tuple[IntArray, ...]
    group_lengths: tuple[IntArray, ...]
    group_skips: tuple[IntArray, ...]
    unpad: IntArray
    num_groups: int

    def num_padding_tokens(self, *, is_padded: bool) -> int:
        """Tokens beyond those of the sequences that the linear layers see: all slots of a padded program."""
        slots = self.slots[: self.num_groups]
        num_seen = sum([group.size for group in slots]) if is_padded else len(self.input_ids)
        return num_seen - int(self.lengths.sum())


def group_borders(lengths: IntArray, max_groups: int) -> list[int]:
    """Cut sorted lengths into at most `max_groups` runs with the fewest padded slots.

    Args:
        lengths: ``[B]`` ascending.
        max_groups: at least 1.
    Returns:
        Ends of the runs (exclusive), ascending; the last is B.
    """
    rounded = _round_up(lengths.astype(np.int64), LENGTH_MULTIPLE)
    # Only a change of the rounded length can be a border, so the search is over those alone.
    ends = np.append(np.flatnonzero(np.diff(rounded)) + 1, len(lengths)).tolist()
    if len(ends) <= max_groups:
        return ends
    widths = [int(rounded[end - 1]) for end in ends]
    starts = [0, *ends]
    best = [(starts[j + 1]) * widths[j] for j in range(len(ends))]  # one run up to and including j
    cuts: list[list[int]] = []
    for _ in range(max_groups - 1):
        costs, choice = [], []
        for j in range(len(ends)):
            cost, cut = best[j], -1
            for i in range(j):
                candidate = best[i] + (ends[j] - ends[i]) * widths[j]
                if candidate < cost:
                    cost, cut = candidate, i
            costs.append(cost)
            choice.append(cut)
        best = costs
        cuts.append(choice)
    borders, j = [len(lengths)], len(ends) - 1
    for choice in reversed(cuts):
        if choice[j] < 0:
            continue
        j = choice[j]
        borders.append(ends[j])
    return sorted(borders)


def pack(sequences: tuple[Sequence, ...], num_groups: int, unseen_id: int | None = None) -> PackedBatch:
    """Lay sequences side by side and plan their groups.

    Args:
        sequences: at least one, none empty.
        num_groups: how many groups the program expects; unused ones become dummies of one slot.
        unseen_id: tokens of this id at the end of a sequence are seen by no other token.
    """
    raw_lengths = np.fromiter((len(s.input_ids) for s in sequences), np.int32, len(sequences))
    order = np.argsort(raw_lengths, kind="stable")
    lengths = raw_lengths[order]
    ordered = [sequences[i] for i in order.tolist()]
    num_tokens = int(lengths.sum())
    rounded_tokens = int(_round_up(num_tokens, TOKEN_MULTIPLE))

    starts = np.zeros(len(lengths), np.int32)
    np.cumsum(lengths[:-1], out=starts[1:])
    input_ids = np.zeros(rounded_tokens, np.int32)
    np.concatenate([s.input_ids for s in ordered], out=input_ids[:num_tokens])
    token_type_ids = np.zeros(rounded_tokens, np.int32)
    for sequence, start in zip(ordered, starts.tolist(), strict=True):
        if sequence.token_type_ids is not None:
            token_type_ids[start : start + len(sequence.token_type_ids)] = sequence.token_type_ids
    position_ids = np.zeros(rounded_tokens, np.int32)
    counter = np.arange(num_tokens, dtype=np.int32)
    np.subtract(counter, np.repeat(starts, lengths), out=position_ids[:num_tokens])

    skips = np.fromiter((s.prompt_len for s in ordered), np.int32, len(ordered))
    unpad = np.zeros(rounded_tokens, np.int32)
    slots, group_lengths, group_skips = [], [], []
    base = first = token = 0
    for end in group_borders(lengths, num_groups):
        group = lengths[first:end]
        width = int(_round_up(int(group[-1]), LENGTH_MULTIPLE))
        place = np.arange(width, dtype=np.int32)
        slots.append(starts[first:end, None] + np.minimum(place, group[:, None] - 1))
        group_lengths.append(group if unseen_id is None else _visible(ordered[first:end], unseen_id))
        group_skips.append(skips[first:end])
        group_tokens = int(group.sum())
        rows = base + width * np.arange(len(group), dtype=np.int32) - starts[first:end]
        span = slice(token, token + group_tokens)
        np.add(np.repeat(rows, group), counter[span], out=unpad[span])
        base += width * len(group)
        token += group_tokens
        first = end
    used = len(slots)
    for _ in range(num_groups - used):
        slots.append(np.zeros((1, 1), np.int32))
        group_lengths.append(np.ones(1, np.int32))
        group_skips.append(np.zeros(1, np.int32))
    return PackedBatch(
        order=order,
        input_ids=input_ids,
        position_ids=position_ids,
        token_type_ids=token_type_ids,
        lengths=lengths,
        skips=skips,
        slots=tuple(slots),
        group_lengths=tuple(group_lengths),
        group_skips=tuple(group_skips),
        unpad=unpad,
        num_groups=used,
    )


def without_trailing(sequences: tuple[Sequence, ...], token_id: int | None) -> tuple[Sequence, ...]:
    """Cut tokens of this id off the ends, but for a last one; nothing where it is None.

    For causal classifiers, which look at the last other token: what follows it changes nothing there.
    """
    if token_id is None:
        return sequences
    cut = []
    for sequence in sequences:
        others = np.flatnonzero(sequence.input_ids != token_id)
        num = int(others[-1]) + 1 if len(others) else 1
        cut.append(msgspec.structs.replace(sequence, input_ids=sequence.input_ids[:num]))
    return tuple(cut)


def _visible(sequences: list[Sequence], unseen_id: int) -> IntArray:
    """Tokens of each sequence before the run of `unseen_id` at its end; at least one."""
    stripped = without_trailing(tuple(sequences), unseen_id)
    return np.array([s.num_tokens for s in stripped], np.int32)


def length_groups(sequences: tuple[Sequence, ...]) -> list[IndexArray]:
    """Places of the sequences of each length group, groups from short to long; for padded programs."""
    lengths = np.fromiter((len(s.input_ids) for s in sequences), np.int32, len(sequences))
    order = np.argsort(lengths, kind="stable")
    return np.split(order, group_borders(lengths[order], NUM_GROUPS)[:-1])


def pack_groups(sequences: tuple[Sequence, ...], unseen_id: int | None = None) -> list[PackedBatch]:
    """One packed batch of one group for each length group: what a padded program is run on in turn."""
    parts = []
    for members in length_groups(sequences):
        part = pack(tuple(sequences[i] for i in members.tolist()), 1, unseen_id)
        parts.append(replace(part, order=members[part.order]))
    return parts


def _round_up(value: Whole, multiple: int) -> Whole:
    return -(-value // multiple) * multiple
