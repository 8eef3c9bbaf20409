"""The two programs that turn packed token ids into rows: one attends packed, one pads.

Both read the same tensors and end in the same heads, so whoever runs them (eagerly, or as a traced
graph) need not know which one it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Several

import torch
from torch import Tensor, nn

from hilbert.core import ModelSpec
from hilbert.programs import attention
from hilbert.programs.choose import position_offset
from hilbert.programs.heads import Heads
from hilbert.programs.layout import GroupedLayout, Layout


class Body(nn.Module):
    """A transformer called with nothing but what its `forward` takes."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
            model.pooler = None  # type: ignore[assignment]  # it would see one row of a packed batch
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_types = "token_type_ids" in accepted and int(spec.config.get("type_vocab_size") or 0) > 1
        self.caches = "use_cache" in accepted
        self.offset = position_offset(spec)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        token_type_ids: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """``[B, S]`` ids → ``[B, S, D]``."""
        arguments: dict[str, Tensor | bool] = {"input_ids": input_ids}
        if self.takes_positions and position_ids is not None:
            arguments["position_ids"] = position_ids + self.offset
        if self.takes_types and token_type_ids is not None:
            arguments["token_type_ids"] = token_type_ids
        if attention_mask is not None:
            arguments["attention_mask"] = attention_mask
        if self.caches:
            arguments["use_cache"] = False
        return self.model(**arguments).last_hidden_state  # type: ignore[no-any-return]  # module call is Any


class PackedProgram(nn.Module):
    """Sequences side by side: every linear layer sees ``[T, D]``, only attention knows the borders."""

    name = "packed"

    def __init__(self, body: Body, heads: Heads) -> None:
        super().__init__()
        self.body = body
        self.heads = heads

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, layout: Layout
    ) -> tuple[Tensor, ...]:
        """``[T]`` ids → the outputs of `Heads`, rows in the layout's order."""
        with attention.using(layout):
            hidden = self.body(
                input_ids.unsqueeze(0), position_ids.unsqueeze(0), token_type_ids.unsqueeze(0), None
            )
        return self.heads(hidden[0], layout)  # type: ignore[no-any-return]


class PaddedProgram(nn.Module):
    """Sequences of similar length padded to the longest, for attention that no interface reaches."""

    name = "padded"

    def __init__(self, body: Body, heads: Heads) -> None:
        super().__init__()
        self.body = body
        self.heads = heads

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        slots: Tensor,
        lengths: Tensor,
        unpad: Tensor,
        layout: Layout,
    ) -> tuple[Tensor, ...]:
        """``[T]`` ids and ``[B, S]`` slots → the outputs of `Heads`, rows in the layout's order."""
        place = torch.arange(slots.shape[1], device=slots.device)
        mask = (place < lengths.unsqueeze(1)).to(torch.int64)
        hidden = self.body(input_ids[slots], None, token_type_ids[slots], mask)
        packed = hidden.reshape(-1, hidden.shape[-1])[unpad]
        return self.heads(packed, layout)  # type: ignore[no-any-return]


class GroupedGraph(nn.Module):
    """A program with its layout built from plain tensors: what is traced, and what the CPU runs eagerly.

    Inputs, in order: ``input_ids [T]``, ``position_ids [T]``, ``token_type_ids [T]``, ``unpad [T]``,
    then per group ``slots [B_g, S_g]``, then ``lengths [B_g]``, then, only with `skips`,
    ``skips [B_g]``. All int32.
    """

    def __init__(self, program: PackedProgram | PaddedProgram, num_groups: int, skips: bool) -> None:
        super().__init__()
        self.program = program
        self.num_groups = num_groups
        self.skips = skips

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        groups = range(self.num_groups)
        return [
            "input_ids",
            "position_ids",
            "token_type_ids",
            "unpad",
            *(f"slots_{g}" for g in groups),
            *(f"lengths_{g}" for g in groups),
            *(f"skips_{g}" for g in groups if self.skips),
        ]

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, unpad: Tensor, *groups: Tensor
    ) -> tuple[Tensor, ...]:
        """The outputs of `Heads`; those with a row per sequence go group by group."""
        slots, lengths, skips = self._split(groups)
        layout = GroupedLayout(slots, lengths, unpad, skips)
        if isinstance(self.program, PaddedProgram):
            return self.program(input_ids, token_type_ids, slots[0], lengths[0], unpad, layout)  # type: ignore[no-any-return]
        return self.program(input_ids, position_ids, token_type_ids, layout)  # type: ignore[no-any-return]

    def _split(self, groups: Several[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
        g = self.num_groups
        return list(groups[:g]), list(groups[g : 2 * g]), list(groups[2 * g :]) if self.skips else None
