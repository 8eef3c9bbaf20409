"""From a `ModelSpec` to a program that has been checked against the model's own attention.

A packed program that disagrees falls back to the padded one; a padded one that disagrees is refused,
and the caller serves the model through sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hilbert.core import ModelSpec
from hilbert.errors import ModelError, UnsupportedArchitecture
from hilbert.programs import attention
from hilbert.programs.choose import plan, text_config
from hilbert.programs.heads import Heads
from hilbert.programs.layout import GroupedLayout
from hilbert.programs.load import load_model
from hilbert.programs.program import Body, GroupedGraph, PackedProgram, PaddedProgram
from hilbert.programs.towers import TowerGraph, text_side, tower_graphs

# Two programs that compute the same thing in float32 differ by rounding alone: 2e-6 at scale 1 was the
# worst seen over all families (tests/parity); a wrong mask or position differs by more than 1e-2.
FLOAT32_TOLERANCE = 1e-4
HALF_COSINE = 0.99
HALF_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Built:
    """A checked program, and the towers beside it; `num_groups` is 1 for a padded one."""

    graph: GroupedGraph
    program: str
    reason: str
    num_parameters: int
    towers: tuple[TowerGraph, ...] = ()


def build(
    spec: ModelSpec,
    dtype: torch.dtype,
    num_groups: int,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> Built:
    """Load a model and find the best program that computes what the model computes.

    Args:
        dtype: of the body's weights; the heads stay in float32.
        num_groups: length groups of a packed program.
        trust_remote_code: allow the repository's own Python code.
        device: where the program is to live.
    Raises:
        UnsupportedArchitecture: neither program agrees with the model's own attention.
        ModelError: the weights are missing, wrong or unsafe.
    """
    name, reason = plan(spec)
    if name in ("static", "sentence-transformers", "gliner"):
        raise UnsupportedArchitecture(f"{spec.model_id}: {reason}")
    if name == "packed":
        try:
            built = _packed(spec, dtype, num_groups, reason, trust_remote_code, device)
        except _Disagrees as error:
            reason = f"packed attention disagreed with the model's own ({error}), so it is padded"
        except UnsupportedArchitecture as error:
            reason = f"it cannot be packed ({error.message}), so it is padded"
        else:
            return built
    return _padded(spec, dtype, reason, trust_remote_code, device)


class _Disagrees(Exception):
    """A program's vectors differ from the reference."""


def _packed(
    spec: ModelSpec, dtype: torch.dtype, num_groups: int, reason: str, remote: bool, device: str
) -> Built:
    model = load_model(spec, attention.NAME, dtype, remote)
    transformer = _transformer(model, spec)
    if not getattr(type(transformer), "_supports_attention_backend", False) and not spec.towers:
        raise UnsupportedArchitecture(f"{type(model).__name__} has attention code of its own")
    heads = Heads(spec, model)  # takes the transformer out of a model that has a head of its own
    body = Body(transformer, spec)
    program = PackedProgram(body, heads)
    graph = GroupedGraph(program, num_groups, _skips(spec)).to(device)
    try:
        ours = _run_graph(graph, _probes(spec))
    except Exception as error:  # whatever an unknown architecture raises means it cannot run packed
        raise UnsupportedArchitecture(f"{type(error).__name__}: {error}") from error
    switch: Callable[[str], None] = body.model.set_attn_implementation  # type: ignore[assignment]  # a method
    switch(_own_attention(model))
    _compare(ours, _reference(graph, _probes(spec)), dtype)
    switch(attention.NAME)
    return Built(graph, "packed", reason, _num_parameters(model), _towers(spec, model, heads, device))


def _padded(spec: ModelSpec, dtype: torch.dtype, reason: str, remote: bool, device: str) -> Built:
    try:
        model = load_model(spec, "sdpa", dtype, remote)
    except UnsupportedArchitecture:
        model = load_model(spec, "eager", dtype, remote)
    transformer = _transformer(model, spec)
    heads = Heads(spec, model)
    graph = GroupedGraph(PaddedProgram(Body(transformer, spec), heads), 1, _skips(spec)).to(device)
    try:
        _compare(_run_graph(graph, _probes(spec)), _reference(graph, _probes(spec)), dtype)
    except ModelError:
        raise
    except Exception as error:  # an unknown architecture may raise anything
        raise UnsupportedArchitecture(
            f"{spec.model_id}: neither a packed nor a padded program computes what the model computes "
            f"({type(error).__name__}: {error})"
        ) from error
    return Built(graph, "padded", reason, _num_parameters(model), _towers(spec, model, heads, device))


def _towers(spec: ModelSpec, model: nn.Module, heads: Heads, device: str) -> tuple[TowerGraph, ...]:
    if not spec.towers:
        return ()
    return tuple(graph.to(device).eval() for graph in tower_graphs(spec, model, heads.chain()))


