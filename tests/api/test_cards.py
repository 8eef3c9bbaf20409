"""What `/v1/models` says that a model returns, from its files alone; tests/conformance asks loaded ones."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hilbert.api.cards import card
from hilbert.cli.describe import describe
from hilbert.core import (
    ClassifierModule,
    ModelSpec,
    MultivectorSpec,
    SpladeModule,
    Task,
    TokenVectorsModule,
    TokenWeightsModule,
)
from hilbert.models import Entry
from hilbert.scheduler import Admission

M3 = (TokenWeightsModule("sparse_linear.pt"), TokenVectorsModule(384, skip_first=True))
LATE: dict[str, Any] = {"modules": (TokenVectorsModule(24),), "multivector": MultivectorSpec(32, 64)}
CASES: list[tuple[dict[str, Any], int | None, dict[str, int | None]]] = [
    ({}, 384, {"dense": 384, "multivector": 384}),
    ({"truncate_dim": 64}, 64, {"dense": 64, "multivector": 384}),
    ({"task": Task.RERANK}, 384, {"dense": 384, "multivector": 384}),
    ({"modules": (SpladeModule(),), "task": Task.SPARSE_EMBED}, 30_522, {"sparse": 30_522}),
    (LATE | {"task": Task.MULTI_EMBED}, 24, {"multivector": 24}),
    ({"modules": (ClassifierModule(1),), "task": Task.RERANK}, None, {"score": None, "json": None}),
    ({"modules": (ClassifierModule(3),), "task": Task.CLASSIFY}, None, {"json": None}),
    ({"kind": "other", "loaded_as": "CrossEncoder", "task": Task.RERANK}, None, {"score": None}),
    ({"kind": "other"}, None, {"dense": None}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "dimensions", "answers"), CASES, ids=range(len(CASES)))
def test_a_model_that_is_not_loaded(spec: ModelSpec, changes, dimensions, answers) -> None:
    entry = Entry("m", Admission(10, 10))
    entry.spec = msgspec.structs.replace(spec, **changes)
    shown = card(entry)
    assert shown.dimensions == dimensions and shown.outputs == list(answers)
    assert shown.dims == {name: size for name, size in answers.items() if size is not None}
    rows = {line[:12].strip(): line[12:] for line in describe(entry.spec).splitlines()}
    assert rows["dimensions"] == str(dimensions or "none")
    assert [text.split(" ")[0] for text in rows["answers"].split(", ")] == list(answers)


def test_all_vectors_of_one_model(spec: ModelSpec) -> None:
    entry = Entry("m", Admission(10, 10))
    entry.spec = msgspec.structs.replace(spec, modules=(*spec.modules, *M3))
    assert card(entry).dims == {"dense": 384, "sparse": 30_522, "multivector": 384}
    assert card(entry).dimensions == 384
