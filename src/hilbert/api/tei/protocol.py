"""TEI's bodies, and their translation to and from `core`.

Decides every refusal that concerns form alone, empty inputs included. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np
import orjson

from hilbert.api.body import BodyDecoder, MalformedRequest, about, short_floats
from hilbert.api.rerank import scored
from hilbert.api.tei.errors import EmptyInput
from hilbert.api.vectors import numbers
from hilbert.core import (
    Classified,
    ClassifyRequest,
    ClassifyResult,
    EmbedRequest,
    EncodeResult,
    OutputDtype,
    OutputType,
    RerankRequest,
    RerankResult,
    Scale,
    Side,
    Token,
)
from hilbert.core.request import IntArray
from hilbert.processors import called, token_array

INPUT_FORMS = "a string, a list of strings, a list of token ids, or a list of strings and lists of token ids"
PREDICT_FORMS = "a string, a list of two strings (a pair), or a list of lists of one or two strings"

_MODEL = Annotated[
    str | None, about("The served model's name, where there are several (TEI has no such field).")
]
_TRUNCATE = Annotated[
    bool | None, about("Cut inputs to the model's length; by default as the server's --auto-truncate says.")
]
_SIDE = Annotated[
    str | None, about("Which end of a long input is cut off: `Right` or `Left`; default the model's own.")
]
_PROMPT_NAME = Annotated[str | None, about("One of the model's own prompts.")]
Texts = str | list[str | int | list[int]]


class TeiBody(msgspec.Struct, kw_only=True):
    """What most bodies have. Unknown fields are ignored."""

    model: _MODEL = None
    truncate: _TRUNCATE = None
    truncation_direction: _SIDE = None

    @property
    def side(self) -> Side | None:
        """Where long inputs are cut.

        Raises:
            MalformedRequest: it is neither left nor right.
        """
        name = self.truncation_direction
        if name is None:
            return None
        if name in ("Left", "left"):
            return "left"
        if name in ("Right", "right"):
            return "right"
        raise MalformedRequest(
            f"`truncation_direction` is {name!r}; send `Left` or `Right`.", param="truncation_direction"
        )


class TeiEmbedBody(TeiBody, kw_only=True):
    """Inputs to embed."""

    inputs: Annotated[Texts | None, about(f"What to embed: {INPUT_FORMS}.")] = None
    prompt_name: _PROMPT_NAME = None
    normalize: Annotated[bool | None, about("Scale vectors to length 1 (default true).")] = None
    dimensions: Annotated[
        int | None, about("Keep the first so many numbers of each vector, and normalise again.")
    ] = None


class TeiTokenVectorsBody(TeiBody, kw_only=True):
    """Inputs to embed, token by token or over the vocabulary."""

    inputs: Annotated[Texts | None, about(f"What to embed: {INPUT_FORMS}.")] = None
    prompt_name: _PROMPT_NAME = None


class TeiPipelineParameters(msgspec.Struct, kw_only=True):
    """What clients of Hugging Face's pipelines say of an answer."""

    top_k: Annotated[int | None, about("Only so many of the best classes.")] = None
    function_to_apply: Annotated[str | None, about("`none` for logits; others are the model's own.")] = None


class TeiPredictBody(TeiBody, kw_only=True):
    """Texts or pairs to classify."""

    inputs: Annotated[str | list[str | list[str]] | None, about(f"What to classify: {PREDICT_FORMS}.")] = None
    raw_scores: Annotated[bool | None, about("Logits instead of probabilities (default false).")] = None
    parameters: Annotated[
        TeiPipelineParameters | None,
        about(
            "Sent by clients of Hugging Face's pipelines; with it a lone input is answered in a list, too."
        ),
    ] = None


class TeiRerankBody(TeiBody, kw_only=True):
    """A query, and the texts to order."""

    query: str | None = None
    texts: list[str] | None = None
    raw_scores: Annotated[bool | None, about("Logits instead of scores from 0 to 1 (default false).")] = None
    return_text: Annotated[bool | None, about("Send the texts back, too (default false).")] = None
    top_n: Annotated[int | None, about("Return only so many of the best (TEI has no such field).")] = None


