"""What comes after the transformer: every output of a model, from one pass over its tokens.

A head sees ``(hidden_states [T, D], Layout)``. Rows leave it before the final normalisation:
`dimensions`, activations and normalisation follow per request, outside. `Heads.names` says what a model
has:

- ``dense`` ``[B, E]``: pooled, then the repository's modules.
- ``tokens`` ``[T, E]``: the hidden states, projected where the model says so (late interaction).
- ``logits`` ``[B, L]``: a classification head, or the score that a language model's answers make.
- ``vocabulary`` ``[B, V]``: SPLADE's weights, or those of a sparse code, zeros included.
- ``token_weights`` ``[T]``: bge-m3's weight of each token.

All are float32, and the last layer of `logits` is computed in float32 also where the rest is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hilbert.core import (
    ClassifierModule,
    DenseModule,
    LayerNormModule,
    LogitScoreModule,
    ModelSpec,
    Module,
    NormalizeModule,
    PoolingMode,
    PoolingModule,
    SparseCodeModule,
    SpladeModule,
    TextProjectionModule,
    TokenVectorsModule,
    TokenWeightsModule,
)
from hilbert.errors import UnsupportedArchitecture, WeightMismatch
from hilbert.programs.choose import has_other_end
from hilbert.programs.layout import Layout
from hilbert.programs.load import load_pickle, load_tensors
from hilbert.programs.towers import TextProjection

# Labels that are scored together without a matrix product: 100 rows of 1024 numbers then take 7 MB.
LABEL_SLICE = 16
# Columns of the vocabulary that are computed together: 2048 tokens then take 34 MB.
VOCABULARY_SLICE = 4096


def pool(hidden_states: Tensor, layout: Layout, mode: PoolingMode) -> Tensor:
    """One vector per sequence.

    Args:
        hidden_states: ``[T, D]``, any float dtype.
    Returns:
        ``[B, D]`` float32.
    Source: equals sentence-transformers' Pooling; tests/parity/test_every_family.py
    """
    if mode is PoolingMode.CLS:
        return layout.first(hidden_states).float()
    if mode is PoolingMode.LAST:
        return layout.last(hidden_states).float()
    if mode is PoolingMode.MAX:
        return layout.max(hidden_states).float()
    weighted = mode is PoolingMode.WEIGHTED_MEAN
    total, count = layout.sum(hidden_states, weighted), layout.count(weighted)
    return total / (count.sqrt() if mode is PoolingMode.MEAN_SQRT else count)


class DenseHead(nn.Module):
    """Pooling and the modules after it."""

    def __init__(self, spec: ModelSpec, pooling: PoolingModule, projection: nn.Module | None = None) -> None:
        """Load the modules; `projection` is a dual model's own, right after the pooling."""
        super().__init__()
        self.pooling = pooling
        after = [m for m in spec.modules if isinstance(m, DenseModule | LayerNormModule | NormalizeModule)]
        self.projection = projection
        self.chain = nn.Sequential(*(_module(spec, m) for m in after))

    def forward(self, hidden_states: Tensor, layout: Layout) -> Tensor:
        """``[T, D]`` → ``[B, E]``."""
        rows = torch.cat([pool(hidden_states, layout, mode) for mode in self.pooling.modes], dim=-1)
        if self.projection is not None:
            rows = self.projection(rows)
        return self.chain(rows)  # type: ignore[no-any-return]  # module call is Any


