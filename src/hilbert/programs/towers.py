"""Dual models: the text side taken out for packing, and the tower that reads images or sounds.

Both sides end in the modules that the repository appends. A tower is one graph of its own: features of a
fixed size in, one vector each out, so that a batch of it needs no padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hilbert.core import Modality, ModelSpec, Tower
from hilbert.errors import UnsupportedArchitecture


def text_side(model: nn.Module) -> nn.Module:
    """The text transformer of a dual model.

    Raises:
        UnsupportedArchitecture: it has none under that name.
    """
    side = getattr(model, "text_model", None)
    if not isinstance(side, nn.Module):
        raise UnsupportedArchitecture(f"{type(model).__name__} has no text_model")
    embeddings = getattr(side, "embeddings", None)
    if hasattr(embeddings, "token_embedding") and hasattr(embeddings, "position_embedding"):
        side.embeddings = _Unbounded(embeddings)  # CLIP, SigLIP
    return side


class _Unbounded(nn.Module):
    """CLIP's embeddings, which refuse more tokens than one sequence may have: a packed batch has more."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """``[B, S]`` ids → ``[B, S, D]``; without positions, the model's own way."""
        if position_ids is None:
            return self.own(input_ids=input_ids)  # type: ignore[no-any-return]
        return self.own.token_embedding(input_ids) + self.own.position_embedding(position_ids)  # type: ignore[no-any-return]


class TextProjection(nn.Module):
    """From the pooled text to the common space, by the model's own layers, in float32.

    Takes what pools or projects out of the model, as it would see one row of a packed batch there.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        text = text_side(model)
        layers: list[nn.Module] = []
        pooler = getattr(text, "pooler", None)
        if isinstance(pooler, nn.Module):  # CLAP
            layers.append(_FirstRow(pooler))
            text.pooler = None  # type: ignore[assignment]  # a module may be None
        head = getattr(text, "head", None)
        if isinstance(head, nn.Module):  # SigLIP
            layers.append(head)
            text.head = nn.Identity()
        projection = getattr(model, "text_projection", None)
        if isinstance(projection, nn.Module):  # CLIP, CLAP
            layers.append(projection)
        if not layers:
            raise UnsupportedArchitecture(f"{type(model).__name__} projects its texts in a way of its own")
        self.layers = nn.Sequential(*layers).float()

    def forward(self, rows: Tensor) -> Tensor:
        """``[B, D]`` → ``[B, E]``."""
        return self.layers(rows)  # type: ignore[no-any-return]  # module call is Any


class _FirstRow(nn.Module):
    """A pooler that looks at the first token of ``[B, S, D]``, given that row alone."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, rows: Tensor) -> Tensor:
        return self.pooler(rows.unsqueeze(1))  # type: ignore[no-any-return]


class TowerGraph(nn.Module):
    """A tower, its projection and the repository's own modules behind it.

    Attributes:
        tower: what it reads.
    """

    def __init__(self, model: nn.Module, tower: Tower, chain: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        is_image = tower.modality is Modality.IMAGE
        body = getattr(model, "vision_model" if is_image else "audio_model")
        self.body = body
        projection = getattr(model, "visual_projection" if is_image else "audio_projection", None)
        self.projection = projection.float() if isinstance(projection, nn.Module) else nn.Identity()
        self.chain = chain
        self._argument = "pixel_values" if is_image else "input_features"
        self._is_fused = not is_image and tower.shape[0] > 1

    def forward(self, features: Tensor) -> Tensor:
        """``[B, *shape]`` float32 → ``[B, E]`` float32."""
        arguments: dict[str, Any] = {self._argument: features.to(next(self.body.parameters()).dtype)}
        if self._is_fused:
            # The feature extractor marks a sound that comes alone as longer, whatever its length.
            arguments["is_longer"] = torch.ones_like(features[:, 0, :1, 0], dtype=torch.bool)
        rows = self.body(**arguments).pooler_output.float()
        return self.chain(self.projection(rows))  # type: ignore[no-any-return]


def tower_graphs(spec: ModelSpec, model: nn.Module, chain: nn.Module) -> tuple[TowerGraph, ...]:
    """The towers of a model, with attention of their own: what they read is never packed.

    Args:
        chain: the repository's modules behind both sides.
    """
    graphs = []
    for tower in spec.towers:
        graph = TowerGraph(model, tower, chain)
        for kind in ("sdpa", "eager"):
            try:
                graph.body.set_attn_implementation(kind)
            except ValueError:  # it has no such attention
                continue
            break
        graphs.append(graph)
    return tuple(graphs)
