"""Documents in the order of their relevance to a query, by whatever the model can do.

A cross-encoder scores each pair. Any other model compares vectors: late interaction by MaxSim divided by
the query's tokens, dense vectors by the model's own similarity, sparse ones by their dot product. Query
and documents go through the engine as one request.
"""

from __future__ import annotations

import msgspec
import numpy as np

from hilbert.core import (
    EmbedRequest,
    Output,
    OutputType,
    RerankRequest,
    RerankResult,
    Scale,
    Sequence,
    SparseVector,
    Task,
    Timing,
    finish_vectors,
)
from hilbert.core.request import FloatArray
from hilbert.errors import ServingError, UnsupportedTask
from hilbert.models.encode import counting_rows, strongest, uninferred
from hilbert.models.facts import Facts
from hilbert.models.work import Work
from hilbert.processors import PairProcessors, called, renamed

# What a document without a single token vector scores: below every other, as in sentence-transformers.
_EMPTY_DOCUMENT_SCORE = np.float32(-1e9)


def rerank_work(facts: Facts, pairs: PairProcessors, request: RerankRequest) -> Work[RerankResult]:
    """How this model reranks.

    Args:
        facts: the model.
        pairs: its pair processors, for cross-encoders.
        request: the call.

    Raises:
        UnsupportedTask: the model has several labels, or nothing to compare with a text.
    """
    outputs = facts.outputs
    if OutputType.LOGITS in outputs:
        if facts.num_labels != 1:
            why = f"it scores {facts.num_labels} labels where a reranker has one"
            raise facts.cannot(Task.RERANK, why)
        return PairWork(facts, pairs, request)
    if facts.spec.task is Task.MULTI_EMBED and facts.spec.chat is not None:
        raise facts.cannot(Task.RERANK, "its documents are images, and every text is a query to it")
    prefers_tokens = facts.spec.task is Task.MULTI_EMBED or facts.spec.multivector is not None
    order = [OutputType.DENSE, OutputType.MULTIVECTOR, OutputType.SPARSE]
    if facts.spec.task is Task.SPARSE_EMBED:
        order.insert(0, OutputType.SPARSE)
    if prefers_tokens:
        order.insert(0, OutputType.MULTIVECTOR)
    for output in order:
        if output in outputs:
            return SimilarityWork(facts, output, request)
    raise facts.cannot(Task.RERANK)


class PairWork:
    """Implements `Work` for cross-encoders."""

    def __init__(self, facts: Facts, pairs: PairProcessors, request: RerankRequest) -> None:
        self._facts = facts
        self._pairs = pairs
        self._request = request
        self._warning = ""
        self.outputs = frozenset({OutputType.LOGITS})
        self.num_inputs = len(request.documents)
        self.timeout_seconds = request.timeout_seconds

    def check(self) -> None:
        """See `Work`."""
        activation_of(self._facts, self._request.scale)

    def estimate_tokens(self) -> int:
        """See `Work`."""
        request = self._request
        return self._facts.processor.estimate_tokens(
            request.documents, len(request.query), truncate=request.truncate is not False
        )

    def is_small(self) -> bool:
        """See `Work`."""
        return _is_small(self._facts, self._request)

    def tokenize(self, request_id: int) -> tuple[Sequence, ...]:
        """See `Work`."""
        request = self._request
        documents = clipped_documents(self._facts, request)
        pairs = self._pairs.cutting(request.truncation_side).encode(
            request.query, documents, request.truncate is not False, request_id, request.prompt
        )
        if pairs.query_cut is not None:
            self._warning = _cut_warning(*pairs.query_cut)
        return pairs.sequences

    def finish(self, output: Output, num_tokens: int, timing: Timing) -> RerankResult:
        """See `Work`."""
        assert output.logits is not None
        scores = activate(output.logits[:, 0], activation_of(self._facts, self._request.scale))
        return ranked(scores, self._request.top_n, num_tokens, timing, self._warning)

    def name(self, error: ServingError) -> ServingError:
        """See `Work`: sequence i is document i."""
        return renamed(error, "documents")


