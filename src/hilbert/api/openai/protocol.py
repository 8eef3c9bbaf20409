"""The bodies of OpenAI's embeddings API, and their translation to and from `core`.

Jina and Voyage have the same path: one body has the words of all three, and which fields are there decides.

Decides every refusal that concerns form alone. Knows no model: whether `dimensions` fits, or a token id
exists, is the model's to say.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec

from hilbert.api.body import BodyDecoder, MalformedRequest, Usage, about, truncates
from hilbert.api.inputs import INPUT_FORMS, Given, to_inputs
from hilbert.api.purposes import to_purpose
from hilbert.api.vectors import ENCODINGS, Encoding
from hilbert.core import EmbedRequest, Modality, OutputDtype
from hilbert.core.quantize import NumberArray


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """A request for embeddings. Every field may be null; unknown fields are ignored."""

    input: Annotated[
        Given,
        about(
            f"What to embed: {INPUT_FORMS}. Token ids are those of the model's own tokenizer. Empty texts "
            "are embedded too. A model that reads images takes their data URIs, and URLs that end as theirs "
            "do, for images."
        ),
    ] = None
    model: Annotated[str | None, about("The served model's name; with one model any name is accepted.")] = (
        None
    )
    encoding_format: Annotated[
        str | None,
        about(
            "`float` (default): JSON numbers. `base64`: little-endian float32. `bytes`: the body is the raw "
            "little-endian float32 of all vectors in order, and the `metadata` header describes it."
        ),
    ] = None
    dimensions: Annotated[
        int | None, about("Keep the first so many numbers of each vector, and normalise again.")
    ] = None
    output_dimension: Annotated[int | None, about("Another name for `dimensions`.")] = None
    truncate: Annotated[
        bool | None, about("Cut inputs to the model's length (default); false refuses longer ones.")
    ] = None
    truncation: Annotated[bool | None, about("Another name for `truncate` (Voyage).")] = None
    prompt: Annotated[str | None, about("Text to put before every input; wins over `prompt_name`.")] = None
    prompt_name: Annotated[str | None, about("One of the model's own prompts; an empty name for none.")] = (
        None
    )
    input_type: Annotated[
        str | None,
        about("What the inputs are for, `query` or `document`: picks the model's own prompt, if it has one."),
    ] = None
    task: Annotated[
        str | None,
        about(
            "The same in Jina's words: `retrieval.query`, `retrieval.passage`, `text-matching`, "
            "`classification`, `separation`."
        ),
    ] = None
    late_chunking: Annotated[
        bool | None,
        about(
            "The inputs are the chunks of one document, and each gets a vector that has seen it all (Jina)."
        ),
    ] = None
    return_multivector: Annotated[bool | None, about("A vector for each token, as Jina writes them.")] = None
    embedding_type: Annotated[
        str | list[str] | None,
        about("Jina's word for `encoding_format` and `output_dtype`: `float`, `base64`, `binary`, …"),
    ] = None
    output_dtype: Annotated[
        str | None,
        about(
            "Type of the numbers, after `dimensions`: `float32`, `float16`, `int8` and `uint8` (each row "
            "scaled to its largest), `binary` and `ubinary` (a bit per dimension, eight in a byte). By "
            "default the server's --embedding-dtype."
        ),
    ] = None
    normalize: Annotated[bool | None, about("Scale vectors to length 1 (default true).")] = None
    normalized: Annotated[bool | None, about("Another name for `normalize` (Jina).")] = None
    modality: Annotated[
        str | None,
        about(
            "What all strings of `input` are: `text`, or `image` or `audio` as URLs, data URIs or base64. By "
            "default each is what it looks like."
        ),
    ] = None
    user: Annotated[Any, about("Ignored.")] = None


class Embedding(msgspec.Struct, omit_defaults=True):
    """One vector, or one for each token with their `shape`: numbers, or base64 of their bytes."""

    object: str
    index: int
    embedding: list[float | list[float]] | str
    shape: list[int] | None = None


class SparseEmbedding(msgspec.Struct):
    """The weights of one text, by token id."""

    object: str
    index: int
    embedding: dict[str, float]


class SparseEmbeddingList(msgspec.Struct):
    """The weights, in the order of the inputs."""

    object: str
    data: list[SparseEmbedding]
    model: str
    usage: Usage


class EmbeddingList(msgspec.Struct):
    """The vectors, in the order of the inputs."""

    object: str
    data: list[Embedding]
    model: str
    usage: Usage


class ErrorObject(msgspec.Struct):
    """What went wrong, whose fault it is, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """The body of every status from 400 up."""

    error: ErrorObject


