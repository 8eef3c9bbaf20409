"""Texts to vectors: dense, sparse and one for each token, any of them from the same pass."""

from __future__ import annotations

import msgspec
import numpy as np

from hilbert.core import (
    EmbedRequest,
    EncodeResult,
    Media,
    MediaRef,
    Output,
    OutputType,
    Sequence,
    SparseVector,
    Timing,
    finish_vectors,
)
from hilbert.core.request import FloatArray
from hilbert.errors import InvalidInput, ServingError
from hilbert.models.facts import Facts
from hilbert.models.media import MediaLoader
from hilbert.processors.sides import is_query, kept_rows

_SPARSE_ONLY = frozenset({OutputType.SPARSE})


class EncodeWork:
    """Implements `Work` for vectors.

    Attributes:
        prompt_chars: characters that stand before each input, at most.
    """

    def __init__(self, facts: Facts, request: EmbedRequest) -> None:
        self._facts = facts
        self._request = request
        self._sequences: tuple[Sequence, ...] = ()
        self._static: tuple[SparseVector, ...] | None = None
        self._num_static_tokens = 0
        self.outputs = request.outputs
        self.num_inputs = len(request.inputs)
        self.timeout_seconds = request.timeout_seconds
        # An unknown name is refused when the inputs are tokenized.
        named = facts.spec.prompts.get(request.prompt_name or facts.spec.default_prompt_name or "", "")
        longest = max(map(len, facts.spec.prompts.values()), default=0) if request.input_type else 0
        self.prompt_chars = max(len(request.prompt or named), longest)

    def check(self) -> None:
        """See `Work`."""
        self._facts.require(self.outputs)
        self._facts.check_modalities(self._request.inputs)
        if self.outputs == _SPARSE_ONLY:
            self._check_sparse()
        self._facts.check_dimensions(self._request.dimensions, self.outputs)

    def _check_sparse(self) -> None:
        """Refuse what changes vectors of another kind and would be ignored here."""
        for field, is_asked in (
            ("dimensions", self._request.dimensions is not None),
            ("normalize", self._request.normalize is True),
        ):
            if is_asked:
                raise InvalidInput(
                    f"{field} has no meaning for sparse vectors, whose weights stay as they are; leave it "
                    "out.",
                    param=field,
                )

    def estimate_tokens(self) -> int:
        """See `Work`."""
        request = self._request
        return self._facts.processor.estimate_tokens(
            request.inputs, self.prompt_chars, truncate=request.truncate is not False
        )

    async def load(self, loader: MediaLoader) -> None:
        """Get the images and sounds that the request only points to.

        Raises:
            MediaError: one cannot be had.
        """
        self._request = msgspec.structs.replace(self._request, inputs=await loader.load(self._request.inputs))

    @property
    def has_references(self) -> bool:
        """Whether `load` has anything to do."""
        return any(isinstance(given, MediaRef) for given in self._request.inputs)

    @property
    def has_media(self) -> bool:
        """Whether images or sounds are to be decoded."""
        return any(isinstance(given, Media) for given in self._request.inputs)

    def is_small(self) -> bool:
        """See `Work`. What cuts on the other side may have to be made first."""
        request = self._request
        return request.truncation_side is None and self._facts.processor.is_small(
            request.inputs, self.prompt_chars
        )

    def tokenize(self, request_id: int) -> tuple[Sequence, ...]:
        """See `Work`."""
        queries = self._facts.static_queries
        if queries is not None and queries.takes(self._request):
            self._static, self._num_static_tokens = queries.encode(self._request)
            return tuple(uninferred(request_id, index) for index in range(self.num_inputs))
        self._sequences = self._facts.processor.encode(self._request, request_id)
        return self._sequences

    def finish(self, output: Output, num_tokens: int, timing: Timing) -> EncodeResult:
        """See `Work`."""
        request, spec = self._request, self._facts.spec
        normalize = spec.normalize if request.normalize is None else request.normalize
        dense = tokens = sparse = None
        if OutputType.DENSE in self.outputs:
            assert output.dense is not None
            dense = finish_vectors(output.dense, request.dimensions or spec.truncate_dim, normalize)
        if OutputType.MULTIVECTOR in self.outputs:
            assert output.multivector is not None
            is_document = not is_query(request)
            tokens = tuple(
                finish_vectors(
                    counting_rows(self._facts, rows, sequence, is_document), request.dimensions, normalize
                )
                for rows, sequence in zip(output.multivector, self._sequences, strict=True)
            )
        if OutputType.SPARSE in self.outputs:
            assert output.sparse is not None
            sparse = strongest(output.sparse if self._static is None else self._static, spec.max_active_dims)
        return EncodeResult(dense, sparse, tokens, num_tokens + self._num_static_tokens, timing)

    def name(self, error: ServingError) -> ServingError:
        """See `Work`: inputs are called inputs."""
        return error