class TeiSentences(msgspec.Struct, kw_only=True):
    """One sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class TeiSimilarityParameters(msgspec.Struct, kw_only=True):
    """How inputs are read."""

    truncate: _TRUNCATE = None
    truncation_direction: _SIDE = None
    prompt_name: _PROMPT_NAME = None


class TeiSimilarityBody(msgspec.Struct, kw_only=True):
    """Sentences to compare."""

    inputs: TeiSentences
    parameters: TeiSimilarityParameters | None = None
    model: _MODEL = None


class TeiTokenizeBody(msgspec.Struct, kw_only=True):
    """Texts to tokenize."""

    inputs: str | list[str] | None = None
    add_special_tokens: bool | None = None
    prompt_name: _PROMPT_NAME = None
    model: _MODEL = None


class TeiDecodeBody(msgspec.Struct, kw_only=True):
    """Token ids to read."""

    ids: Annotated[list[int | list[int]] | None, about("Token ids, or lists of them.")] = None
    skip_special_tokens: bool | None = None
    model: _MODEL = None


class TeiVertexBody(msgspec.Struct, kw_only=True):
    """Bodies of other routes, several at once."""

    instances: list[msgspec.Raw] | None = None
    model: _MODEL = None


class TeiAnyBody(msgspec.Struct, kw_only=True):
    """What is looked at to tell which route a body is for."""

    inputs: Any = None
    query: Any = None
    model: str | None = None


class TeiSparseValue(msgspec.Struct):
    """The weight of one token of the vocabulary."""

    index: int
    value: float


class TeiPrediction(msgspec.Struct):
    """One class and its score."""

    score: float
    label: str


class TeiRank(msgspec.Struct, omit_defaults=True):
    """One text and its score."""

    index: int
    score: float
    text: str | None = None


class TeiToken(msgspec.Struct):
    """One token; `start` and `stop` count bytes of the prompt and the text."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TeiError(msgspec.Struct):
    """The body of every status from 400 up."""

    error: str
    error_type: str