class SharedError(msgspec.Struct):
    """What went wrong, in the words of Voyage and Jina and in OpenAI's."""

    detail: str
    error: ErrorObject


_decoder = BodyDecoder(EmbeddingsBody, {"input": INPUT_FORMS})
decode = _decoder.decode


def to_request(body: EmbeddingsBody, max_inputs: int, modality: Modality | None) -> EmbedRequest:
    """What the model is asked, in the words of no dialect.

    Raises:
        MalformedRequest: no input, too many, or a mixture of kinds.
    """
    dimensions = body.dimensions if body.dimensions is not None else body.output_dimension
    inputs = to_inputs(body.input, max_inputs, modality)
    purpose = to_purpose(body.task, "task") or to_purpose(body.input_type, "input_type")
    return EmbedRequest(
        inputs,
        prompt=body.prompt,
        prompt_name=body.prompt_name,
        input_type=purpose,
        truncate=truncates(body.truncate, body.truncation),
        dimensions=dimensions,
        normalize=body.normalize is not False and body.normalized is not False,
        chunks=(len(inputs),) if body.late_chunking else (),
    )


def to_form(body: EmbeddingsBody) -> tuple[Encoding, OutputDtype | None]:
    """How the numbers are written, and their type where the body names one.

    Raises:
        MalformedRequest: a name is unknown, or the body wants several types.
    """
    encoding, dtype = body.encoding_format, to_dtype(body.output_dtype)
    name = body.embedding_type
    if isinstance(name, list):
        if len(name) > 1:
            raise MalformedRequest(
                f"embedding_type names {len(name)} types, and an item of this answer holds one; send one, or "
                "ask /v2/embed, which returns several.",
                param="embedding_type",
            )
        name = name[0] if name else None
    if name == "base64":
        return "base64", dtype
    if name is not None and dtype is None:
        dtype = to_dtype(name, "embedding_type")
        dtype = None if dtype is OutputDtype.FLOAT32 else dtype
    return to_encoding(encoding), dtype


def to_encoding(name: str | None) -> Encoding:
    """The encoding of the answer.

    Raises:
        MalformedRequest: it is unknown.
    """
    for encoding in ENCODINGS:
        if encoding == (name or "float"):
            return encoding
    raise MalformedRequest(
        f"encoding_format {name!r} is unknown; use {', '.join(ENCODINGS)}.", param="encoding_format"
    )


def to_dtype(name: str | None, field: str = "output_dtype") -> OutputDtype | None:
    """The type of the numbers; None where the request names none.

    Raises:
        MalformedRequest: it is unknown.
    """
    if name is None:
        return None
    if name in ("float", *OutputDtype):
        return OutputDtype.FLOAT32 if name == "float" else OutputDtype(name)
    raise MalformedRequest(f"{field} {name!r} is unknown; use {', '.join(OutputDtype)}.", param=field)


def to_json(data: bytes, num_tokens: int, model: bytes) -> bytes:
    """The answer's body; `data` is the list of items, `model` the name, both as JSON."""
    return b'{"object":"list","data":%s,"model":%s,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
        data,
        model,
        num_tokens,
        num_tokens,
    )


# Clients stop reading header lines at 8 KiB and more (aiohttp 8190 bytes), so a long list is left out;
# `shape` alone says as much, as all rows have one length.
_MAX_ITEMS_IN_HEADER = 32


def to_raw(rows: NumberArray, num_tokens: int, model: str) -> tuple[bytes, bytes]:
    """The answer as raw little-endian numbers ``[N, E]``, and the header that describes it."""
    num_rows, length = rows.shape
    metadata: dict[str, Any] = {
        "object": "list",
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        "embed_dtype": rows.dtype.name,
        "endianness": "little",
        "shape": [num_rows, length],
    }
    if num_rows <= _MAX_ITEMS_IN_HEADER:
        size = rows.itemsize * length
        metadata["data"] = [
            {
                "index": i,
                "embed_dtype": rows.dtype.name,
                "endianness": "little",
                "start": i * size,
                "end": (i + 1) * size,
                "shape": [length],
            }
            for i in range(num_rows)
        ]
    header = json.dumps(metadata, separators=(",", ":")).encode("ascii")  # headers carry no other characters
    return rows.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes(), header
