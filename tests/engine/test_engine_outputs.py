"""Every kind of output through the engine: several from one run, each in its place, and a bad one alone."""

from __future__ import annotations

import random
import threading
from itertools import chain, combinations

import numpy as np
import pytest

from hilbert.core import BatchOutput, OutputType, Request, Sequence, SparseVector
from hilbert.engine import LocalEngine
from hilbert.errors import EngineError, InvalidInput, NonFiniteOutput, ShuttingDown, UnsupportedTask
from hilbert.testing.runtime import FakeRuntime, fake_sparse, tokens

BAD, SICK, COMPANY, ZERO, SHORT = 901, 902, 903, 904, 905
ALL = frozenset(OutputType)
SETS = [frozenset(s) for s in chain.from_iterable(combinations(OutputType, n) for n in range(1, 5))]


def names(outputs):
    return "+".join(sorted(outputs))


@pytest.mark.parametrize("outputs", SETS, ids=names)
def test_several_outputs_come_from_one_run(make_bench, outputs):
    runtime = FakeRuntime(outputs=ALL, record=True)
    bench = make_bench(runtime)
    bench.submit(*(tokens(i, i + 1, repeat=1 + i % 5) for i in range(12)), outputs=outputs).check_rows()
    assert runtime.num_runs == 1
    assert runtime.batches[0].outputs == outputs


@pytest.mark.parametrize("outputs", SETS, ids=names)
def test_a_request_in_many_batches(make_bench, outputs):
    bench = make_bench(FakeRuntime(outputs=ALL), max_batch_tokens=16)
    bench.submit(*(tokens(i, 7, repeat=1 + i % 4) for i in range(100)), outputs=outputs).check_rows()
    assert bench.runtime.num_runs > 30


@pytest.mark.parametrize("seed", range(3))
def test_requests_of_all_kinds_in_flight(make_bench, seed):
    """A batch has the outputs of all its requests, and nobody gets another's."""
    rng = random.Random(seed)
    runtime = FakeRuntime(
        outputs=ALL, raise_on_token=BAD, nan_on_token=SICK, nan_once_on_token=COMPANY, record=True
    )
    bench = make_bench(runtime, max_batch_tokens=100, max_batch_sequences=16)
    problems: list[BaseException] = []
    lock = threading.Lock()

    def client() -> None:
        try:
            for _ in range(15):
                with lock:
                    kinds = rng.choices([1, BAD, SICK, COMPANY], [92, 2, 3, 3], k=rng.choice([1, 1, 3, 40]))
                    inputs = [tokens(rng.randint(1, 800), kind, repeat=rng.randint(1, 9)) for kind in kinds]
                    caller = bench.submit(*inputs, outputs=rng.choice(SETS))
                caller.check_rows(bad={i for i, kind in enumerate(kinds) if kind in (BAD, SICK)})
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]
    assert {b.outputs for b in runtime.batches} == set(SETS)
    assert any(len({s.request_id for s in b.sequences}) > 1 for b in runtime.batches)


@pytest.mark.parametrize("output", OutputType)
@pytest.mark.parametrize("bad", [{0}, {31}, {3, 17, 30}, set(range(32))])
def test_a_bad_input_fails_alone(make_bench, output, bad):
    bench = make_bench(FakeRuntime(outputs=ALL, raise_on_token=BAD))
    inputs = [tokens(i, BAD if i in bad else 1) for i in range(32)]
    bench.submit(*inputs, outputs=frozenset({output})).check_rows(bad=bad)


@pytest.mark.parametrize("output", OutputType)
@pytest.mark.parametrize("outputs", SETS, ids=names)
def test_one_output_that_is_not_finite_makes_the_sequence_bad(make_bench, output, outputs):
    runtime = FakeRuntime(outputs=ALL, nan_on_token=SICK, nan_output=output, record=True)
    bench = make_bench(runtime)
    inputs = [tokens(i, SICK if i in (2, 5) else 1) for i in range(8)]
    bad = {2, 5} if output in outputs else set()
    answer = bench.submit(*inputs, outputs=outputs).check_rows(bad=bad)
    assert all(isinstance(e, NonFiniteOutput) for e in answer.errors.values())
    assert [len(b.sequences) for b in runtime.batches] == [8, 1, 1][: 1 + len(bad)]
    assert {b.outputs for b in runtime.batches} == {outputs}  # a second try asks for all of them again