class SimilarityWork:
    """Implements `Work` for models whose vectors are compared; sequence 0 is the query."""

    def __init__(self, facts: Facts, output: OutputType, request: RerankRequest) -> None:
        self._facts = facts
        self._output = output
        self._request = request
        self._warning = ""
        self._sequences: tuple[Sequence, ...] = ()
        self._static: SparseVector | None = None
        self._num_static_tokens = 0
        self.outputs = frozenset({output})
        self.num_inputs = 1 + len(request.documents)
        self.timeout_seconds = request.timeout_seconds

    def check(self) -> None:
        """See `Work`."""
        if self._facts.spec.similarity not in _SIMILARITIES:
            raise self._facts.cannot(Task.RERANK, f"its similarity is {self._facts.spec.similarity!r}")

    def estimate_tokens(self) -> int:
        """See `Work`."""
        return self._facts.processor.estimate_tokens((self._request.query, *self._request.documents))

    def is_small(self) -> bool:
        """See `Work`."""
        return _is_small(self._facts, self._request)

    def tokenize(self, request_id: int) -> tuple[Sequence, ...]:
        """See `Work`."""
        request, processor = self._request, self._facts.processor
        query = EmbedRequest(
            (request.query,),
            prompt=request.prompt,
            input_type="query",
            truncate=request.truncate,
            truncation_side=request.truncation_side,
        )
        documents = msgspec.structs.replace(
            query, inputs=clipped_documents(self._facts, request), prompt=None, input_type="document"
        )
        queries = self._facts.static_queries
        with called("query", is_list=False):
            if queries is None:
                first = processor.encode(query, request_id)
            else:
                (self._static,), self._num_static_tokens = queries.encode(query)
                first = (uninferred(request_id, 0),)
        cut = (processor if queries is None else queries.texts).count_cut(query)
        if cut is not None:
            self._warning = _cut_warning(*cut)
        with called("documents"):
            rest = processor.encode(documents, request_id)
        self._sequences = first + tuple(msgspec.structs.replace(s, index=s.index + 1) for s in rest)
        return self._sequences

    def finish(self, output: Output, num_tokens: int, timing: Timing) -> RerankResult:
        """See `Work`."""
        if self._output is OutputType.DENSE:
            assert output.dense is not None
            scores = similarities(self._facts, output.dense)
        elif self._output is OutputType.MULTIVECTOR:
            assert output.multivector is not None
            scores = self._maxsim(output.multivector)
        else:
            assert output.sparse is not None
            first = output.sparse[0] if self._static is None else self._static
            query, *documents = strongest((first, *output.sparse[1:]), self._facts.spec.max_active_dims)
            scores = sparse_products(query, tuple(documents))
        num_tokens += self._num_static_tokens
        return ranked(scores, self._request.top_n, num_tokens, timing, self._warning)

    def _maxsim(self, tokens: tuple[FloatArray, ...]) -> FloatArray:
        normalize = self._facts.spec.normalize
        query, *documents = (
            finish_vectors(counting_rows(self._facts, rows, sequence, i > 0), None, normalize)
            for i, (rows, sequence) in enumerate(zip(tokens, self._sequences, strict=True))
        )
        return maxsim(query, documents)

    def name(self, error: ServingError) -> ServingError:
        """See `Work`: sequence 0 is the query, sequence i document i - 1."""
        if error.index == 0:
            return renamed(error, "query", is_list=False)
        return renamed(error, "documents", shift=-1)


def clipped_documents(facts: Facts, request: RerankRequest) -> tuple[str, ...]:
    """The documents, cut to the tokens that the request allows each.

    Raises:
        InvalidInput: one is not valid Unicode.
    """
    if request.max_document_tokens is None:
        return request.documents
    with called("documents"):
        return facts.processor.clipped(request.documents, request.max_document_tokens)


