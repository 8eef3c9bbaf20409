"""Runtimes and tokenizers that fail inside a real server, over HTTP: only the guilty request pays."""

from __future__ import annotations

from collections.abc import Iterator

import dangerous
import pytest
from chaos_house import DANGEROUS, Readiness, Together, serving, until
from cli_house import Server, is_alive

WORKER_TIMEOUT = 2.0
# Two hangs (the second convicts), two new workers, and room for a busy machine.
LIMIT_SECONDS = 2 * WORKER_TIMEOUT + 20.0
GOOD = [[100 + i, 101 + i, 102] for i in range(30)]
NO_RESTART = {
    "raises": (dangerous.RAISE, "internal_error"),
    "panics": (dangerous.PANIC, "internal_error"),
    "allocates too much": (dangerous.ALLOCATE, "out_of_memory"),
    "does not fit": (dangerous.DOES_NOT_FIT, "out_of_memory"),
    "NaN": (dangerous.NAN, "non_finite_output"),
}
RESTART = {"hangs": dangerous.HANG, "crashes": dangerous.SEGFAULT}


@pytest.fixture(scope="module")
def server(static: str) -> Iterator[Server]:
    with serving(
        "-m", static, "--worker-timeout", str(WORKER_TIMEOUT), "--request-timeout", "30", program=DANGEROUS
    ) as it:
        yield it


@pytest.fixture(scope="module")
def vectors(server: Server) -> list[object]:
    """What the good requests are answered with."""
    return [row["embedding"] for row in server.post(GOOD).json()["data"]]  # type: ignore[arg-type]


def check_others(answers: list, vectors: list[object], *, may_be_late: bool = False) -> None:
    """They have their vectors. Where no new worker came in time (of a busy machine), they may come again."""
    for (reply, seconds), vector in zip(answers, vectors, strict=True):
        assert seconds < LIMIT_SECONDS
        if may_be_late and reply.status_code == 503:
            assert reply.json()["error"]["code"] == "worker_lost" and reply.headers["retry-after"]
            continue
        assert reply.status_code == 200, reply.text
        assert reply.json()["data"][0]["embedding"] == vector


def in_one_batch(server: Server, token: int) -> list:
    """The answers to a guilty request and to the good ones, which all waited while the device was busy."""
    busy = Together(server, [{"input": [[dangerous.SLOW]]}])
    until(lambda: server.metric("hilbert_queue_requests") == 1, "the device is busy")
    answers = Together(server, [{"input": [ids]} for ids in ([99, token], *GOOD)]).answers
    assert busy.answers[0][0].status_code == 200
    return answers


@pytest.mark.parametrize("fault", NO_RESTART)
def test_a_fault_costs_one_request_and_no_worker(server: Server, vectors: list[object], fault: str) -> None:
    token, code = NO_RESTART[fault]
    (worker,) = server.children
    before = server.metric("hilbert_batch_sequences_count")
    with Readiness(server) as readiness:
        (guilty, seconds), *others = in_one_batch(server, token)
    assert (guilty.status_code // 100, guilty.json()["error"]["code"]) == (5, code), guilty.text
    assert seconds < LIMIT_SECONDS and "secret" not in guilty.text and "Traceback" not in guilty.text
    check_others(others, vectors)
    assert readiness.seen == [200] and server.children == [worker]
    # They came in one batch, and not each by itself: it is the engine that found the guilty one.
    assert server.metric("hilbert_batch_sequences_count") - before < len(GOOD)


@pytest.mark.parametrize("fault", RESTART)
def test_a_lost_worker_costs_one_request_and_shows(server: Server, vectors: list[object], fault: str) -> None:
    (worker,) = server.children
    lost = server.metric("hilbert_worker_restarts_total")
    with Readiness(server) as readiness:
        (guilty, seconds), *others = in_one_batch(server, RESTART[fault])
        until(lambda: server.get("/readyz").status_code == 200, "it is ready again", 40)
    assert guilty.status_code == 500 and "twice" in guilty.json()["error"]["message"], guilty.text
    assert seconds < LIMIT_SECONDS
    check_others(others, vectors, may_be_late=True)
    assert readiness.seen[0] == 200 and 503 in readiness.seen
    assert not is_alive(worker) and len(server.children) == 1
    assert server.metric("hilbert_worker_restarts_total") >= lost + 2  # in company, and alone


@pytest.mark.parametrize("mark", [dangerous.BROKEN, dangerous.PANICKING], ids=["raises", "panics"])
@pytest.mark.parametrize("length", [1, 5000], ids=["inline", "in a thread"])
def test_a_tokenizer_that_fails(server: Server, vectors: list[object], mark: str, length: int) -> None:
    guilty = {"input": "room " * length + mark}
    answers = Together(server, [guilty, *({"input": [ids]} for ids in GOOD)]).answers
    (reply, seconds), *others = answers
    assert reply.status_code == 500 and reply.json()["error"]["type"] == "server_error", reply.text
    assert reply.headers["x-request-id"] in reply.text and "secret" not in reply.text
    assert seconds < LIMIT_SECONDS
    check_others(others, vectors)
    until(lambda: server.metric("hilbert_queue_requests") == 0, "nobody waits")
