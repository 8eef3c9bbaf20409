"""What a dialect asks of a model beside dense vectors, and what it gets back; in the words of no dialect."""

from __future__ import annotations

from enum import StrEnum

import msgspec
import numpy as np
import numpy.typing as npt

from hilbert.core.request import FloatArray, Side, SparseVector, Timing

IndexArray = npt.NDArray[np.int64]
Classified = str | tuple[str, str]


class Scale(StrEnum):
    """What happens to a reranker's logit. Similarities are never scaled."""

    SIGMOID = "sigmoid"
    RAW = "raw"
    MODEL = "model"
    """What the model's own config says: the default of sentence-transformers' CrossEncoder."""


class EncodeResult(msgspec.Struct, frozen=True):
    """Everything that one pass returned for the inputs, in their order. What was not asked for is None.

    Attributes:
        dense: ``[N, E]`` float32, cut and normalised as the request says.
        sparse: N vectors over the vocabulary.
        multivector: N arrays ``[n, E]`` float32: one row for each token that counts, finished likewise.
        num_tokens: tokens that the model saw.
    """

    dense: FloatArray | None
    sparse: tuple[SparseVector, ...] | None
    multivector: tuple[FloatArray, ...] | None
    num_tokens: int
    timing: Timing

    @property
    def num_numbers(self) -> int:
        """How much there is to write."""
        dense = 0 if self.dense is None else self.dense.size
        sparse = sum(2 * len(vector.token_ids) for vector in self.sparse or ())
        return dense + sparse + sum(rows.size for rows in self.multivector or ())


class RerankRequest(msgspec.Struct, frozen=True):
    """One call that orders documents by their relevance to a query.

    Attributes:
        documents: at least one.
        top_n: return only so many of the best; None for all.
        scale: what is done to the logits of a cross-encoder.
        truncate: cut what is too long for the model; when false that is an error; None leaves it to the
            server.
        timeout_seconds: give up after this time; None takes the server's limit.
        prompt: the instruction of a reranker that takes one, else text before the query; None takes the
            model's own.
        max_document_tokens: of longer documents only so many tokens are read, special ones not counted.
        truncation_side: as in `EmbedRequest`.
    """

    query: str
    documents: tuple[str, ...]
    top_n: int | None = None
    scale: Scale = Scale.SIGMOID
    truncate: bool | None = True
    timeout_seconds: float | None = None
    prompt: str | None = None
    max_document_tokens: int | None = None
    truncation_side: Side | None = None


class RerankResult(msgspec.Struct, frozen=True):
    """Documents from the most to the least relevant; ties keep their order.

    Attributes:
        indices: ``[top_n]``: the places of the documents in the request.
        scores: ``[top_n]`` float32, descending.
        num_tokens: tokens that the model saw.
        warning: what the caller should know (the query was cut), or ``""``.
    """

    indices: IndexArray
    scores: FloatArray
    num_tokens: int
    timing: Timing
    warning: str = ""


class ClassifyRequest(msgspec.Struct, frozen=True):
    """One call that puts texts, or pairs of texts, into classes.

    Attributes:
        inputs: at least one text or pair.
        raw_scores: return the logits as they are.
        truncate, timeout_seconds, truncation_side: as in `RerankRequest`.
    """

    inputs: tuple[Classified, ...]
    raw_scores: bool = False
    truncate: bool | None = True
    timeout_seconds: float | None = None
    truncation_side: Side | None = None


class ClassifyResult(msgspec.Struct, frozen=True):
    """The scores of all classes, best first.

    Attributes:
        labels: names of the classes in the order of the model.
        order: ``[N, L]``: row i lists the classes of input i from the best to the worst.
        scores: ``[N, L]`` float32 in that order.
        num_tokens: tokens that the model saw.
    """

    labels: tuple[str, ...]
    order: IndexArray
    scores: FloatArray
    num_tokens: int
    timing: Timing


class ExtractRequest(msgspec.Struct, frozen=True):
    """One call that looks for spans of some kinds in texts.

    Attributes:
        texts: at least one.
        labels: what to look for; a label that comes twice counts once.
        threshold, is_flat, is_multi_label: as in `SpanQuery`.
        truncate, timeout_seconds: as in `RerankRequest`.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    threshold: float = 0.5
    is_flat: bool = True
    is_multi_label: bool = False
    truncate: bool | None = True
    timeout_seconds: float | None = None


class ExtractResult(msgspec.Struct, frozen=True):
    """The spans of each text, in the order of the texts.

    Attributes:
        labels: what was looked for, each label once.
        spans: N arrays ``[n, 4]`` float32, by their starts: the first character, the one behind the last, the
            place in `labels`, the score.
        num_tokens: tokens that the model saw, the labels counted with each text.
    """

    labels: tuple[str, ...]
    spans: tuple[FloatArray, ...]
    num_tokens: int
    timing: Timing

    @property
    def num_numbers(self) -> int:
        """How much there is to write."""
        return sum(rows.size for rows in self.spans)


class Token(msgspec.Struct, frozen=True):
    """One token of a text.

    Attributes:
        text: the part of the text that it stands for; a special token's own name.
        is_special: it was put there by the tokenizer.
        start, stop: bytes of the text in UTF-8, its prompt included; None for a special token.
    """

    id: int
    text: str
    is_special: bool
    start: int | None
    stop: int | None