class TeiInfo(msgspec.Struct):
    """The model, and the limits of the server."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int | None
    max_batch_tokens: int | None
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


class TeiPredictions(msgspec.Struct):
    """The answers, in the order of the instances."""

    predictions: list[Any]


class TeiEnvelope(msgspec.Struct):
    """The vectors, in the order of the inputs."""

    body: list[list[float]]


EMBED = BodyDecoder(TeiEmbedBody, {"inputs": INPUT_FORMS})
TOKEN_VECTORS = BodyDecoder(TeiTokenVectorsBody, {"inputs": INPUT_FORMS})
PREDICT = BodyDecoder(TeiPredictBody, {"inputs": PREDICT_FORMS})
RERANK = BodyDecoder(TeiRerankBody, {"texts": "a list of strings"})
SIMILARITY = BodyDecoder(TeiSimilarityBody)
TOKENIZE = BodyDecoder(TeiTokenizeBody, {"inputs": "a string or a list of strings"})
DECODE = BodyDecoder(TeiDecodeBody, {"ids": "a list of token ids, or a list of such lists"})
VERTEX = BodyDecoder(TeiVertexBody, {"instances": "a list of objects"})
ANY = BodyDecoder(TeiAnyBody)

Asked = TypeVar("Asked")


@dataclass(frozen=True, slots=True)
class Order(Generic[Asked]):
    """A body, read.

    Attributes:
        model: the name in it.
        asked: what the model is asked.
        num_characters: of all inputs, a query once for each of its texts.
        is_single: one input was sent alone, and is answered alone.
        top: how many classes are returned; None for all.
        returns_text: texts are sent back.
    """

    model: str | None
    asked: Asked
    num_characters: int
    is_single: bool = False
    returns_text: bool = False
    top: int | None = None


def embed_order(raw: bytes, max_inputs: int) -> Order[EmbedRequest]:
    """What is asked of `/embed`.

    Raises:
        MalformedRequest: the body has another form, too many inputs, or an empty one.
    """
    body = EMBED.decode(raw)
    inputs = _inputs(body.inputs, max_inputs)
    request = EmbedRequest(
        inputs,
        prompt_name=body.prompt_name,
        truncate=body.truncate,
        truncation_side=body.side,
        dimensions=body.dimensions,
        normalize=body.normalize is not False,
    )
    return Order(body.model, request, _num_characters(inputs))


def vectors_order(output: OutputType, raw: bytes, max_inputs: int) -> Order[EmbedRequest]:
    """What is asked of `/embed_all` and `/embed_sparse`. Raises as `embed_order` does."""
    body = TOKEN_VECTORS.decode(raw)
    inputs = _inputs(body.inputs, max_inputs)
    request = EmbedRequest(
        inputs,
        prompt_name=body.prompt_name,
        truncate=body.truncate,
        truncation_side=body.side,
        normalize=False,
        outputs=frozenset({output}),
    )
    return Order(body.model, request, _num_characters(inputs))


def similarity_order(raw: bytes, max_inputs: int) -> Order[EmbedRequest]:
    """What is asked of `/similarity`: the source first. Raises as `embed_order` does."""
    body = SIMILARITY.decode(raw)
    parameters = body.parameters or TeiSimilarityParameters()
    if not body.inputs.sentences:
        raise EmptyInput("`inputs.sentences` cannot be empty.", param="inputs")
    inputs = _inputs([body.inputs.source_sentence, *body.inputs.sentences], max_inputs)
    request = EmbedRequest(
        inputs,
        prompt_name=parameters.prompt_name,
        truncate=parameters.truncate,
        truncation_side=TeiBody(truncation_direction=parameters.truncation_direction).side,
        normalize=True,
    )
    return Order(body.model, request, _num_characters(inputs))


def predict_order(raw: bytes, max_inputs: int) -> Order[ClassifyRequest]:
    """What is asked of `/predict`. Raises as `embed_order` does."""
    body = PREDICT.decode(raw)
    given, is_single = _predictions(body.inputs)
    _check_number(len(given), max_inputs, "inputs")
    for index, item in enumerate(given):
        if not any(item if isinstance(item, tuple) else (item,)):
            raise _empty("inputs", index)
    pipeline = body.parameters or TeiPipelineParameters()
    is_raw = body.raw_scores is True or pipeline.function_to_apply == "none"
    request = ClassifyRequest(tuple(given), is_raw, body.truncate, truncation_side=body.side)
    num_characters = sum(len(item) if isinstance(item, str) else sum(map(len, item)) for item in given)
    is_alone = is_single and body.parameters is None
    return Order(body.model, request, num_characters, is_alone, top=pipeline.top_k)


def rerank_order(raw: bytes, max_inputs: int) -> Order[RerankRequest]:
    """What is asked of `/rerank`. Raises as `embed_order` does."""
    body = RERANK.decode(raw)
    if body.query is None:
        raise MalformedRequest("`query` is missing; send a string.", param="query")
    if body.texts is None:
        raise MalformedRequest("`texts` is missing; send a list of strings.", param="texts")
    if not body.texts:
        raise EmptyInput("`texts` cannot be empty.", param="texts")
    _check_number(len(body.texts), max_inputs, "texts")
    if not body.query and not all(body.texts):
        raise _empty("texts", body.texts.index(""))
    if body.top_n is not None and body.top_n < 1:
        raise MalformedRequest(
            f"`top_n` is {body.top_n}; it must be 1 or more, or left out for all.", param="top_n"
        )
    request = RerankRequest(
        body.query,
        tuple(body.texts),
        body.top_n,
        Scale.RAW if body.raw_scores else Scale.SIGMOID,
        body.truncate,
        truncation_side=body.side,
    )
    num_characters = len(body.query) * len(body.texts) + sum(map(len, body.texts))
    return Order(body.model, request, num_characters, returns_text=body.return_text is True)


def tokenize_order(raw: bytes, max_inputs: int) -> tuple[TeiTokenizeBody, tuple[str, ...]]:
    """What is asked of `/tokenize`: the body, and its texts.

    Raises:
        MalformedRequest: the body has another form, or too many texts.
    """
    body = TOKENIZE.decode(raw)
    if body.inputs is None:
        raise MalformedRequest("`inputs` is missing; send a string or a list of strings.", param="inputs")
    texts = (body.inputs,) if isinstance(body.inputs, str) else tuple(body.inputs)
    if not texts:
        raise EmptyInput("`inputs` cannot be empty.", param="inputs")
    _check_number(len(texts), max_inputs, "inputs")
    return body, texts


def decode_order(raw: bytes, max_inputs: int) -> tuple[TeiDecodeBody, tuple[tuple[int, ...], ...]]:
    """What is asked of `/decode`: the body, and its lists of ids. Raises as `tokenize_order` does."""
    body = DECODE.decode(raw)
    if not body.ids:
        raise EmptyInput("`input_ids` cannot be empty.", param="ids")
    given = list(body.ids)
    lists = [item for item in given if isinstance(item, list)]
    if lists and len(lists) < len(given):
        raise MalformedRequest(
            "`ids` mixes token ids with lists of them; send one list of ids, or a list of lists.", param="ids"
        )
    found = tuple(map(tuple, lists)) if lists else (tuple(i for i in given if isinstance(i, int)),)
    _check_number(len(found), max_inputs, "ids")
    return body, found


def vectors_json(result: EncodeResult, dtype: OutputDtype) -> bytes:
    """``[[…], …]``: a vector for each input."""
    assert result.dense is not None
    return orjson.dumps(numbers(result.dense, None, dtype, "float"), option=orjson.OPT_SERIALIZE_NUMPY)


def token_vectors_json(result: EncodeResult) -> bytes:
    """``[[[…], …], …]``: a vector for each token of each input."""
    return orjson.dumps(list(result.multivector or ()), option=orjson.OPT_SERIALIZE_NUMPY)


def sparse_json(result: EncodeResult) -> bytes:
    """``[[{index, value}, …], …]``, ids ascending."""
    rows = [
        [
            {"index": token_id, "value": value}
            for token_id, value in zip(vector.token_ids.tolist(), short_floats(vector.weights), strict=True)
        ]
        for vector in result.sparse or ()
    ]
    return orjson.dumps(rows)


def similarity_json(result: EncodeResult) -> bytes:
    """``[…]``: the cosine of each sentence with the source."""
    assert result.dense is not None
    source, sentences = result.dense[0], result.dense[1:]
    return orjson.dumps(np.ascontiguousarray(sentences @ source), option=orjson.OPT_SERIALIZE_NUMPY)


def predictions_json(order: Order[ClassifyRequest], result: ClassifyResult) -> bytes:
    """``[{score, label}, …]`` for one input alone, else a list of such lists."""
    rows = [
        [
            {"score": score, "label": result.labels[place]}
            for place, score in zip(places[: order.top], short_floats(scores[: order.top]), strict=True)
        ]
        for places, scores in zip(result.order.tolist(), result.scores, strict=True)
    ]
    return orjson.dumps(rows[0] if order.is_single else rows)


def ranks_json(order: Order[RerankRequest], result: RerankResult) -> bytes:
    """``[{index, score[, text]}, …]``, best first; of equals the later one, as in TEI."""
    ranks: list[dict[str, Any]] = []
    for index, score in sorted(scored(result), key=lambda rank: (rank[1], rank[0]), reverse=True):
        rank: dict[str, Any] = {"index": index, "score": score}
        if order.returns_text:
            rank["text"] = order.asked.documents[index]
        ranks.append(rank)
    return orjson.dumps(ranks)


def tokens_json(texts: Sequence[Sequence[Token]]) -> bytes:
    """``[[{id, text, special, start, stop}, …], …]``."""
    rows = [
        [
            {
                "id": token.id,
                "text": token.text,
                "special": token.is_special,
                "start": token.start,
                "stop": token.stop,
            }
            for token in tokens
        ]
        for tokens in texts
    ]
    return orjson.dumps(rows)


def _inputs(given: Texts | None, max_inputs: int) -> tuple[str | IntArray, ...]:
    """The inputs of a request: one text or id list alone counts as one."""
    if given is None:
        raise MalformedRequest(f"`inputs` is missing; send {INPUT_FORMS}.", param="inputs")
    items: list[str | int | list[int]] = [given] if isinstance(given, str) else given
    if not items:
        raise EmptyInput("`inputs` cannot be empty.", param="inputs")
    token_ids = [item for item in items if isinstance(item, int)]
    if len(token_ids) == len(items):
        items = [token_ids]
    elif token_ids:
        raise MalformedRequest(
            f"`inputs` mixes token ids with texts or lists; send {INPUT_FORMS}.", param="inputs"
        )
    _check_number(len(items), max_inputs, "inputs")
    found: list[str | IntArray] = []
    for index, item in enumerate(items):
        if not item:
            raise _empty("inputs", index)
        with called("inputs"):
            found.append(token_array(item, index) if isinstance(item, list) else str(item))
    return tuple(found)


def _predictions(given: str | list[str | list[str]] | None) -> tuple[list[Classified], bool]:
    """What is to be classified, and whether it was sent alone."""
    if isinstance(given, str):
        return [given], True
    if not given or isinstance(given[0], str):
        texts = [item for item in given or () if isinstance(item, str)]
        if len(texts) == len(given or ()) and texts:
            return [_one_or_two(texts)], True
    elif all(isinstance(item, list) for item in given):
        return [_one_or_two(list(item)) for item in given], False
    raise MalformedRequest(f"`inputs` cannot be read; send {PREDICT_FORMS}.", param="inputs")


def _one_or_two(texts: list[str]) -> Classified:
    if len(texts) == 1:
        return texts[0]
    if len(texts) == 2:
        return texts[0], texts[1]
    raise MalformedRequest(
        f"`inputs` has {len(texts)} texts where one or a pair is taken; send {PREDICT_FORMS}.", param="inputs"
    )


def _check_number(number: int, limit: int, field: str) -> None:
    if number > limit:
        raise MalformedRequest(
            f"batch size {number} > maximum allowed batch size {limit} (--max-client-batch-size).",
            param=field,
        )


def _empty(field: str, index: int) -> EmptyInput:
    return EmptyInput(f"`{field}[{index}]` cannot be empty.", param=field, index=index)


def _num_characters(inputs: Sequence[str | IntArray]) -> int:
    return sum(len(item) for item in inputs if isinstance(item, str))
