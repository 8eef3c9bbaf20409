"""Long lists, busy servers, cut connections: what goes in parts, what is sent again, what ends a call."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from email.utils import formatdate

import msgspec
import numpy as np
import pytest
from client_house import Server, array, encoded_answer, error_answer, vector_of
from PIL import Image

import hilbert
from hilbert import errors
from hilbert.client import Hit

FULL = error_answer("full", "overloaded")
SOON = {"retry-after-ms": "20", "retry-after": "1"}


def texts(number: int) -> list[str]:
    return ["x" * (n % 50) for n in range(number)]


def test_a_long_list_goes_in_parts_several_at_a_time(embed, server: Server) -> None:
    server.gate.clear()
    threading.Timer(0.3, server.gate.set).start()
    given = texts(23)
    found = embed(iter(given), client={"batch_size": 5, "max_in_flight": 3})
    assert np.array_equal(found, [vector_of(text) for text in given])
    assert sorted(len(body["input"]) for _, _, body in server.seen) == [3, 5, 5, 5, 5]
    assert server.busiest == 3


def test_parts_are_bounded_in_bytes(embed, server: Server) -> None:
    found = embed(["x" * 9_000_000, "y" * 9_000_000, "z"])
    assert len(found) == 3 and sorted(len(body["input"]) for _, _, body in server.seen) == [1, 2]


def test_parts_of_every_call_become_one_answer(embed, server: Server) -> None:
    two = {"client": {"batch_size": 2, "max_in_flight": 1}}
    server.answer = json.dumps(
        {"results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}]}
    ).encode()
    hits = embed("q", ["a", "b", "c", "d"], method="rerank", top_n=3, **two)
    assert hits == [Hit(1, 0.5), Hit(3, 0.5), Hit(0, 0.25)]
    assert [body["documents"] for _, _, body in server.seen] == [["a", "b"], ["c", "d"]]
    server.answer = json.dumps({"data": [[{"label": "joy", "score": 1.0}]] * 2}).encode()
    assert len(embed(["a", "b", "c", "d"], method="classify", **two)) == 4
    rows = array(np.ones(3, "<f4"))
    sparse = {"indices": array(np.zeros(1, np.int32)), "values": array(np.ones(1, "<f4"))}
    item = {
        "dense": {"values": rows},
        "sparse": sparse,
        "multivector": {"values": array(np.ones((2, 3), "<f4"))},
    }
    server.answer = encoded_answer(item, item)
    every = embed(texts(4), method="encode", outputs={"dense", "sparse", "multivector"}, **two)
    assert every.dense.shape == (4, 3) and len(every.sparse) == len(every.multivector) == 4


@pytest.mark.parametrize(
    "refusal",
    [
        (429, SOON, FULL),
        (503, {"retry-after": "0.02"}, error_answer("loading", "model_loading")),
        (503, {"retry-after-ms": "20"}, b'{"detail": {"code": "QUEUE_FULL", "message": "full"}}'),
        (502, {}, b"<html>bad gateway</html>"),
        None,
    ],
)
def test_what_passes_is_sent_again(embed, server: Server, refusal, monkeypatch) -> None:
    monkeypatch.setattr("hilbert.client.retries._FIRST_WAIT_SECONDS", 0.05)
    server.script.extend([refusal, refusal])
    assert np.array_equal(embed(["abc"]), [vector_of("abc")])
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        ((400, {}, error_answer("no", "invalid_value")), errors.InvalidInput),
        ((500, {"x-should-retry": "false"}, error_answer("broken", "model_error")), errors.ModelError),
        ((503, {"x-should-retry": "false"}, error_answer("lost", "worker_lost")), errors.WorkerLost),
        ((502, {}, b'{"detail": {"code": "MODEL_LOAD_FAILED", "message": "no"}}'), errors.ServingError),
        ((429, {"retry-after": "3600"}, error_answer("quota", "rate_limit_exceeded")), errors.RateLimited),
        (
            (
                400,
                {},
                b'{"detail": {"code": "INVALID_INPUT", "message": "long", "reason": "input_too_long"}}',
            ),
            errors.InputTooLong,
        ),
    ],
)
def test_what_does_not_pass_is_not(embed, server: Server, refusal, kind) -> None:
    server.script.append(refusal)
    with pytest.raises(kind):
        embed(["abc"])
    assert len(server.seen) == 1


def test_retry_after_is_honoured_in_seconds_and_as_a_date(embed, server: Server) -> None:
    server.script.append((429, {"retry-after": "0.3"}, FULL))
    began = time.monotonic()
    embed(["a"])
    assert 0.3 <= time.monotonic() - began < 2
    server.script.append((429, {"retry-after": formatdate(time.time() + 3600, usegmt=True)}, FULL))
    with pytest.raises(errors.Overloaded) as caught:
        embed(["a"])
    assert caught.value.retry_after_seconds == pytest.approx(3600, abs=5)


@pytest.mark.parametrize("when", ["0", "-3", "nan", formatdate(0, usegmt=True)])
def test_a_server_that_says_at_once_is_not_flooded(embed, server: Server, when: str) -> None:
    """A date of a clock that is ahead of the server's means that, too."""
    server.status, server.extra_headers, server.answer = 503, {"retry-after": when}, FULL
    with pytest.raises(errors.Overloaded):
        embed(["a"], client={"retry_seconds": 0.3})
    assert 2 <= len(server.seen) <= 8