def _is_small(facts: Facts, request: RerankRequest) -> bool:
    """Whether tokenizing costs less than a thread; what cuts on the other side may have to be made first."""
    return request.truncation_side is None and facts.processor.is_small((request.query, *request.documents))


def ranked(
    scores: FloatArray, top_n: int | None, num_tokens: int, timing: Timing, warning: str
) -> RerankResult:
    """The best `top_n` documents, ties in the order of the request."""
    order = np.argsort(-scores, kind="stable")[:top_n]
    return RerankResult(order, scores[order], num_tokens, timing, warning)


def activation_of(facts: Facts, scale: Scale) -> str:
    """The last word of the activation's name.

    Raises:
        UnsupportedTask: the model's config asks for one that is not known here.
    """
    if scale is Scale.SIGMOID:
        return "Sigmoid"
    if scale is Scale.RAW:
        return "Identity"
    name = facts.spec.activation.rpartition(".")[2] or "Sigmoid"
    if name not in ("Sigmoid", "Identity", "Tanh", "ReLU"):
        raise UnsupportedTask(
            f"{facts.name} wants the activation {facts.spec.activation!r}, which is not known here; ask for "
            "raw_scores.",
            param="raw_scores",
        )
    return name


def activate(logits: FloatArray, activation: str) -> FloatArray:
    """Logits through one of torch's activations, in float32."""
    if activation == "Sigmoid":
        return sigmoid(logits)
    if activation == "Tanh":
        return np.tanh(logits)
    return np.maximum(logits, np.float32(0)) if activation == "ReLU" else logits


def sigmoid(logits: FloatArray) -> FloatArray:
    """``1 / (1 + exp(-x))`` without overflow, float32."""
    positive = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + positive), positive / (1 + positive)).astype(np.float32)


_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan", "maxsim", "meanmaxsim")


def similarities(facts: Facts, rows: FloatArray) -> FloatArray:
    """Row 0 against the others, by the model's own similarity; distances count negative.

    Args:
        rows: ``[1 + N, E]`` float32, as the engine returns them.
    Returns:
        ``[N]`` float32.
    Source: sentence-transformers' SimilarityFunction.
    """
    spec = facts.spec
    vectors = finish_vectors(rows, spec.truncate_dim, spec.normalize or spec.similarity == "cosine")
    query, documents = vectors[0], vectors[1:]
    scores: FloatArray = documents @ query
    if spec.similarity == "euclidean":
        scores = -np.sqrt(((documents - query) ** 2).sum(axis=1))
    elif spec.similarity == "manhattan":
        scores = -np.abs(documents - query).sum(axis=1)
    return scores


def maxsim(query: FloatArray, documents: list[FloatArray]) -> FloatArray:
    """The mean over the query's tokens of the best similarity that each finds in a document.

    Args:
        query: ``[q, E]`` float32.
        documents: N arrays ``[d, E]`` float32.
    Returns:
        ``[N]`` float32; a document without tokens is below all others.
    Source: the MeanMaxSim of sentence-transformers' MultiVectorEncoder.
    """
    scores = np.full(len(documents), _EMPTY_DOCUMENT_SCORE, dtype=np.float32)
    for i, document in enumerate(documents):
        if len(document) and len(query):
            scores[i] = (query @ document.T).max(axis=1).mean(dtype=np.float32)
    return scores


def sparse_products(query: SparseVector, documents: tuple[SparseVector, ...]) -> FloatArray:
    """``[N]`` float32: the dot product of each document with the query."""
    scores = np.zeros(len(documents), dtype=np.float32)
    for i, document in enumerate(documents):
        _, mine, its = np.intersect1d(
            query.token_ids, document.token_ids, assume_unique=True, return_indices=True
        )
        scores[i] = query.weights[mine] @ document.weights[its]
    return scores


def _cut_warning(num_tokens: int, num_kept: int) -> str:
    return f"query truncated: {num_kept} of its {num_tokens} tokens were used"
