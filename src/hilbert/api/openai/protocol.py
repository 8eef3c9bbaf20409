"""The bodies of OpenAI's embeddings API, and their translation to and from `core`.

Decides every refusal that concerns form alone. Knows no model: whether `dimensions` fits, or a token id
exists, is the model's to say.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from hilbert.api.vectors import ENCODINGS, Encoding, embedding_list
from hilbert.core import EmbedRequest, EmbedResult
from hilbert.core.request import IntArray
from hilbert.errors import InvalidInput, UnsupportedTask
from hilbert.processors import token_array


class MalformedRequest(InvalidInput):
    """The body has not the form that the route asks for (as opposed to values that a model refuses)."""


_INPUT_FORMS = "a string, a list of strings, a list of token ids, or a list of lists of token ids"


def _about(text: str) -> Meta:
    return Meta(description=text)


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """A request for embeddings. Every field may be null; unknown fields are ignored."""

    input: Annotated[
        str | list[str | int | list[int]] | None,
        _about(f"What to embed: {_INPUT_FORMS} of the model's own tokenizer. Empty texts are embedded too."),
    ] = None
    model: Annotated[str | None, _about("The served model's name; with one model any name is accepted.")] = (
        None
    )
    encoding_format: Annotated[
        str | None,
        _about(
            "`float` (default): JSON numbers. `base64`: little-endian float32. `bytes`: the body is the raw "
            "little-endian float32 of all vectors in order, and the `metadata` header describes it."
        ),
    ] = None
    dimensions: Annotated[
        int | None, _about("Keep the first so many numbers of each vector, and normalise again.")
    ] = None
    output_dimension: Annotated[int | None, _about("Another name for `dimensions`.")] = None
    truncate: Annotated[
        bool | None, _about("Cut inputs to the model's length (default); false refuses longer ones.")
    ] = None
    prompt: Annotated[str | None, _about("Text to put before every input; wins over `prompt_name`.")] = None
    prompt_name: Annotated[str | None, _about("One of the model's own prompts; an empty name for none.")] = (
        None
    )
    input_type: Annotated[
        str | None, _about("`query` or `document`: the model's own prompt for that side, if it has one.")
    ] = None
    normalize: Annotated[bool | None, _about("Scale vectors to length 1 (default true).")] = None
    modality: Annotated[str | None, _about("`text`.")] = None
    user: Annotated[Any, _about("Ignored.")] = None


class Usage(msgspec.Struct):
    """Real tokens, special tokens included, after truncation."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct):
    """One vector: numbers, or base64 of little-endian float32."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingList(msgspec.Struct):
    """The vectors, in the order of the inputs."""

    object: str
    data: list[Embedding]
    model: str
    usage: Usage


class Model(msgspec.Struct):
    """One served model."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    aliases: list[str]
    task: str
    dimensions: int
    max_model_len: int | None
    ready: bool


class ModelList(msgspec.Struct):
    """All served models."""

    object: str
    data: list[Model]


