"""One suite for every runtime and each output that it declares; a new runtime joins by one line of `CASES`.

Alone equals in company, order is kept, a permutation changes nothing, and outputs that are asked for together
equal those asked for alone. And each runtime returns what docs/engines.md says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines_house import KINDS, padded_family, ship_onnx

from hilbert.core import Batch, BatchOutput, ModelSpec, OutputType, Sequence
from hilbert.hub import resolve
from hilbert.models.facts import answers_of, sizes_of, usual_size
from hilbert.runtimes import Runtime, RuntimeSettings, load_runtime, matrix
from hilbert.testing.runtime import FakeRuntime

LENGTHS = [17, 1, 64, 2, 5, 33, 128, 1, 16, 90, 3]


@dataclass(frozen=True)
class Case:
    """How a runtime is loaded, and how far company may move its numbers (relative to their scale)."""

    kind: str
    engine: str = ""
    dtype: str = "float32"
    tolerance: float = 3e-6
    program: str = ""
    prepare: Callable[[Path], Path] | None = None

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.kind, self.engine, self.dtype, self.program)))


CASES = [
    Case("fake"),
    *(Case(kind, engine) for kind in KINDS for engine in matrix.ENGINES),
    *(
        Case("embedder", engine, program="padded", prepare=padded_family)
        for engine in ("openvino", "torch", "onnx")
    ),
    Case("embedder", "openvino", "bfloat16", 3e-2),
    Case("embedder", "openvino", "int8", 5e-2),
    Case("cross-encoder", "openvino", "int8", 5e-2),
    Case("embedder", "torch", "int8"),
    Case("embedder", "torch", "bfloat16", 5e-2),
    Case("embedder", "ctranslate2", "int8", 5e-2),
    Case("embedder", "onnx", program="shipped", prepare=ship_onnx),
    Case("cross-encoder", "onnx", program="shipped", prepare=ship_onnx),
]
OUTSIDE = [c for c in CASES if c.engine and not matrix.MATRIX[c.kind][1][c.engine]]  # type: ignore[index]


@dataclass
class Loaded:
    case: Case
    spec: ModelSpec | None
    runtime: Runtime[Any]
    vocab_size: int
    together: BatchOutput

    @property
    def outputs(self) -> list[OutputType]:
        return sorted(self.runtime.info.outputs)

    def run(self, sequences: tuple[Sequence, ...], outputs: frozenset[OutputType]) -> BatchOutput:
        return self.runtime.run(self.runtime.prepare(Batch(sequences, outputs)))


def sequences(vocab_size: int) -> tuple[Sequence, ...]:
    random = np.random.default_rng(11)
    return tuple(
        Sequence(0, i, random.integers(10, vocab_size, n).astype(np.int32)) for i, n in enumerate(LENGTHS)
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], ModelSpec]:
    root, made = tmp_path_factory.mktemp("models"), {}

    def find(case: Case) -> ModelSpec:
        key = (case.kind, case.prepare)
        if key not in made:
            folder = root / str(len(made))
            path = KINDS[case.kind](folder)
            made[key] = path if case.prepare is None else case.prepare(path)
        return resolve(str(made[key]))

    return find


@pytest.fixture(scope="module", params=[c for c in CASES if c not in OUTSIDE], ids=lambda c: c.name)
def loaded(
    request: pytest.FixtureRequest,
    models: Callable[[Case], ModelSpec],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Loaded]:
    case: Case = request.param
    spec = None
    if case.kind == "fake":
        runtime: Runtime[Any] = FakeRuntime(outputs=frozenset(OutputType))
        vocab_size = 500
    else:
        spec = models(case)
        cache = str(tmp_path_factory.getbasetemp() / "cache")
        settings = RuntimeSettings(engine=case.engine, dtype=case.dtype, device="cpu", cache_dir=cache)
        runtime, vocab_size = load_runtime(spec, settings), spec.vocab_size
    together = runtime.run(runtime.prepare(Batch(sequences(vocab_size), runtime.info.outputs)))
    yield Loaded(case, spec, runtime, vocab_size, together)
    runtime.close()


def rows(output: BatchOutput, kind: OutputType, vocab_size: int) -> list[np.ndarray]:
    """An array per sequence, float32."""
    if kind is OutputType.SPARSE:
        assert output.sparse is not None
        found = []
        for vector in output.sparse:
            assert vector.token_ids.dtype == np.int32 and (np.diff(vector.token_ids) > 0).all()
            row = np.zeros(65_536, np.float32)
            row[vector.token_ids] = vector.weights
            found.append(row)
        return found
    found = getattr(output, kind.value)
    assert found is not None
    assert all(row.dtype == np.float32 for row in found)
    return list(found)


def check_equal(loaded: Loaded, mine: BatchOutput, theirs: BatchOutput, kind: OutputType) -> None:
    size = loaded.vocab_size
    for a, b in zip(rows(mine, kind, size), rows(theirs, kind, size), strict=True):
        scale = max(1.0, float(np.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, atol=loaded.case.tolerance * scale, rtol=0)


def picked(output: BatchOutput, places: list[int]) -> BatchOutput:
    def pick(rows: Any) -> Any:
        if rows is None:
            return None
        return rows[places] if isinstance(rows, np.ndarray) else tuple(rows[i] for i in places)

    return BatchOutput(*(pick(getattr(output, n)) for n in ("dense", "logits", "multivector", "sparse")))


def test_it_returns_what_the_table_says(loaded: Loaded) -> None:
    """And nothing that was not asked for; every sequence has its row, finite and of the size that it says."""
    info, case = loaded.runtime.info, loaded.case
    if case.engine and not case.program:
        listed = matrix.MATRIX[case.kind][1][case.engine]  # type: ignore[index]
        assert info.outputs <= listed if case.kind == "other" else info.outputs == listed
    assert info.outputs, info
    assert case.program in ("", info.program)
    if case.dtype and case.engine and info.program != "static":
        assert info.dtype == case.dtype
    for kind in loaded.outputs:
        found = rows(loaded.together, kind, loaded.vocab_size)
        assert len(found) == len(LENGTHS)
        assert all(np.isfinite(row).all() for row in found)
        widths = {
            OutputType.DENSE: info.dimensions,
            OutputType.LOGITS: info.num_labels,
            OutputType.MULTIVECTOR: info.token_dimensions,
            OutputType.SPARSE: 65_536,
        }
        assert {row.shape[-1] for row in found} == {widths[kind]}
        if kind is OutputType.MULTIVECTOR:
            assert [len(row) for row in found] == LENGTHS


def test_what_is_told_of_a_model_is_true_before_and_after_it_is_loaded(loaded: Loaded) -> None:
    spec, info = loaded.spec, loaded.runtime.info
    if spec is None:
        return
    sizes, before = sizes_of(spec, info), sizes_of(spec, None)
    assert set(sizes) == info.outputs - {OutputType.LOGITS}
    for kind, size in sizes.items():
        assert before.get(kind, size) == size and (kind in before or spec.kind == "other")
        if kind is OutputType.SPARSE:
            assert max(int(v.token_ids.max()) for v in loaded.together.sparse or ()) < size <= 1000
        else:
            assert {row.shape[-1] for row in rows(loaded.together, kind, loaded.vocab_size)} == {size}
    assert usual_size(spec, info) == {"cross-encoder": None, "sparse": sizes.get(OutputType.SPARSE)}.get(
        loaded.case.kind, next(iter(sizes.values()), None)
    )
    assert ("json" in answers_of(spec, info)) == (loaded.case.kind == "cross-encoder")
    assert set(answers_of(spec, info)) <= set(answers_of(spec, None))


def test_alone_equals_in_company(loaded: Loaded) -> None:
    batch = sequences(loaded.vocab_size)
    for place in (0, 1, 4, 6):  # middling, one token, short, the longest
        alone = loaded.run((batch[place],), loaded.runtime.info.outputs)
        for kind in loaded.outputs:
            check_equal(loaded, alone, picked(loaded.together, [place]), kind)


def test_a_permutation_changes_nothing(loaded: Loaded) -> None:
    batch = sequences(loaded.vocab_size)
    order = np.random.default_rng(3).permutation(len(batch)).tolist()
    permuted = loaded.run(tuple(batch[i] for i in order), loaded.runtime.info.outputs)
    for kind in loaded.outputs:
        check_equal(loaded, permuted, picked(loaded.together, order), kind)


def test_outputs_asked_for_together_equal_those_asked_for_alone(loaded: Loaded) -> None:
    batch = sequences(loaded.vocab_size)
    for kind in loaded.outputs:
        alone = loaded.run(batch, frozenset({kind}))
        check_equal(loaded, alone, loaded.together, kind)
        others = {"dense", "logits", "multivector", "sparse"} - {kind.value}
        assert all(getattr(alone, name) is None for name in others)


@pytest.mark.parametrize("case", OUTSIDE, ids=lambda c: c.name)
def test_what_is_not_in_the_table_is_refused_by_name(case: Case, models: Callable[[Case], ModelSpec]) -> None:
    from hilbert.errors import UnsupportedArchitecture

    spec = models(case)
    with pytest.raises(UnsupportedArchitecture) as caught:
        load_runtime(spec, RuntimeSettings(engine=case.engine, device="cpu"))
    message = caught.value.message
    assert f"engine {case.engine}" in message and "--engine openvino" in message
    assert all(o in message for o in matrix.returned(spec, "openvino"))
