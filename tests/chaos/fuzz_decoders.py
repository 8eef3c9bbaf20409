"""A fuzz target for what reads request bodies: mutated bodies of every dialect, fed to the application.

    python tests/chaos/fuzz_decoders.py --seconds 60

The bodies begin as the examples of the application's own OpenAPI document, so a new dialect is fuzzed without
a word here. No socket and no process: the real router, decoders, tokenizer and engine on a runtime that
computes nothing. Whatever a body holds, the answer is one of ours; none is a 5xx.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from hilbert import hub
from hilbert.api import ApiSettings, create_app
from hilbert.core import OutputType
from hilbert.engine import Device, Engine, LocalEngine
from hilbert.models import Registry, ServedModel
from hilbert.observability import Metrics
from hilbert.processors import TextProcessor
from hilbert.scheduler import Admission, Scheduler
from hilbert.testing.runtime import FakeRuntime

MSGPACK = b"application/msgpack"
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, 1e999, "", " ", "a",
    "\0", "\ud800", "ß" * 300, "http://127.0.0.1/a.png", "data:image/png;base64,AAAA", "data:,",
    "../../etc/passwd",
    "float", "base64", "binary", "int8", "query", [], {}, [[]], [[[]]], [None], [""], [1, "a"], [[1], [2]],
    [-1], [2**40], [1.5], ["a"] * 300, {"text": "a"}, {"text": None}, {"url": 1}, {"image_url": {"url": "x"}},
    {"text": {"text": {"text": {}}}},
]  # fmt: skip
NAMES = [
    "input", "inputs", "model", "query", "queries", "documents", "texts", "items", "params",
    "encoding_format", "dimensions", "output_dtype", "truncate", "truncate_dim", "normalize", "prompt",
    "prompt_name", "input_type", "embedding_types", "top_n", "top_k", "raw_scores", "return_documents",
    "return_text", "output_types", "instruction", "user", "modality", "images", "task", "late_chunking",
]  # fmt: skip


@contextmanager
def application() -> Iterator[Any]:
    """The application over one model that returns every kind of output."""
    spec = hub.resolve("bundled")
    runtime = FakeRuntime(384, outputs=frozenset(OutputType), num_labels=1)
    engine = Engine(runtime, Scheduler(2048), Device())
    engine.start()
    model = ServedModel("m", spec, TextProcessor(spec), LocalEngine(engine), Admission(10**6, 1024))
    try:
        yield create_app(Registry([model]), ApiSettings(max_client_batch_size=64), Metrics())
    finally:
        engine.stop()


async def call(
    app: Any, method: str, path: str, body: bytes = b"", media_type: bytes = b"application/json"
) -> tuple[int, bytes, bytes]:
    """Status, media type and body of an answer."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()  # it stays

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", media_type), (b"accept", media_type)]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": ("127.0.0.1", 1)}
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])[b"content-type"], sent[1]["body"]


async def seeds_of(app: Any) -> dict[str, Any]:
    """By path of every route that takes a body: an example of one."""
    _, _, raw = await call(app, "GET", "/openapi.json")
    found = {}
    for path, operations in json.loads(raw)["paths"].items():
        if "requestBody" in operations.get("post", {}) and not path.startswith("/admin"):
            content = operations["post"]["requestBody"]["content"]["application/json"]
            found[path.replace("{id}", "m")] = content["example"]
    return found


def mutated(rng: random.Random, seed: Any) -> tuple[bytes, bytes]:
    """A body that was sound, and its media type."""
    body = copy.deepcopy(seed)
    for _ in range(rng.randint(0, 3)):
        body = _changed(rng, body)
    if rng.random() < 0.15:
        data, media_type = _packed(body), MSGPACK
    else:
        text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
        data, media_type = text.encode("utf-8", "surrogatepass"), b"application/json"
    return (_bent(rng, data) if rng.random() < 0.4 else data), media_type


def _packed(body: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(body)
    except (OverflowError, UnicodeEncodeError):
        return b"\x81\xa5input\xa1a"


def _changed(rng: random.Random, value: Any) -> Any:
    """Another value somewhere inside."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice([*value, rng.choice(NAMES)])
        match rng.randrange(4):
            case 0:
                value.pop(name, None)
            case 1:
                value[name] = copy.deepcopy(rng.choice(ODD_VALUES))
            case _:
                value[name] = _changed(rng, value.get(name))
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value * rng.randint(0, 40)
        value[index] = _changed(rng, value[index])
        return value
    return copy.deepcopy(rng.choice(ODD_VALUES))


def _bent(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, lost, doubled or put in."""
    bent = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(bent) + 1)
        match rng.randrange(4):
            case 0 if place < len(bent):
                bent[place] = rng.randrange(256)
            case 1:
                del bent[place : place + rng.randint(1, 20)]
            case 2:
                bent[place:place] = rng.choice([b'"', b"[", b"{", b"\\u", b"\xff", b"9" * 30, b",", b"null"])
            case _:
                bent[place:place] = bent[place : place + rng.randint(1, 50)]
    return bytes(bent)


def check(path: str, body: bytes, answer: tuple[int, bytes, bytes]) -> None:
    """An answer of ours, in a form that clients can read."""
    status, media_type, content = answer
    assert status < 500, f"{path} answers {status} to {body!r}: {content!r}"
    if media_type == b"application/json":
        json.loads(content)
    elif media_type == MSGPACK:
        msgspec.msgpack.decode(content)


async def fuzz(seconds: float, seed: int) -> Counter[tuple[str, int]]:
    """How many inputs each path was given, by the status of the answer."""
    counts: Counter[tuple[str, int]] = Counter()
    rng = random.Random(seed)
    with application() as app:
        seeds = await seeds_of(app)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            path = rng.choice(list(seeds))
            body, media_type = mutated(rng, seeds[path])
            answer = await call(app, "POST", path, body, media_type)
            check(path, body, answer)
            counts[path, answer[0]] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    counts = asyncio.run(fuzz(options.seconds, options.seed))
    by_status: Counter[int] = Counter()
    for (_, status), count in counts.items():
        by_status[status] += count
    found = {
        "inputs": counts.total(),
        "paths": len({path for path, _ in counts}),
        "by_status": dict(sorted(by_status.items())),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
