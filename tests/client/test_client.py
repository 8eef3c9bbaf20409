"""The client against a real HTTP server on loopback that says what a test wants it to say."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import httpx2
import numpy as np
import pytest

import hilbert
from hilbert import errors


class Server:
    def __init__(self) -> None:
        self.status = 200
        self.answer: bytes = b""
        self.extra_headers: dict[str, str] = {}
        self.seen: list[tuple[str, dict[str, str], dict[str, object]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.seen.append((self.path, dict(self.headers), body))
                answer = server.answer or vectors_answer(body["input"])
                self.send_response(server.status)
                for name, value in server.extra_headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def vector_of(text: str) -> np.ndarray:
    return np.array([len(text), 1 / 3, -1e-30], "<f4")


def vectors_answer(texts: list[str]) -> bytes:
    data = [
        {"object": "embedding", "index": i, "embedding": base64.b64encode(vector_of(t).tobytes()).decode()}
        for i, t in enumerate(texts)
    ]
    # Out of order on purpose: `index` says which is which.
    return json.dumps({"object": "list", "data": data[::-1], "model": "m", "usage": {}}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=["sync", "async"])
def embed(request, server):
    """`embed(*args)` of either client, or another `method`, and what it constructs it with."""

    def call(*args, client=None, method="embed", **kwargs):
        client = {"base_url": server.url, **(client or {})}
        if request.param == "sync":
            with hilbert.Client(**client) as sync:
                return getattr(sync, method)(*args, **kwargs)

        async def run():
            async with hilbert.AsyncClient(**client) as asynchronous:
                return await getattr(asynchronous, method)(*args, **kwargs)

        return anyio.run(run)

    return call


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


def items_answer(*items: dict[str, object]) -> bytes:
    data = [{"index": index, **item} for index, item in enumerate(items)]
    return json.dumps({"object": "list", "data": data[::-1], "model": "colbert", "usage": {}}).encode()


def token_item(rows: np.ndarray) -> dict[str, object]:
    return {"embedding": base64.b64encode(rows.astype("<f4").tobytes()).decode(), "shape": rows.shape}


TOKENS = [np.arange(6, dtype=np.float32).reshape(3, 2) / 3, np.zeros((0, 2), np.float32)]


def test_token_vectors_are_never_flattened(embed, server) -> None:
    server.answer = items_answer(token_item(TOKENS[0]), token_item(TOKENS[0]))
    with pytest.raises(errors.UnsupportedTask, match=r"colbert .* call embed_multivector") as caught:
        embed(["a", "b"], "colbert")
    assert caught.value.status == 400


def test_token_vectors(embed, server) -> None:
    server.answer = items_answer(*map(token_item, TOKENS))
    asked = {"dimensions": 2, "prompt_name": "", "prompt": "p", "input_type": "query", "truncate": False}
    found = embed(["a", "b"], "m", method="embed_multivector", **asked)
    assert [rows.dtype for rows in found] == [np.float32] * 2
    assert all(np.array_equal(rows, said) for rows, said in zip(found, TOKENS, strict=True))
    found[0][0] = 0
    path, _, body = server.seen[-1]
    assert path == "/v1/embeddings/colbert"
    assert body == {"input": ["a", "b"], "encoding_format": "base64", "model": "m", **asked}
    embed("abc", method="embed_multivector")
    assert server.seen[-1][2] == {"input": ["abc"], "encoding_format": "base64"}
    for item in ({"embedding": "AAAAAA=="}, {"embedding": "AAAAAA==", "shape": [2, 2]}):
        server.answer = items_answer(item)
        with pytest.raises(errors.ServingError, match="not a list of token vectors"):
            embed("a", method="embed_multivector")


def test_sparse_vectors(embed, server) -> None:
    server.answer = items_answer({"embedding": {"70000": 0.5, "3": 1.25}}, {"embedding": {}})
    asked = {"prompt_name": "", "prompt": "p", "input_type": "query", "truncate": False}
    first, second = embed(["a", "b"], "m", method="embed_sparse", **asked)
    assert first.token_ids.dtype == np.int32 and first.token_ids.tolist() == [3, 70000]
    assert first.weights.dtype == np.float32 and first.weights.tolist() == [1.25, 0.5]
    assert second.token_ids.shape == second.weights.shape == (0,)
    path, _, body = server.seen[-1]
    assert path == "/v1/embeddings_sparse" and body == {"input": ["a", "b"], "model": "m", **asked}
    embed("abc", method="embed_sparse")
    assert server.seen[-1][2] == {"input": ["abc"]}
    for weights in ({"x": 1.0}, {str(2**40): 1.0}):
        server.answer = items_answer({"embedding": weights})
        with pytest.raises(errors.ServingError, match="not a list of sparse vectors"):
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
        embed(["a"])
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
    with pytest.raises(httpx2.TransportError):
        embed(["a"], client={"base_url": "http://127.0.0.1:9"})
