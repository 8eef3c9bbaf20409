"""Entities of a request's own kinds: `/v1/extract` against gliner itself, on tiny random models."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hilbert.api.sie.protocol import Extracted
from hilbert.core import Batch, ExtractRequest, OutputType, Request, SpanQuery, from_features
from hilbert.errors import InvalidInput, UnsupportedArchitecture, WeightMismatch
from hilbert.hub import resolve
from hilbert.processors import SpanProcessor, TextProcessor
from hilbert.runtimes import RuntimeSettings, load_runtime
from hilbert.worker.frames import Frame, FrameReader, Kind, decode_submit, encode_submit

gliner = pytest.importorskip("gliner", reason="pip install 'hilbert[gliner]'")

from hilbert.runtimes import gliner_runtime  # noqa: E402
from hilbert.testing.extractors import MAX_WORDS, tiny_extractor  # noqa: E402

TEXTS = [
    "Hilbert's hotel is full, and takes one more guest.",
    "Who?",
    "  The well-known guest of room_7 — born in Königsberg — lives in Paris: 北京 🏨 ",
    "",
    "\n ",
]
LABELS = ["person", "city", "place of birth", "person"]
LONG = "The guest of the hotel in the garden of the city sees a river, and a mountain. " * 3
CPU = RuntimeSettings(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_extractor(tmp_path_factory.mktemp("spans"))


@pytest.fixture(scope="module")
def own(folder: Path) -> Any:
    return gliner.GLiNER.from_pretrained(str(folder), local_files_only=True, strict=True)


@pytest.fixture(scope="module")
def server(folder: Path, served_with: Any) -> Iterator[Any]:
    spec = resolve(str(folder))
    with served_with(TextProcessor(spec), "spans", runtime=load_runtime(spec, CPU)) as server:
        yield server


def theirs(model: Any, text: str, labels: list[str], **options: Any) -> list[dict[str, Any]]:
    """gliner's answer to one text alone; it cannot take one without words."""
    return model.predict_entities(text, labels, **options) if text.strip() else []