def test_patience_ends(embed, server: Server) -> None:
    server.status, server.answer, server.extra_headers = 429, FULL, SOON
    began = time.monotonic()
    with pytest.raises(errors.Overloaded):
        embed(["a"], client={"retry_seconds": 0.3})
    assert 0.1 < time.monotonic() - began < 2 and len(server.seen) > 3
    with pytest.raises(errors.Overloaded):
        embed(texts(9), client={"retry_seconds": 0, "batch_size": 2})


def test_one_bad_item_among_many_is_named_by_its_place_in_the_list(embed, server: Server) -> None:
    bad = error_answer("input[1]: 999 tokens; the limit is 128.", "input_too_long", param="input")
    server.script.extend([(200, {}, b""), (200, {}, b""), (400, {}, bad)])
    with pytest.raises(errors.InputTooLong, match=r"^input\[21\]: 999 tokens") as caught:
        embed(texts(100), client={"batch_size": 10, "max_in_flight": 1})
    assert caught.value.index == 21 and caught.value.param == "input"
    assert len(server.seen) == 3, "nothing is sent after that"


def test_a_failure_ends_the_waits_of_the_others(embed, server: Server) -> None:
    server.script.extend([(429, {"retry-after": "30"}, FULL), (400, {}, error_answer("no", "invalid_value"))])
    began = time.monotonic()
    with pytest.raises(errors.ServingError):
        embed(texts(4), client={"batch_size": 1, "max_in_flight": 2})
    assert time.monotonic() - began < 5


def test_no_answer_in_time_says_what_to_do(embed, server: Server) -> None:
    server.gate.clear()
    with pytest.raises(errors.ServerUnreachable, match=r"did not answer within 0\.2 s.*batch_size.*timeout"):
        embed(["a"], client={"timeout": 0.2})


def test_a_server_that_went_away_is_waited_for_and_named(server: Server, monkeypatch) -> None:
    monkeypatch.setattr("hilbert.client.retries._FIRST_WAIT_SECONDS", 0.05)
    with hilbert.Client(server.url, retry_seconds=0.3) as client:
        client.embed("a")
        server.script.append(None)
        server.stop_listening()
        began = time.monotonic()
        with pytest.raises(errors.ServerUnreachable, match="No server answers"):
            client.embed("a")
    assert 0.1 < time.monotonic() - began < 5


def test_one_pool_of_connections_for_many_threads(server: Server) -> None:
    with hilbert.Client(server.url) as client:
        found: list[np.ndarray] = []
        threads = [threading.Thread(target=lambda: found.append(client.embed(texts(9)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4 and all(np.array_equal(rows, found[0]) for rows in found)


def test_images_that_pillow_opened(embed, server: Server) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    server.answer = encoded_answer({"dense": {"values": array(np.ones(3, "<f4"))}})
    for mode in ("RGB", "CMYK"):
        embed(Image.fromarray(pixels).convert(mode), method="encode")
        (item,) = server.seen[-1][2]["items"]
        with Image.open(io.BytesIO(item["images"][0]["data"])) as sent:
            assert sent.format == "PNG" and sent.mode == "RGB" and sent.size == (4, 4)
            assert np.array_equal(np.asarray(sent), pixels)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([b"x", 3],), r"input\[1\] is a int"),
        (("q", "doc"), "documents is a string"),
        (("q", ["a", b"x"]), r"documents\[1\] is a bytes"),
    ],
)
def test_what_no_server_reads_is_refused_here(embed, server: Server, arguments, words) -> None:
    with pytest.raises(errors.InvalidInput, match=words):
        embed(*arguments, method="rerank" if len(arguments) == 2 else "embed")
    assert not server.seen


def test_settings_that_make_no_sense(server: Server) -> None:
    for name in ("batch_size", "max_in_flight"):
        with pytest.raises(errors.InvalidInput, match=f"{name} is 0"):
            hilbert.Client(server.url, **{name: 0})
    with hilbert.Client(server.url) as client, pytest.raises(TypeError):
        client.embed("a", dimension=3)


def test_a_bar_on_a_terminal_only(embed, server: Server, monkeypatch, capsys) -> None:
    import hilbert.client.progress as module

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(module, "_DELAY_SECONDS", 0.0)
    few = {"batch_size": 2, "max_in_flight": 1}
    embed(texts(6), client=few)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    embed(texts(6), client=few)
    assert "6/6" in terminal.getvalue() or "inputs" in terminal.getvalue()
    shown = len(terminal.getvalue())
    embed(texts(6), client={**few, "show_progress": False})
    assert len(terminal.getvalue()) == shown


def test_every_body_is_msgpack_or_json(embed, server: Server) -> None:
    server.answer = encoded_answer({"dense": {"values": array(np.ones(3, "<f4"))}})
    embed("a", method="encode")
    assert server.seen[-1][1]["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(server.answer)["model"] == "m"
