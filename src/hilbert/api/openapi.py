"""The OpenAPI 3.1 document, from the route table and the msgspec types of the bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from hilbert import __version__
from hilbert.api.admin import ModelBody
from hilbert.api.classify import ClassifyBody
from hilbert.api.cohere.errors import CohereDialect
from hilbert.api.cohere.protocol import CohereEmbedBody, CohereError, DetokenizeBody, TokenizeBody
from hilbert.api.infinity.errors import InfinityDialect
from hilbert.api.infinity.protocol import FormError, InfinityEmbeddingsBody, InfinityError
from hilbert.api.ollama import protocol as ollama
from hilbert.api.ollama.errors import OllamaDialect
from hilbert.api.openai.errors import SharedDialect
from hilbert.api.openai.protocol import EmbeddingsBody, ErrorBody, SharedError
from hilbert.api.rerank import RerankBody
from hilbert.api.routing import Route
from hilbert.api.runpod.errors import RunpodDialect, RunpodError
from hilbert.api.runpod.routes import JobBody
from hilbert.api.settings import ApiSettings
from hilbert.api.sie.errors import SieDialect
from hilbert.api.sie.protocol import EncodeBody, ExtractBody, ScoreBody, SieError
from hilbert.api.tei import protocol as tei
from hilbert.api.tei.errors import TeiDialect
from hilbert.api.vllm.protocol import VllmScoreBody
from hilbert.api.voyage.protocol import ContextualizedBody, MultimodalBody

_REF = "#/components/schemas/{name}"

_FAILURES = {
    "400": "A value is out of range, or the input is refused",
    "401": "The API key is missing or wrong",
    "403": "The key is not for this model",
    "404": "No served model has this name",
    "408": "The body came too slowly",
    "413": "The body is too large",
    "429": "The queue is full, or the caller's limit is reached; see Retry-After",
    "500": "The model failed on this input",
    "503": "Loading, recovering, shutting down, or too late; see Retry-After",
}
_TEI_FAILURES = {
    "400": "The body is no JSON, or an input is empty",
    "422": "The body has the wrong form, or a value or an input is refused",
    "424": "The model cannot do this, or failed on this input",
}
_TEXTS = ["Hilbert's hotel always has room.", "One more guest."]
_EXAMPLES: dict[Any, dict[str, Any]] = {
    EmbeddingsBody: {"model": "default", "input": _TEXTS},
    InfinityEmbeddingsBody: {"model": "default", "input": _TEXTS},
    CohereEmbedBody: {"model": "default", "texts": _TEXTS, "embedding_types": ["float"]},
    TokenizeBody: {"model": "default", "text": _TEXTS[0]},
    DetokenizeBody: {"model": "default", "tokens": [2178, 2062, 4113]},
    MultimodalBody: {"model": "default", "inputs": [{"content": [{"type": "text", "text": _TEXTS[0]}]}]},
    ContextualizedBody: {"model": "default", "inputs": [_TEXTS]},
    ClassifyBody: {"model": "default", "input": _TEXTS},
    ModelBody: {"model": "default"},
    RerankBody: {"model": "default", "query": "Where is room?", "documents": _TEXTS, "top_n": 1},
    ScoreBody: {"query": {"text": "Where is room?"}, "items": [{"id": "a", "text": _TEXTS[0]}]},
    tei.TeiEmbedBody: {"inputs": _TEXTS},
    tei.TeiTokenVectorsBody: {"inputs": _TEXTS},
    tei.TeiPredictBody: {"inputs": [["One text."], ["A text", "and its pair."]]},
    tei.TeiSimilarityBody: {"inputs": {"source_sentence": "Where is room?", "sentences": _TEXTS}},
    tei.TeiTokenizeBody: {"inputs": _TEXTS},
    tei.TeiDecodeBody: {"ids": [101, 102]},
    tei.TeiVertexBody: {"instances": [{"inputs": _TEXTS[0]}]},
    tei.TeiAnyBody: {"inputs": _TEXTS},
    VllmScoreBody: {"model": "default", "text_1": "Where is room?", "text_2": _TEXTS},
    ollama.OllamaEmbedBody: {"model": "default", "input": _TEXTS},
    ollama.OllamaEmbeddingsBody: {"model": "default", "prompt": _TEXTS[0]},
    ollama.OllamaShowBody: {"model": "default"},
    JobBody: {"input": {"model": "default", "input": _TEXTS}},
    ExtractBody: {"items": [{"id": "a", "text": _TEXTS[0]}]},
    EncodeBody: {"items": [{"id": "a", "text": _TEXTS[0]}], "params": {"output_types": ["dense"]}},
}


def document(routes: Iterable[Route], settings: ApiSettings, prefix: str = "") -> dict[str, Any]:
    """Describe all routes that have a summary, as seen from the root or from under a model's prefix."""
    documented = [route for route in routes if route.summary]
    types = {t for route in documented for t in (route.request, route.response) if t is not None}
    errors = {_error_type(route) for route in documented} | {FormError}
    _, schemas = msgspec.json.schema_components(sorted(types | errors, key=repr), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in documented:
        path = route.path.removesuffix("*") + ("{id}" if route.path.endswith("*") else "")
        paths.setdefault(path, {}).setdefault(
            route.method.lower(), _operation(route, path, bool(settings.api_key or settings.keys_file))
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hilbert",
            "version": __version__,
            "description": "Embeddings, reranking and classification over HTTP. `/v1` speaks OpenAI's "
            "dialect beside Cohere's, Jina's and Voyage's (`/v1/encode` SIE's), `/v2` Cohere's, the bare "
            "routes Infinity's and TEI's.",
        },
        "servers": [{"url": settings.proxy_root_path.rstrip("/") + prefix or "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, path: str, has_key: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": "_".join([route.method.lower(), *re.findall(r"\w+", path)]),
        "responses": {"200": _success(route)},
    }
    if route.is_deprecated:
        operation["deprecated"] = True
    if has_key and not route.is_open:
        operation["security"] = [{"key": []}]
    if path.endswith("{id}"):
        schema = {"type": "string"}
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": schema}]
    if route.request is not None:
        content = _json(route.request) | {"example": _EXAMPLES[route.request]}
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    if not route.is_open:
        operation["responses"] |= _failures(route)
    return operation


def _success(route: Route) -> dict[str, Any]:
    if route.response is None:
        kind = "text/plain" if route.path == "/metrics" else "application/json"
        return {"description": "Success", "content": {kind: {"schema": {}}}}
    content: dict[str, Any] = {"application/json": _json(route.response)}
    if route.path.endswith("/embeddings"):
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {"description": "Success", "content": content}


def _failures(route: Route) -> dict[str, Any]:
    error = {"application/json": _json(_error_type(route))}
    failures: dict[str, Any] = {s: {"description": d, "content": error} for s, d in _FAILURES.items()}
    if isinstance(route.dialect, TeiDialect):
        failures |= {s: {"description": d, "content": error} for s, d in _TEI_FAILURES.items()}
    if isinstance(route.dialect, InfinityDialect):
        del failures["404"]
        for status in ("401", "408", "413"):
            failures[status]["content"] = {"application/json": {"schema": {"type": "object"}}}
        failures["422"] = {
            "description": "The body has the wrong form",
            "content": {"application/json": _json(FormError)},
        }
    if route.request is None:
        for status in ("400", "408", "413", "422", "424", "429", "500", "503"):
            failures.pop(status, None)
    return failures


def _error_type(route: Route) -> Any:
    """The body of this route's errors."""
    if isinstance(route.dialect, CohereDialect):
        return CohereError
    if isinstance(route.dialect, SharedDialect):
        return SharedError
    if isinstance(route.dialect, TeiDialect):
        return tei.TeiError
    if isinstance(route.dialect, OllamaDialect):
        return ollama.OllamaError
    if isinstance(route.dialect, RunpodDialect):
        return RunpodError
    if isinstance(route.dialect, InfinityDialect):
        return InfinityError
    return SieError if isinstance(route.dialect, SieDialect) else ErrorBody


def _json(type_: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([type_], ref_template=_REF)
    return {"schema": schema}