def agree(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    def bare(entities: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [tuple(e[key] for key in ("text", "label", "start", "end")) for e in entities]

    assert bare(found) == bare(wanted)
    assert all(abs(a["score"] - b["score"]) <= 1e-5 for a, b in zip(found, wanted, strict=True))


def ask(
    server: Any, texts: list[str], labels: list[str] | None, **options: Any
) -> list[list[dict[str, Any]]]:
    body = {"items": [{"text": t} for t in texts], "params": {"labels": labels, "options": options}}
    reply = server.post("/v1/extract/spans", body)
    assert reply.status_code == 200, reply.text
    return [item["entities"] for item in reply.json()["items"]]


def test_entities_are_gliners(server, own):
    seen = []
    for options in ({}, {"threshold": 0.8}, {"flat_ner": False}, {"multi_label": True}, {"threshold": 1}):
        answers = ask(server, TEXTS, LABELS, **options)
        for text, found in zip(TEXTS, answers, strict=True):
            agree(found, theirs(own, text, LABELS, **options))
        seen.append(sum(map(len, answers)))
    usual, strict, nested, several, none = seen
    assert 0 == none < strict < usual < min(nested, several)  # each of the options changes something
    for flat_ner, multi_label in itertools.product((True, False), repeat=2):
        options = {"threshold": 0.0, "flat_ner": flat_ner, "multi_label": multi_label}
        for text, found in zip(TEXTS, ask(server, TEXTS, LABELS, **options), strict=True):
            agree(found, theirs(own, text, LABELS, **options))


def test_as_many_spans_as_score_are_chosen_from_in_time(server, monkeypatch):
    labels = [f"k{i}" for i in range(200)]
    options = {"threshold": 0, "flat_ner": False, "multi_label": True}
    start = time.monotonic()
    assert len(ask(server, [LONG], labels, **options)[0]) > 5_000  # gliner takes 14 s to choose
    assert time.monotonic() - start < 7
    monkeypatch.setattr(gliner_runtime, "MAX_CANDIDATES", 1000)
    body = {"items": [{"text": "a"}, {"text": LONG}], "params": {"labels": labels, "options": options}}
    error = server.post("/v1/extract/spans", body).json()["detail"]
    assert error["code"] == "INVALID_INPUT"
    assert re.search(
        r"items\[1\]: [\d,]+ spans score above .* at most 1,000 .* higher threshold", error["message"]
    )


def test_the_answer_has_sies_form(server, own):
    items = [{"id": "a", "text": TEXTS[0]}, {"text": TEXTS[2]}]
    body = {"items": items, "params": {"labels": LABELS}}
    reply = server.post("/v1/extract/spans", body)
    first, second = msgspec.convert(reply.json(), Extracted).items
    assert (first.id, second.id, reply.json()["model"]) == ("a", "item-1", "spans")
    for item, given in zip((first, second), items, strict=True):
        assert item.classifications == item.relations == item.objects == [] and item.data == {}
        assert item.entities and all(given["text"][e.start : e.end] == e.text for e in item.entities)
    kinds = {"content-type": "application/msgpack", "accept": "application/msgpack"}
    packed = server.post("/v1/extract/spans", content=msgspec.msgpack.encode(body), headers=kinds)
    assert msgspec.msgpack.decode(packed.content) == reply.json()


def test_alone_as_in_company(server, own):
    asked = [
        (
            [TEXTS[i % 3], LONG[: 30 + 3 * i]],
            LABELS[i % 2 : i % 2 + 1 + i % 3],
            {"threshold": 0.5 + i % 2 / 4},
        )
        for i in range(24)
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda a: ask(server, a[0], a[1], **a[2]), asked))
    for (texts, labels, options), found in zip(asked, answers, strict=True):
        for text, entities in zip(texts, found, strict=True):
            agree(entities, theirs(own, text, labels, **options))


def test_long_texts_are_cut_as_gliner_cuts_them(server, own):
    with pytest.warns(UserWarning, match=f"truncated to {MAX_WORDS}"):
        wanted = theirs(own, LONG, LABELS, flat_ner=False)
    (found,) = ask(server, [LONG], LABELS, flat_ner=False)
    agree(found, wanted)
    assert found[-1]["end"] < len(LONG) / 2
    body = {
        "items": [{"text": "hej"}, {"text": LONG}],
        "params": {"labels": ["x"], "options": {"truncate": False}},
    }
    error = server.post("/v1/extract/spans", body).json()["detail"]
    assert (error["code"], error["reason"]) == ("INVALID_INPUT", "input_too_long")
    assert f"items[1] is longer than the {MAX_WORDS} words" in error["message"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "`labels` is missing"),
        ({"labels": []}, "`labels` is missing"),
        ({"labels": ["person", " "]}, "labels[1] has 0 characters"),
        ({"labels": ["x" * 257]}, "labels[0] has 257 characters; a label has 1 to 256"),
        ({"labels": [str(i) for i in range(257)]}, "257 labels; one request may have 256"),
        ({"labels": [256 * "x-" for _ in range(40)]}, "a label has 1 to 256"),
        ({"labels": [f"{128 * '- '}{i}"[-256:] for i in range(60)]}, "tokens; the model takes 4096"),
        ({"labels": ["a <<ENT>> b"]}, "'<<ENT>>'"),
        ({"labels": ["a"], "options": {"threshold": 1.5}}, "threshold is 1.5"),
        ({"labels": ["a"], "options": {"threshold": "high"}}, "threshold"),
    ],
)
def test_what_is_refused(server, params, words):
    reply = server.post("/v1/extract/spans", {"items": [{"text": "a"}], "params": params})
    error = reply.json()["detail"]
    assert (reply.status_code, error["code"]) == (400, "INVALID_INPUT")
    assert words in error["message"], error["message"]


def test_labels_that_are_too_much_for_so_many_texts(folder):
    processor = SpanProcessor(TextProcessor(resolve(str(folder))))
    labels = tuple(chr(0x1F600 + i) * 256 for i in range(128))
    processor.check(ExtractRequest(("a",) * 488, labels * 2))
    with pytest.raises(InvalidInput, match=r"32,768 characters, .* 489 texts; .* may have 16,000,000"):
        processor.check(ExtractRequest(("a",) * 489, labels))


def test_a_word_without_end(server):
    body = {"items": [{"text": "a"}, {"text": "room " + "xq" * 50_000}], "params": {"labels": ["a"]}}
    error = server.post("/v1/extract/spans", body).json()["detail"]
    assert re.search(r"items\[1\]: its first 2 words and the labels have [\d,]+ tokens", error["message"])


def test_it_does_nothing_else(server, served):
    for path, body in (
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/classify", {"input": ["a"]}),
        ("/v1/encode/spans", {"items": [{"text": "a"}], "params": {"output_types": ["multivector"]}}),
        ("/v1/score/spans", {"query": {"text": "a"}, "items": [{"text": "b"}]}),
    ):
        reply = server.post(path, body)
        assert reply.status_code == 400 and "It can: extract." in reply.text, (path, reply.text)
    (card,) = server.get("/v1/models").json()["data"]
    assert (card["task"], card["tasks"], card["outputs"]) == ("extract", ["extract"], ["json"])
    assert (card["dimensions"], card["dims"]) == (None, {})
    with served(OutputType.DENSE) as embedder:
        reply = embedder.post("/v1/extract/m", {"items": [{"text": "a"}], "params": {"labels": ["a"]}})
        assert reply.status_code == 400
        assert "does not support `extract`: it finds no spans" in reply.json()["detail"]["message"]