def uninferred(request_id: int, index: int) -> Sequence:
    """Stands for an input that the engine need not see."""
    return Sequence(request_id, index, np.empty(0, np.int32))


def strongest(vectors: tuple[SparseVector, ...], num: int | None) -> tuple[SparseVector, ...]:
    """The same vectors with no more than so many weights each, the largest; None leaves them as they are."""
    return vectors if num is None else tuple(_strongest(vector, num) for vector in vectors)


def _strongest(vector: SparseVector, num: int) -> SparseVector:
    if len(vector.weights) <= num:
        return vector
    places = np.sort(np.argpartition(-np.abs(vector.weights), num - 1)[:num])
    return SparseVector(vector.token_ids[places], vector.weights[places])


def counting_rows(facts: Facts, rows: FloatArray, sequence: Sequence, is_document: bool) -> FloatArray:
    """The token vectors that count.

    The first is left out where the model says so, and of a document the tokens that the model skips.

    Args:
        facts: the model.
        rows: ``[n, E]``, a row per token of the sequence.
        sequence: its tokens.
        is_document: whether the model's skip list applies.
    """
    sides = facts.spec.multivector
    if sides is not None and sides.skip_ids and (is_document or sides.skips_queries) and len(rows):
        keeps = kept_rows(sequence.input_ids, sides.skip_ids)
        if facts.skips_first:
            keeps[0] = False
        return rows[keeps]
    return rows[1:] if facts.skips_first else rows


def with_empty_rows(
    facts: Facts, outputs: frozenset[OutputType], output: Output | None, sequences: tuple[Sequence, ...]
) -> Output:
    """The engine's output with nothing where a sequence had no tokens: zero rows, empty vectors.

    Args:
        facts: the model, for the sizes where the engine was not asked at all.
        outputs: what was asked for.
        output: rows of the sequences that have tokens; None where none has.
        sequences: all of them.
    """
    places = [i for i, s in enumerate(sequences) if s.num_tokens]
    dense = logits = None
    tokens: list[FloatArray] | None = None
    sparse: list[SparseVector] | None = None
    num_rows = len(sequences)
    given = output or Output(0)
    if OutputType.DENSE in outputs:
        dense = _spread(given.dense, facts.dimensions, places, num_rows)
    if OutputType.LOGITS in outputs:
        logits = _spread(given.logits, facts.num_labels, places, num_rows)
    if OutputType.MULTIVECTOR in outputs:
        tokens = [np.empty((0, facts.token_dimensions), np.float32)] * num_rows
        for place, rows in zip(places, given.multivector or (), strict=True):
            tokens[place] = rows
    if OutputType.SPARSE in outputs:
        sparse = [SparseVector(np.empty(0, np.int32), np.empty(0, np.float32))] * num_rows
        for place, vector in zip(places, given.sparse or (), strict=True):
            sparse[place] = vector
    return msgspec.structs.replace(
        given,
        dense=dense,
        logits=logits,
        multivector=None if tokens is None else tuple(tokens),
        sparse=None if sparse is None else tuple(sparse),
    )


def _spread(rows: FloatArray | None, size: int, places: list[int], num_rows: int) -> FloatArray:
    spread = np.zeros((num_rows, size if rows is None else rows.shape[1]), dtype=np.float32)
    if rows is not None:
        spread[places] = rows
    return spread