class TokenHead(nn.Module):
    """Token vectors: a chain of linear maps of the hidden states, possibly an empty one."""

    def __init__(self, spec: ModelSpec, module: TokenVectorsModule | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if module is not None and module.file:
            layers.append(_linear(load_pickle(spec, Path(spec.path) / module.file)))
        for folder in module.folders if module is not None else ():
            layers.append(_linear(load_tensors(spec, folder), "linear."))
        self.chain = nn.Sequential(*layers)

    def forward(self, hidden_states: Tensor, layout: Layout) -> Tensor:
        """``[T, D]`` → ``[T, E]``."""
        return self.chain(hidden_states.float())  # type: ignore[no-any-return]  # module call is Any


class TokenWeightHead(nn.Module):
    """bge-m3's sparse head. Source: Chen et al. 2024, "M3-Embedding", lexical retrieval."""

    def __init__(self, spec: ModelSpec, module: TokenWeightsModule) -> None:
        super().__init__()
        self.linear = _linear(load_pickle(spec, Path(spec.path) / module.file))

    def forward(self, hidden_states: Tensor, layout: Layout) -> Tensor:
        """``[T, D]`` → ``[T]``."""
        return torch.relu(self.linear(hidden_states.float())).squeeze(-1)


class _Given(nn.Module):
    """Stands in for a transformer inside its own model: returns the rows that it was given."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler
        self.rows: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        pooled = None if self.pooler is None else self.pooler(self.rows)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=self.rows, pooler_output=pooled)


class _OwnHead(nn.Module):
    """A model whose transformer was taken out, so that its own head runs on rows of ours, in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.prefix: str = str(model.base_model_prefix)
        base = getattr(model, self.prefix)
        pooler = getattr(base, "pooler", None)
        if pooler is not None:
            base.pooler = None
        self.given = _Given(pooler)
        setattr(model, self.prefix, self.given)
        self.model = model.float()

    def logits(self, rows: Tensor, fill: int) -> Tensor:
        """Run the head on ``[B, S, D]``; the token ids that it may look at are all `fill`."""
        self.given.rows = rows.float()
        ids = torch.full_like(rows[:, :, 0], fill, dtype=torch.int64)
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits  # type: ignore[no-any-return]


class ExactLinear(nn.Module):
    """A linear layer of few outputs, in float32 wherever it runs.

    OpenVINO computes matrix products of a bf16 graph in bf16, but not products and sums at its end. Scores
    that bf16 cannot tell apart would be ties.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().float(), requires_grad=False)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        """``[..., D]`` → ``[..., L]``."""
        # In four dimensions: OpenVINO 2026.4 computes the same in three, with several rows, wrongly.
        spread = rows.float().reshape(-1, 1, 1, rows.shape[-1])
        slices = torch.split(self.weight, LABEL_SLICE)
        sums = torch.cat([(spread * weight).sum(dim=-1) for weight in slices], dim=-1)
        sums = sums.reshape(*rows.shape[:-1], len(self.weight))
        return sums if self.bias is None else sums + self.bias


def _make_exact(head: nn.Module, num_labels: int) -> None:
    """Replace the linear layer that a classification head ends in."""
    last: tuple[nn.Module, str, nn.Linear] | None = None
    for parent in head.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and child.out_features == num_labels:
                last = parent, name, child
    if last is not None:
        setattr(last[0], last[1], ExactLinear(last[2]))


class LogitScoreHead(nn.Module):
    """A language model's next token as a score: of its vocabulary's rows only those of the answers are kept.

    Source: sentence-transformers' LogitScore.
    """

    def __init__(self, model: nn.Module, module: LogitScoreModule) -> None:
        super().__init__()
        decoder = model.get_output_embeddings()  # type: ignore[operator]  # a method, not a tensor
        ids = [module.true_id] if module.false_id is None else [module.true_id, module.false_id]
        if not all(0 <= i < len(decoder.weight) for i in ids):
            raise WeightMismatch(f"the answers {ids} lie outside a vocabulary of {len(decoder.weight)}")
        state = {"weight": decoder.weight[ids]}
        if decoder.bias is not None:
            state["bias"] = decoder.bias[ids]
        model.set_output_embeddings(ExactLinear(_linear(state)))  # type: ignore[operator]  # likewise
        self.own = _OwnHead(model)

    def forward(self, hidden_states: Tensor, layout: Layout) -> Tensor:
        """``[T, D]`` → ``[B, 1]``."""
        logits = self.own.logits(layout.last(hidden_states).unsqueeze(1), 0)[:, 0]
        return logits[:, :1] - logits[:, 1:] if logits.shape[1] == 2 else logits


class ClassifierHead(nn.Module):
    """The architecture's own ``ForSequenceClassification`` head on one row per sequence."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        from transformers.modeling_layers import GenericForSequenceClassification

        is_causal = isinstance(model, GenericForSequenceClassification)
        self.takes = "last" if is_causal else str(spec.config.get("classifier_pooling") or "cls")
        # A causal head looks for the last token that is not padding: none of ours is.
        self.fill = 1 if spec.config.get("pad_token_id") != 1 else 2
        self.own = _OwnHead(model)
        _make_exact(self.own.model, len(spec.labels))

    def forward(self, hidden_states: Tensor, layout: Layout) -> Tensor:
        """``[T, D]`` → ``[B, L]``."""
        if self.takes == "last":
            rows = layout.last(hidden_states)
        elif self.takes == "mean":
            rows = pool(hidden_states, layout, PoolingMode.MEAN)
        else:
            rows = layout.first(hidden_states)
        return self.own.logits(rows.unsqueeze(1), self.fill)


class SpladeHead(nn.Module):
    """Masked-LM logits pooled over each sequence, a slice of the vocabulary at a time.

    All logits at once would take 8 bytes a token and vocabulary entry; a slice bounds that whatever the
    batch. Source: Formal et al. 2021, "SPLADE v2": log(1 + relu(w)), maximum over the tokens.
    """

    def __init__(self, model: nn.Module, module: SpladeModule) -> None:
        super().__init__()
        decoder = model.get_output_embeddings()  # type: ignore[operator]  # a method, not a tensor
        weight, bias = decoder.weight.float(), decoder.bias
        for parent in model.modules():
            for name, child in list(parent.named_children()):
                if child is decoder:
                    setattr(parent, name, nn.Identity())
        self.own = _OwnHead(model)
        self.module = module
        self.slices = nn.ModuleList()
        for start in range(0, len(weight), VOCABULARY_SLICE):
            state = {"weight": weight[start : start + VOCABULARY_SLICE]}
            if bias is not None:
                state["bias"] = bias.float()[start : start + VOCABULARY_SLICE]
            self.slices.append(_linear(state))

    def forward(self, hidden_states: Tensor, layout: Layout) -> Tensor:
        """``[T, D]`` → ``[B, V]``."""
        transformed = self.own.logits(hidden_states.unsqueeze(0), 0)[0]
        return torch.cat([self._pooled(part(transformed), layout) for part in self.slices], dim=-1)

    def _pooled(self, logits: Tensor, layout: Layout) -> Tensor:
        if self.module.strategy == "max":  # the logarithm keeps the order, so it can come after the maximum
            return self._log(torch.relu(layout.max(logits)))
        return layout.sum(self._log(torch.relu(logits)), weighted=False)

    def _log(self, weights: Tensor) -> Tensor:
        weights = torch.log1p(weights)
        return torch.log1p(weights) if self.module.activation == "log1p_relu" else weights


class SparseCodeHead(nn.Module):
    """The pooled vector as the few largest of many learned features.

    Source: Wen et al. 2025, "Beyond Matryoshka", as sentence-transformers' SparseAutoEncoder computes it.
    """

    def __init__(self, spec: ModelSpec, pooling: PoolingModule, module: SparseCodeModule) -> None:
        super().__init__()
        self.dense = DenseHead(spec, pooling)
        self.module = module
        tensors = load_tensors(spec, module.folder)
        # Encoder and decoder share one tensor, which is stored under either name.
        name = "encoder.weight" if "encoder.weight" in tensors else "decoder.linear.weight"
        try:
            self.centre = nn.Parameter(tensors["pre_bias"].float(), requires_grad=False)
            state = {"weight": tensors[name], "bias": tensors["latent_bias"]}
        except KeyError as error:
            raise WeightMismatch(f"{spec.model_id}: {module.folder} holds no {error}") from error
        self.features = _linear(state)

    def forward(self, hidden_states: Tensor, layout: Layout) -> Tensor:
        """``[T, D]`` → ``[B, F]``, at most k of each row not zero."""
        rows = self.dense(hidden_states, layout)
        if self.module.normalize:
            rows = rows - rows.mean(dim=-1, keepdim=True)
            spread = ((rows * rows).sum(dim=-1, keepdim=True) / (rows.shape[-1] - 1)).sqrt()
            rows = rows / (spread + 1e-5)
        weights = self.features(rows - self.centre)
        best = torch.topk(weights, self.module.k, dim=-1)
        return torch.zeros_like(weights).scatter(-1, best.indices, torch.relu(best.values))


class Heads(nn.Module):
    """All outputs of a model.

    Attributes:
        names: the outputs in the order in which `forward` returns them.
    """

    def __init__(self, spec: ModelSpec, model: nn.Module) -> None:
        super().__init__()
        heads: dict[str, nn.Module] = {}
        if spec.pooling is not None and not has_other_end(spec):
            own = any(isinstance(module, TextProjectionModule) for module in spec.modules)
            heads["dense"] = DenseHead(spec, spec.pooling, TextProjection(model) if own else None)
        for module in spec.modules:
            if isinstance(module, ClassifierModule) and module.is_own:
                heads["logits"] = ClassifierHead(model, spec)
            elif isinstance(module, ClassifierModule):
                assert spec.pooling is not None
                heads["logits"] = DenseHead(spec, spec.pooling)
                _make_exact(heads["logits"], module.num_labels)
            elif isinstance(module, LogitScoreModule):
                heads["logits"] = LogitScoreHead(model, module)
            elif isinstance(module, SparseCodeModule):
                assert spec.pooling is not None
                heads["vocabulary"] = SparseCodeHead(spec, spec.pooling, module)
            elif isinstance(module, SpladeModule):
                heads["vocabulary"] = SpladeHead(model, module)
            elif isinstance(module, TokenWeightsModule):
                heads["token_weights"] = TokenWeightHead(spec, module)
            elif isinstance(module, TokenVectorsModule):
                heads["tokens"] = TokenHead(spec, module)
        if "dense" in heads and "tokens" not in heads and not spec.towers:
            heads["tokens"] = TokenHead(spec, None)
        if not heads:
            raise UnsupportedArchitecture(f"{spec.model_id}: its modules make no output that is served")
        self.names = tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def chain(self) -> nn.Module:
        """The repository's modules behind a dense vector; the towers of a dual model go through them, too.

        No property: the converter to OpenVINO reads every property of a module.
        """
        dense = self.heads[self.names.index("dense")]
        assert isinstance(dense, DenseHead)
        return dense.chain

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        """``[T, D]`` → the outputs, in the order of `names`."""
        return tuple(head(hidden_states, layout) for head in self.heads)


class _Normalize(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.normalize(rows, dim=-1)


def _module(spec: ModelSpec, module: Module) -> nn.Module:
    """The torch module of one entry, in float32: it costs nothing beside the transformer."""
    if isinstance(module, NormalizeModule):
        return _Normalize()
    if isinstance(module, DenseModule):
        linear: nn.Module = nn.Linear(module.in_features, module.out_features, module.bias)
        _fill(spec, linear, module.folder, "linear.")
        return nn.Sequential(linear, _activation(module.activation))
    if isinstance(module, LayerNormModule):
        norm = nn.LayerNorm(module.dimension)
        _fill(spec, norm, module.folder, "norm.")
        return norm
    raise UnsupportedArchitecture(f"{spec.model_id}: no head for {type(module).__name__}")


def _linear(state: dict[str, Tensor], prefix: str = "") -> nn.Linear:
    """A linear layer with these weights, in float32."""
    weight, bias = state[f"{prefix}weight"].float(), state.get(f"{prefix}bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.float().clone(), requires_grad=False)
    return layer


def _fill(spec: ModelSpec, module: nn.Module, folder: str, prefix: str) -> None:
    tensors = load_tensors(spec, folder)
    state = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightMismatch(f"{spec.model_id}: {folder} does not fit its config.json: {error}") from error
    module.requires_grad_(False)


def _activation(name: str) -> nn.Module:
    """An activation by its dotted torch name; nothing outside ``torch.nn`` is looked up."""
    if not name:
        return nn.Identity()
    short = name.rsplit(".", 1)[-1]
    found = getattr(nn, short, None)
    if not name.startswith("torch.nn.") or not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UnsupportedArchitecture(f"activation {name!r} is not one of torch.nn")
    return found()