def _transformer(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """The part of a model that its head runs on; the model itself where it has no head."""
    if spec.towers:
        return text_side(model)
    inner = getattr(model, str(model.base_model_prefix), None)
    return inner if isinstance(inner, nn.Module) else model


def _own_attention(model: nn.Module) -> str:
    return "sdpa" if getattr(type(model), "_supports_sdpa", False) else "eager"


def _skips(spec: ModelSpec) -> bool:
    return spec.pooling is not None and not spec.pooling.include_prompt


def _num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _probes(spec: ModelSpec) -> list[np.ndarray]:
    """A few random sequences: one token, some of middling length, one past every window."""
    longest = min(spec.max_model_len or 512, 3 * int(spec.config.get("sliding_window") or 40) + 5, 700)
    random = np.random.default_rng(7)
    lengths = sorted({1, 2, min(9, longest), min(23, longest), min(24, longest), longest})
    probes = [random.integers(0, spec.vocab_size, n).astype(np.int32) for n in lengths]
    # RoBERTa's own code gives the padding id no position, wherever it stands; no text holds it.
    padding = text_config(spec).get("pad_token_id")
    return [np.where(p == padding, (p + 1) % spec.vocab_size, p).astype(np.int32) for p in probes]


def example_inputs(probes: list[np.ndarray], num_groups: int, skips: bool) -> tuple[Tensor, ...]:
    """The tensors of `GroupedGraph.forward` for ascending probes, dealt to the groups in runs."""
    lengths = np.array([len(p) for p in probes], np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)
    slots, group_lengths, unpad, base = [], [], [], 0
    for members in np.array_split(np.arange(len(probes)), num_groups):
        if len(members) == 0:
            slots.append(np.zeros((1, 1), np.int32))
            group_lengths.append(np.ones(1, np.int32))
            continue
        width = int(lengths[members].max()) + 3
        place = np.arange(width, dtype=np.int32)
        slots.append(starts[members, None] + np.minimum(place, lengths[members, None] - 1))
        group_lengths.append(lengths[members])
        unpad += [base + row * width + np.arange(lengths[b]) for row, b in enumerate(members)]
        base += width * len(members)
    arrays = [
        np.concatenate(probes),
        np.concatenate([np.arange(n) for n in lengths]),
        np.zeros(int(lengths.sum())),
        np.concatenate(unpad),
        *slots,
        *group_lengths,
        *([np.zeros(len(g)) for g in group_lengths] if skips else []),
    ]
    return tuple(torch.from_numpy(a.astype(np.int32)) for a in arrays)


def _run_graph(graph: GroupedGraph, probes: list[np.ndarray]) -> list[Tensor]:
    with torch.inference_mode():
        inputs = example_inputs(probes, graph.num_groups, graph.skips)
        outputs: tuple[Tensor, ...] = graph(*(t.to(_device(graph)) for t in inputs))
    return _real_rows(outputs, graph.program.heads.names, probes)


def _real_rows(outputs: Iterable[Tensor], names: Iterable[str], probes: list[np.ndarray]) -> list[Tensor]:
    """The outputs without the rows of dummy groups."""
    num_tokens = sum(len(p) for p in probes)
    return [
        rows[: num_tokens if name.startswith("token") else len(probes)].float()
        for name, rows in zip(names, outputs, strict=True)
    ]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _reference(graph: GroupedGraph, probes: list[np.ndarray]) -> list[Tensor]:
    """Each probe alone, unpadded, through the model's own attention, then through the same heads."""
    outputs = []
    with torch.inference_mode():
        for probe in probes:
            ids = torch.from_numpy(probe).long().unsqueeze(0).to(_device(graph))
            body = graph.program.body
            hidden = body(ids, None, torch.zeros_like(ids), torch.ones_like(ids))
            length = ids.shape[1]
            whole = torch.arange(length, device=ids.device)
            layout = GroupedLayout(
                [whole.unsqueeze(0)],
                [torch.tensor([length], device=ids.device)],
                whole,
                [torch.zeros(1, dtype=torch.int64, device=ids.device)] if graph.skips else None,
            )
            outputs.append(graph.program.heads(hidden[0], layout))
    return [torch.cat(rows).float() for rows in zip(*outputs, strict=True)]


def _compare(ours: list[Tensor], reference: list[Tensor], dtype: torch.dtype) -> None:
    for mine, theirs in zip(ours, reference, strict=True):
        if dtype == torch.float32 or mine.ndim < 2 or mine.shape[1] == 1:  # one number has no direction
            scale = max(1.0, float(theirs.abs().max()))
            worst = float((mine - theirs).abs().max())
            if not worst <= (FLOAT32_TOLERANCE if dtype == torch.float32 else HALF_TOLERANCE) * scale:
                raise _Disagrees(f"largest difference {worst:.1e} at scale {scale:.1f}")
            continue
        cosine = float(nn.functional.cosine_similarity(mine, theirs).min())
        if not cosine >= HALF_COSINE:
            raise _Disagrees(f"worst cosine {cosine:.4f} in {dtype}")


Run = Callable[[list[np.ndarray]], list[np.ndarray]]


def check_traced(graph: GroupedGraph, spec: ModelSpec, run: Run) -> None:
    """Compare what a traced graph returns, on other lengths than it was traced with, with the eager one.

    Args:
        run: takes ascending probes, returns the outputs in the order of `Heads.names`, computing in float32.
    Raises:
        UnsupportedArchitecture: the trace froze something that depends on the input.
    """
    probes = [p[: max(1, len(p) - 1)] for p in _probes(spec)][1:]
    outputs = [torch.from_numpy(rows) for rows in run(probes)]
    ours = _real_rows(outputs, graph.program.heads.names, probes)
    try:
        _compare(ours, _run_graph(graph, probes), torch.float32)
    except _Disagrees as error:
        raise UnsupportedArchitecture(
            f"{spec.model_id}: the traced graph does not compute what the model computes ({error})"
        ) from error