class ErrorObject(msgspec.Struct):
    """What went wrong, whose fault it is, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """The body of every status from 400 up."""

    error: ErrorObject


_decoder = msgspec.json.Decoder(EmbeddingsBody)
_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")


def decode(body: bytes) -> EmbeddingsBody:
    """Parse a body.

    Raises:
        MalformedRequest: it is not JSON in UTF-8, not an object, nested too deeply, or a field has a
            wrong type; `param` names the field.
    """
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"The body is not valid UTF-8: {error.reason}.") from None
    except RecursionError:
        raise MalformedRequest("The body's JSON is nested too deeply.") from None
    except ValueError as error:
        what = "is empty" if not body.strip() else f"is not valid JSON: {error}"
        raise MalformedRequest(f"The request body {what}.") from None


def to_request(body: EmbeddingsBody, max_inputs: int) -> EmbedRequest:
    """What the model is asked, in the words of no dialect.

    Raises:
        MalformedRequest: no input, too many, or a mixture of kinds; an unknown encoding.
        UnsupportedTask: another modality than text.
    """
    if body.modality is not None and body.modality != "text":
        raise UnsupportedTask(
            f"modality {body.modality!r} is not served by this model; send text.", param="modality"
        )
    dimensions = body.dimensions if body.dimensions is not None else body.output_dimension
    return EmbedRequest(
        to_inputs(body.input, max_inputs),
        prompt=body.prompt,
        prompt_name=body.prompt_name,
        input_type=body.input_type,
        truncate=body.truncate is not False,
        dimensions=dimensions,
        normalize=body.normalize is not False,
    )


def to_inputs(value: str | list[str | int | list[int]] | None, max_inputs: int) -> tuple[str | IntArray, ...]:
    """The inputs of a request: one text or id list alone counts as one.

    Raises:
        MalformedRequest: none, too many, or a mixture.
    """
    if isinstance(value, str):
        return (value,)
    if value is None:
        raise MalformedRequest(f"`input` is missing; send {_INPUT_FORMS}.", param="input")
    if not value:
        raise MalformedRequest(f"`input` is an empty list; send {_INPUT_FORMS}.", param="input")
    kind = type(value[0])
    for index, item in enumerate(value):
        if type(item) is not kind:
            raise MalformedRequest(
                f"`input` mixes kinds: input[0] is {_kind(value[0])} and input[{index}] is {_kind(item)}. "
                f"Send {_INPUT_FORMS}.",
                param="input",
                index=index,
            )
    if kind is int:
        return (_tokens(value, 0),)  # type: ignore[arg-type]  # all ints, checked above
    if len(value) > max_inputs:
        raise MalformedRequest(
            f"`input` has {len(value)} items; one request may have {max_inputs} (--max-client-batch-size).",
            param="input",
        )
    if kind is str:
        return tuple(value)  # type: ignore[arg-type]  # all strings
    return tuple(_tokens(ids, index) for index, ids in enumerate(value))  # type: ignore[arg-type]  # all lists


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


def to_json(result: EmbedResult, encoding: Encoding, model: bytes) -> bytes:
    """The answer's body; `model` is the name as JSON."""
    tail = b',"model":%s,"usage":{"prompt_tokens":%d,"total_tokens":%d}' % (
        model,
        result.num_tokens,
        result.num_tokens,
    )
    return embedding_list(result.vectors, encoding, b'"object":"list",', tail)


# Clients stop reading header lines at 8 KiB and more (aiohttp 8190 bytes), so a long list is left out;
# `shape` alone says as much, as all rows have one length.
_MAX_ITEMS_IN_HEADER = 32


def to_raw(result: EmbedResult, model: str) -> tuple[bytes, bytes]:
    """The answer as raw little-endian float32 ``[N, E]``, and the header that describes it."""
    num_rows, length = result.vectors.shape
    metadata: dict[str, Any] = {
        "object": "list",
        "model": model,
        "usage": {"prompt_tokens": result.num_tokens, "total_tokens": result.num_tokens},
        "embed_dtype": "float32",
        "endianness": "little",
        "shape": [num_rows, length],
    }
    if num_rows <= _MAX_ITEMS_IN_HEADER:
        size = 4 * length
        metadata["data"] = [
            {
                "index": i,
                "embed_dtype": "float32",
                "endianness": "little",
                "start": i * size,
                "end": (i + 1) * size,
                "shape": [length],
            }
            for i in range(num_rows)
        ]
    header = json.dumps(metadata, separators=(",", ":")).encode("ascii")  # headers carry no other characters
    return result.vectors.astype("<f4", copy=False).tobytes(), header


def _wrong_type(message: str) -> MalformedRequest:
    place = _PLACE.search(message)
    if place is None:
        return MalformedRequest(f"The request body must be a JSON object: {message.lower()}.")
    param = place[1].partition("[")[0]
    said = message[: place.start()]
    wanted = f" Send {_INPUT_FORMS}." if param == "input" else ""
    return MalformedRequest(f"{place[1]}: {said[:1].lower()}{said[1:]}.{wanted}", param=param)


def _tokens(ids: list[int], index: int) -> IntArray:
    if not ids:
        raise MalformedRequest(f"input[{index}] is an empty list of token ids.", param="input", index=index)
    return token_array(ids, index)


def _kind(item: object) -> str:
    return "a string" if isinstance(item, str) else "a token id" if isinstance(item, int) else "a list"