@pytest.mark.parametrize("output", OutputType)
def test_what_is_finite_alone_is_delivered(make_bench, output):
    bench = make_bench(FakeRuntime(outputs=ALL, nan_once_on_token=SICK, nan_output=output))
    inputs = [tokens(i, SICK if i in (2, 5) else 1) for i in range(8)]
    bench.submit(*inputs, outputs=frozenset({output})).check_rows()


def test_bad_neighbours_of_other_kinds(make_bench):
    """Three requests share a batch; each loses its own inputs and no others."""
    bench = make_bench(FakeRuntime(outputs=ALL, nan_on_token=SICK, record=True), is_started=False)
    callers = [
        bench.submit(*(tokens(k, SICK if i == k else 1, repeat=i + 1) for i in range(4)), outputs=ALL)
        for k in range(3)
    ]
    bench.engine.start()
    for k, caller in enumerate(callers):
        caller.check_rows(bad={k})
    assert len(bench.runtime.batches[0].sequences) == 12


@pytest.mark.parametrize("num", [1, 6])
@pytest.mark.parametrize("outputs", [frozenset({OutputType.DENSE}), ALL], ids=names)
def test_a_vector_of_zeros_is_a_failure(make_bench, num, outputs):
    """OpenVINO returns such rows, and no error, when it gets no memory."""
    bench = make_bench(FakeRuntime(outputs=ALL, zero_on_token=ZERO, record=True))
    answer = bench.submit(*(tokens(i, ZERO if i == num - 1 else 1) for i in range(num)), outputs=outputs)
    output = answer.check_rows(bad={num - 1})
    assert isinstance(output.errors[num - 1], NonFiniteOutput)
    assert "zeros" in output.errors[num - 1].message
    assert [len(b.sequences) for b in bench.runtime.batches] == [num, 1]


def test_a_vector_of_zeros_from_a_table_is_none(make_bench):
    bench = make_bench(FakeRuntime(program="static", zero_on_token=ZERO))
    output = bench.submit(tokens(1), tokens(ZERO)).output()
    assert not output.errors
    assert output.dense[0].any() and not output.dense[1].any()


def test_a_vector_that_only_begins_with_zeros_is_none(make_bench):
    runtime = FakeRuntime()
    rows = np.eye(8, dtype=np.float32)
    runtime.run = lambda prepared: BatchOutput(dense=rows)
    bench = make_bench(runtime)
    output = bench.submit(*[tokens(1)] * 8).output()
    assert not output.errors
    np.testing.assert_array_equal(output.dense, rows)


def test_logits_may_be_zero(make_bench):
    runtime = FakeRuntime(outputs=ALL)
    runtime.run = lambda prepared: BatchOutput(logits=np.zeros((1, 3), np.float32))
    bench = make_bench(runtime)
    assert not bench.submit(tokens(1), outputs=frozenset({OutputType.LOGITS})).output().errors


def test_a_sparse_vector_may_be_empty(make_bench):
    runtime = FakeRuntime(outputs=ALL)
    runtime.run = lambda prepared: BatchOutput(sparse=(fake_sparse(tokens(1)[:0]), fake_sparse(tokens(1))))
    bench = make_bench(runtime)
    output = bench.submit(tokens(1), tokens(1), outputs=frozenset({OutputType.SPARSE})).output()
    assert not output.errors
    assert [len(v.weights) for v in output.sparse] == [0, 1]


@pytest.mark.parametrize("output", OutputType)
def test_too_few_rows_are_an_error_of_the_engine(make_bench, output):
    bench = make_bench(FakeRuntime(outputs=ALL, wrong_shape_on_token=SHORT))
    caller = bench.submit(tokens(1), tokens(SHORT), outputs=frozenset({output}))
    assert isinstance(caller.check_rows(bad={0, 1}).errors[0], EngineError)
    assert bench.runtime.num_runs == 1
    bench.submit(tokens(1), outputs=frozenset({output})).check_rows()


