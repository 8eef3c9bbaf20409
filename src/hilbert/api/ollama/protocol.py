"""Ollama's bodies for embeddings, and their translation to and from `core`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import orjson

from hilbert.api.body import BodyDecoder, MalformedRequest, about
from hilbert.api.vectors import numbers
from hilbert.core import EmbedRequest, EncodeResult, OutputDtype, OutputType
from hilbert.models import Entry

_FORMS = "a string or a list of strings"
_MODEL = Annotated[str | None, about("The served model's name; a tag such as `:latest` may follow.")]


class OllamaEmbedBody(msgspec.Struct, kw_only=True):
    """Texts to embed. Unknown fields (`keep_alive`, `options`) are ignored."""

    model: _MODEL = None
    input: Annotated[str | list[str] | None, about(f"What to embed: {_FORMS}.")] = None
    truncate: Annotated[
        bool | None, about("Cut inputs to the model's length (default); false refuses longer ones.")
    ] = None
    dimensions: Annotated[
        int | None, about("Keep the first so many numbers of each vector, and normalise again.")
    ] = None


class OllamaEmbeddingsBody(msgspec.Struct, kw_only=True):
    """One text to embed, the old way."""

    model: _MODEL = None
    prompt: str | None = None


class OllamaShowBody(msgspec.Struct, kw_only=True):
    """Which model to describe."""

    model: _MODEL = None
    name: Annotated[str | None, about("An old name for `model`.")] = None


class OllamaEmbeddings(msgspec.Struct):
    """The vectors, in the order of the inputs; times in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbedding(msgspec.Struct):
    """One vector, not normalised."""

    embedding: list[float]


class OllamaDetails(msgspec.Struct):
    """What kind of model it is."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(msgspec.Struct):
    """One configured model."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaModels(msgspec.Struct):
    """All configured models."""

    models: list[OllamaModel]


class OllamaVersion(msgspec.Struct):
    """Which Hilbert this is."""

    version: str


class OllamaShow(msgspec.Struct):
    """One model, described."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]


class OllamaError(msgspec.Struct):
    """The body of every status from 400 up."""

    error: str


EMBED = BodyDecoder(OllamaEmbedBody, {"input": _FORMS})
EMBEDDINGS = BodyDecoder(OllamaEmbeddingsBody, {"prompt": "a string"})
SHOW = BodyDecoder(OllamaShowBody)


def to_request(body: OllamaEmbedBody, max_inputs: int) -> EmbedRequest:
    """What the model is asked; nothing where no text was sent, as its clients do to load a model.

    Raises:
        MalformedRequest: no input, or too many.
    """
    if body.input is None:
        raise MalformedRequest(f"`input` is missing; send {_FORMS}.", param="input")
    texts = (body.input,) if isinstance(body.input, str) else tuple(body.input)
    if len(texts) > max_inputs:
        raise MalformedRequest(
            f"`input` has {len(texts)} items; one request may have {max_inputs} (--max-client-batch-size).",
            param="input",
        )
    return EmbedRequest(texts, truncate=body.truncate, dimensions=body.dimensions, normalize=True)


def vectors_json(
    result: EncodeResult, dtype: OutputDtype, model: str, total_seconds: float, load_seconds: float
) -> bytes:
    """The answer of `/api/embed`."""
    assert result.dense is not None
    body = {
        "model": model,
        "embeddings": numbers(result.dense, None, dtype, "float"),
        "total_duration": int(1e9 * total_seconds),
        "load_duration": int(1e9 * load_seconds),
        "prompt_eval_count": result.num_tokens,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def vector_json(result: EncodeResult) -> bytes:
    """The answer of `/api/embeddings`."""
    assert result.dense is not None
    return orjson.dumps({"embedding": result.dense[0]}, option=orjson.OPT_SERIALIZE_NUMPY)


def to_model(entry: Entry) -> OllamaModel:
    """An entry of `/api/tags`."""
    spec = entry.spec
    return OllamaModel(
        entry.name,
        entry.name,
        datetime.fromtimestamp(entry.created, UTC).isoformat(),
        entry.resident.size_bytes,
        "" if spec is None else spec.commit or spec.digest,
        _details(entry),
    )


def to_show(entry: Entry) -> OllamaShow:
    """The answer of `/api/show`."""
    spec = entry.spec
    family = "" if spec is None else spec.family
    about: dict[str, Any] = {"general.architecture": family}
    if spec is not None:
        about[f"{family}.context_length"] = spec.max_model_len
        if entry.dimensions is not None:
            about[f"{family}.embedding_length"] = entry.dimensions
    able = ["embedding"] if OutputType.DENSE in entry.outputs else []
    return OllamaShow("", "", "", _details(entry), about, able)


def _details(entry: Entry) -> OllamaDetails:
    family = "" if entry.spec is None else entry.spec.family
    info = entry.runtime_info
    return OllamaDetails("", "", family, [family] if family else [], "", "" if info is None else info.dtype)