def test_tokens_by_words_of_a_model_with_a_limit(tmp_path):
    """Token-level decoding, a pickle, and positions that are a wall: whole words are left out beyond it."""
    spec = resolve(str(tiny_extractor(tmp_path, family="bert", span_mode="token_level", weights="bin")))
    limit, labels = 48, ("person", "city")
    spec = msgspec.structs.replace(spec, max_model_len=limit)
    model = gliner.GLiNER.from_pretrained(spec.path, local_files_only=True, strict=True)
    runtime, spans = load_runtime(spec, CPU), SpanProcessor(TextProcessor(spec))
    texts = ("The guest.", "ünïcodeish " * 9, "q" * 60, LONG)
    kept = []
    sequences = [s for s in spans.encode(ExtractRequest(texts, labels), 7) if s.num_tokens]
    for sequence in sequences:
        text = from_features(sequence.features).text
        inputs = model.data_processor.tokenize_inputs([[w.group() for w in _words(text)]], list(labels))
        assert sequence.num_tokens == inputs["input_ids"].shape[1] <= limit
        kept.append(text)
    assert [s.index for s in sequences] == [0, 1, 3]  # of the third not even the first word fits
    assert kept[0] == texts[0] and texts[1].startswith(kept[1]) and 0 < len(kept[1].split()) < 9
    with pytest.raises(InvalidInput, match=r"takes \d+ tokens; the model takes 48"):
        spans.encode(ExtractRequest(("a",), tuple(f"label {i}" for i in range(20))), 7)
    lax = spans.encode(ExtractRequest(texts[:1], labels, 0.1, False), 8)
    others = spans.encode(ExtractRequest(texts[:1], ("river",), 0.1), 9)
    mixed = Batch((*lax, *sequences, *others), runtime.info.outputs)
    output = runtime.run(runtime.prepare(mixed)).multivector
    assert output is not None
    assert len(output[0]) == len(theirs(model, texts[0], list(labels), threshold=0.1, flat_ner=False))
    assert len(output[-1]) == len(theirs(model, texts[0], ["river"], threshold=0.1))
    assert len({len(output[0]), len(output[1]), len(output[-1])}) == 3
    for text, rows in zip(kept, output[1:-1], strict=True):
        wanted = theirs(model, text, list(labels))
        assert rows[:, :2].tolist() == [[e["start"], e["end"]] for e in wanted]
        assert np.abs(rows[:, 3] - [e["score"] for e in wanted]).max(initial=0) <= 1e-5
        assert [labels[int(i)] for i in rows[:, 2]] == [e["label"] for e in wanted]
    runtime.close()


def _words(text: str) -> Iterator[re.Match[str]]:
    return re.finditer(r"\w+(?:[-_]\w+)*|\S", text)


def test_a_question_crosses_to_the_worker(folder):
    spans = SpanProcessor(TextProcessor(resolve(str(folder))))
    asked = ExtractRequest(tuple(TEXTS[:3]), ("person", "ø"), 0.25, False, True)
    sent = Request(1, spans.encode(asked, 1), frozenset({OutputType.MULTIVECTOR}))
    reader, data = FrameReader(), b"".join(map(bytes, encode_submit(3, 9, sent, 0.0)))
    reader.get_buffer()[: len(data)] = data
    (frame,) = reader.received(len(data))
    assert isinstance(frame, Frame) and frame.kind == Kind.SUBMIT
    arrived = decode_submit(frame.meta, frame.body, 0.0)
    assert [from_features(s.features) for s in arrived.sequences] == [
        SpanQuery(text.rstrip(), ("person", "ø"), 0.25, False, True) for text in TEXTS[:3]
    ]
    assert arrived.num_tokens == sent.num_tokens


def test_how_it_may_be_run(folder, tmp_path):
    spec = resolve(str(folder))
    with pytest.raises(InvalidInput, match="--dtype float32"):
        load_runtime(spec, RuntimeSettings(dtype="bfloat16", device="cpu"))
    with pytest.raises(UnsupportedArchitecture, match="--engine torch"):
        load_runtime(spec, RuntimeSettings(engine="openvino"))
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"position_ids": np.zeros(3)}, broken / "model.safetensors")
    load_runtime(resolve(str(broken)), CPU).close()  # more than it needs does no harm
    tensors.pop("prompt_rep_layer.0.bias")
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(WeightMismatch, match=r"prompt_rep_layer\.0\.bias"):
        load_runtime(resolve(str(broken)), CPU)