def table(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("output", "wrong"),
    [
        (OutputType.DENSE, BatchOutput()),
        (OutputType.DENSE, BatchOutput(dense=table(2, 9))),
        (OutputType.LOGITS, BatchOutput(dense=table(2, 8))),
        (OutputType.LOGITS, BatchOutput(logits=table(2))),
        (OutputType.LOGITS, BatchOutput(logits=table(2, 1))),
        (OutputType.MULTIVECTOR, BatchOutput()),
        (OutputType.MULTIVECTOR, BatchOutput(multivector=(table(3, 4), table(3, 5)))),
        (OutputType.MULTIVECTOR, BatchOutput(multivector=(table(3, 4), table(4)))),
        (OutputType.SPARSE, BatchOutput()),
        (OutputType.SPARSE, BatchOutput(sparse=(SparseVector(tokens(1), table(2)),) * 2)),
        (OutputType.SPARSE, BatchOutput(sparse=(SparseVector(tokens(1)[None], table(1, 1)),) * 2)),
    ],
)
def test_a_wrong_shape_is_an_error_of_the_engine(make_bench, output, wrong):
    runtime = FakeRuntime(outputs=ALL)
    runtime.run = lambda prepared: wrong
    bench = make_bench(runtime)
    answer = bench.submit(tokens(1), tokens(2), outputs=frozenset({output})).check_rows(bad={0, 1})
    assert isinstance(answer.errors[0], EngineError)
    assert "the runtime returned" in answer.errors[0].message


def test_what_was_not_asked_for_is_not_delivered_and_harms_nobody(make_bench):
    runtime = FakeRuntime(outputs=ALL)
    run = runtime.run

    def run_and_more(prepared):
        output = run(prepared)
        return BatchOutput(output.dense, logits=np.full((1, 1), np.nan, np.float32), multivector=())

    runtime.run = run_and_more
    make_bench(runtime).submit(tokens(1)).check_rows()


def test_an_answer_does_not_share_memory_with_the_batch(make_bench):
    runtime = FakeRuntime(outputs=ALL)
    seen = []
    run = runtime.run

    def remember(prepared):
        seen.append(run(prepared))
        return seen[-1]

    runtime.run = remember
    output = make_bench(runtime).submit(tokens(1, 2), tokens(2), outputs=ALL).check_rows()
    batch = seen[0]
    assert not np.shares_memory(output.logits, batch.logits)
    assert not np.shares_memory(output.multivector[0], batch.multivector[0])
    assert not np.shares_memory(output.sparse[0].weights, batch.sparse[0].weights)
    assert not np.shares_memory(output.sparse[0].token_ids, batch.sparse[0].token_ids)


@pytest.mark.parametrize("num_slots", [1, 2])
@pytest.mark.parametrize(
    "can", [{OutputType.DENSE}, {OutputType.LOGITS}, ALL - {OutputType.SPARSE}], ids=names
)
def test_what_the_runtime_cannot_is_refused(make_bench, can, num_slots):
    runtime = FakeRuntime(outputs=frozenset(can), num_slots=num_slots, record=True)
    bench = make_bench(runtime, name="a/model")
    for outputs in SETS:
        if outputs <= can:
            bench.submit(tokens(1), outputs=outputs).check_rows()
            continue
        with pytest.raises(UnsupportedTask) as error:
            bench.submit(tokens(1), outputs=outputs)
        message, _, available = error.value.message.partition("; it returns ")
        assert message.startswith("a/model does not return ")
        assert set(message.removeprefix("a/model does not return ").split(", ")) == outputs - can
        assert set(available.split(", ")) == can
    assert bench.engine.num_requests == 0
    assert {b.outputs for b in runtime.batches} == {s for s in SETS if s <= can}


def test_a_request_without_outputs_is_refused(make_bench):
    bench = make_bench()
    with pytest.raises(InvalidInput, match="at least one output"):
        bench.submit(tokens(1), outputs=frozenset())
    assert bench.engine.num_requests == 0


@pytest.mark.parametrize("output", OutputType)
def test_the_handle_tells_bad_inputs_from_a_failed_request(make_bench, output):
    bench = make_bench(FakeRuntime(outputs=ALL, raise_on_token=BAD))
    handle = LocalEngine(bench.engine)
    request = Request(1, (Sequence(1, 0, tokens(BAD)), Sequence(1, 1, tokens(BAD))), frozenset({output}))
    assert sorted(handle.run_sync(request, timeout=10).errors) == [0, 1]
    bench.engine.drain()
    with pytest.raises(ShuttingDown):
        handle.run_sync(request, timeout=10)
