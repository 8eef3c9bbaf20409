"""The client against a real HTTP server on loopback that says what a test wants it to say."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time

import numpy as np
import pytest
from client_house import Server, array, encoded_answer, vector_of

from hilbert import errors


def test_vectors_come_back_exact_in_order_and_writable(embed) -> None:
    texts = ["a", "", "ünï\u2028code", "x" * 1000]
    vectors = embed(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (4, 3)
    assert np.array_equal(vectors, [vector_of(text) for text in texts])
    vectors[0] = 0


def test_a_lone_text_is_one_row_not_its_letters(embed) -> None:
    assert embed("abc").tolist() == [vector_of("abc").tolist()]


def test_what_is_sent(embed, server) -> None:
    embed(["a"])
    path, headers, body = server.seen[-1]
    assert path == "/v1/embeddings" and body == {"input": ["a"], "encoding_format": "base64"}
    assert "authorization" not in {name.lower() for name in headers}
    embed(
        ("a", "b"),
        "m",
        dimensions=2,
        prompt_name="",
        prompt="p",
        input_type="query",
        truncate=False,
        client={"api_key": "sesame", "base_url": server.url + "/v1/"},
    )
    path, headers, body = server.seen[-1]
    assert path == "/v1/embeddings"
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer sesame"
    assert body == {
        "input": ["a", "b"],
        "encoding_format": "base64",
        "model": "m",
        "dimensions": 2,
        "prompt_name": "",
        "prompt": "p",
        "input_type": "query",
        "truncate": False,
    }


TOKENS = [np.arange(6, dtype=np.float32).reshape(3, 2) / 3, np.zeros((0, 2), np.float32)]


def token_item(rows: np.ndarray) -> dict[str, object]:
    return {"embedding": base64.b64encode(rows.astype("<f4").tobytes()).decode(), "shape": rows.shape}


def items_answer(*items: dict[str, object]) -> bytes:
    data = [{"index": index, **item} for index, item in enumerate(items)]
    return json.dumps({"object": "list", "data": data[::-1], "model": "colbert", "usage": {}}).encode()


def test_token_vectors_are_never_flattened(embed, server) -> None:
    server.answer = items_answer(token_item(TOKENS[0]), token_item(TOKENS[0]))
    with pytest.raises(errors.UnsupportedTask, match=r"colbert .* call embed_multivector") as caught:
        embed(["a", "b"], "colbert")
    assert caught.value.status == 400


def test_every_kind_of_vector_in_one_answer(embed, server, tmp_path) -> None:
    dense = np.array([1, 1 / 3, -1e-30], "<f4")
    ids, weights = np.array([3, 70000], np.int32), np.array([1.25, 0.5], "<f4")
    sparse = {"indices": array(ids), "values": array(weights)}
    empty = {"indices": array(ids[:0]), "values": array(weights[:0])}
    item = {"dense": {"values": array(dense)}, "sparse": sparse, "multivector": {"values": array(TOKENS[0])}}
    other = {"dense": {"values": array(-dense)}, "sparse": empty, "multivector": {"values": array(TOKENS[1])}}
    server.answer = encoded_answer(item, other)
    asked = {"dimensions": 2, "prompt_name": "", "input_type": "query", "truncate": False}
    file = tmp_path / "a.wav"
    file.write_bytes(b"sound")
    for outputs in (["dense", "multivector", "sparse"], {"sparse", "dense", "multivector"}):
        found = embed(["a", b"image"], "x/m", method="encode", outputs=outputs, prompt="p", **asked)
    assert np.array_equal(found.dense, [dense, -dense]) and found.dense.dtype == np.float32
    assert [v.token_ids.tolist() for v in found.sparse] == [[3, 70000], []]
    assert found.sparse[0].token_ids.dtype == np.int32 and found.sparse[0].weights.tolist() == [1.25, 0.5]
    assert all(np.array_equal(rows, said) for rows, said in zip(found.multivector, TOKENS, strict=True))
    found.dense[0] = found.multivector[0][0] = 0
    path, headers, body = server.seen[-1]
    assert path == "/v1/encode" and headers["accept"] == "application/msgpack"
    assert body == {
        "items": [{"text": "a"}, {"images": [{"data": b"image"}]}],
        "params": {
            "output_types": ["dense", "multivector", "sparse"],
            "instruction": "p",
            "options": asked,
        },
        "model": "x/m",
    }
    tokens = embed(["a", file], method="embed_multivector")
    assert [rows.shape for rows in tokens] == [(3, 2), (0, 2)]
    body = server.seen[-1][2]
    assert body["items"] == [{"text": "a"}, {"audio": {"data": b"sound"}}] and body["model"] is None
    assert body["params"] == {"output_types": ["multivector"]}
    words = embed(["a", "b"], method="embed_sparse", input_type="query")
    assert words[0].weights.tolist() == [1.25, 0.5] and words[1].token_ids.shape == (0,)
    assert server.seen[-1][2]["params"] == {"output_types": ["sparse"], "options": {"input_type": "query"}}


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"sparse": {"indices": array(np.zeros(2, np.int32)), "values": array(np.zeros(1, "<f4"))}},
        {"sparse": {"indices": {b"data": b"abc", b"type": "<i4", b"shape": [1]}, "values": {}}},
        {"sparse": [1.0]},
    ],
)
def test_a_strange_item_is_an_error(embed, server, item) -> None:
    server.answer = encoded_answer(item)
    with pytest.raises(errors.ServingError, match=r"encoded items|has no sparse vectors"):
        embed("a", method="embed_sparse")


def test_a_path_is_a_sound_by_its_ending_else_an_image(embed, server, tmp_path) -> None:
    server.answer = items_answer()
    names = ["a.wav", "a.FLAC", "a.ogg", "a.mp3", "a.png", "a"]
    for name in names:
        (tmp_path / name).write_bytes(b"raw")
    raw = base64.b64encode(b"raw").decode()
    paths = [tmp_path / name for name in names]
    embed([*paths, b"raw"])
    sounds = [{"audio_url": f"data:audio/{kind};base64,{raw}"} for kind in ("wav", "flac", "ogg", "mpeg")]
    assert server.seen[-1][2]["input"] == [*sounds, *[{"image": raw}] * 3]
    embed(paths[:1], modality="audio")
    assert server.seen[-1][2]["input"] == [raw]


ERRORS = [
    (
        400,
        {"error": {"message": "no", "code": "input_too_long", "param": "input"}},
        errors.InputTooLong,
        "no",
    ),
    (400, {"error": {"message": "no", "code": 400, "type": None}}, errors.ClientError, "no"),
    (401, {"detail": "Unauthorized"}, errors.Unauthorized, "Unauthorized"),
    (404, {"error": {"message": "which?", "code": None}}, errors.ModelNotFound, "which?"),
    (413, {"error": "too big"}, errors.PayloadTooLarge, "too big"),
    (418, b"<html>", errors.ClientError, "I'm a Teapot"),
    (422, {"detail": [{"loc": ["body"], "msg": "bad"}]}, errors.ClientError, None),
    (429, {"error": {"message": "full", "code": "overloaded"}}, errors.Overloaded, "full"),
    (500, b"", errors.ServingError, "Internal Server Error"),
    (502, b"[]", errors.ServingError, "Bad Gateway"),
    (503, {"error": {"message": "loading", "code": "model_loading"}}, errors.ModelLoading, "loading"),
]


@pytest.mark.parametrize(("status", "answer", "kind", "message"), ERRORS)
def test_errors_are_typed(embed, server, status, answer, kind, message) -> None:
    server.status = status
    server.answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    server.extra_headers = {"retry-after": "3"}
    with pytest.raises(errors.ServingError) as caught:
        embed(["a"], client={"retry_seconds": 0})
    assert type(caught.value) is kind
    assert caught.value.status == status
    if message is not None:
        assert caught.value.message == message
    assert caught.value.retry_after_seconds == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"ok",
        b"{}",
        b'{"data":[{"index":0,"embedding":[1.0]}]}',
        b'{"data":[{"index":0,"embedding":"AAA="}]}',
        b'{"data":[{"index":9,"embedding":"AAAAAA=="}]}',
        b'{"data":[{"index":0,"embedding":"AAAAAA=="},{"index":0,"embedding":"AAAAAA=="}]}',
        b'{"data":[{"index":0,"embedding":"AAAAAA=="},{"index":1,"embedding":"AAAAAAAAAAA="}]}',
    ],
)
def test_a_strange_answer_is_an_error(embed, server, answer) -> None:
    server.answer = answer
    with pytest.raises(errors.ServingError, match="not a list of vectors"):
        embed(["a", "b"])


def test_nobody_there(embed) -> None:
    began = time.monotonic()
    with pytest.raises(
        errors.ServerUnreachable, match=r"127\.0\.0\.1:9/v1: .*hilbert serve.*base_url"
    ) as caught:
        embed(["a"], client={"base_url": "http://127.0.0.1:9"})
    assert caught.value.status == 503 and time.monotonic() - began < 5


def test_nobody_is_believed_without_a_certificate(embed, tmp_path) -> None:
    key, chain = str(tmp_path / "key.pem"), str(tmp_path / "chain.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", chain, "-days", "2", "-subj", "/CN=hilbert"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    server = Server(tls)
    try:
        with pytest.raises(errors.ServerUnreachable, match=r"(?i)certificate"):
            embed(["a"], client={"base_url": server.url})
        assert not server.seen
    finally:
        server.close()
