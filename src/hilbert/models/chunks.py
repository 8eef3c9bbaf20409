"""Late chunking: documents to one vector for each of their chunks.

The engine is asked for token vectors, like any other request; they are averaged here, chunk by chunk. What
that costs beside the model: 8192 tokens of 768 numbers are 25 MB to move and 7 to 17 ms to add.
"""

from __future__ import annotations

import numpy as np

from hilbert.core import (
    EmbedRequest,
    EncodeResult,
    ModelSpec,
    Output,
    OutputType,
    PoolingMode,
    Sequence,
    Timing,
    finish_vectors,
)
from hilbert.core.request import DENSE_ONLY
from hilbert.errors import InvalidInput, ServingError, UnsupportedTask
from hilbert.models.facts import Facts
from hilbert.processors import ChunkProcessor, renamed, resolve_prompt
from hilbert.processors.chunks import Document, sequences_of

_TOKENS = frozenset({OutputType.MULTIVECTOR})
# Documents take the tokenizer's own way, with the places of all tokens: a millisecond for so many.
_INLINE_CHARS = 1000


class ChunkWork:
    """Implements `Work` for late chunking."""

    def __init__(self, facts: Facts, request: EmbedRequest) -> None:
        self._facts = facts
        self._request = request
        self._documents: tuple[Document, ...] = ()
        self._chunks = tuple(text for text in request.inputs if isinstance(text, str))
        self.outputs = _TOKENS
        self.num_inputs = len(request.inputs)
        self.timeout_seconds = request.timeout_seconds

    def check(self) -> None:
        """See `Work`."""
        facts, request = self._facts, self._request
        for index, text in enumerate(request.inputs):
            if not isinstance(text, str):
                raise InvalidInput(
                    f"input[{index}] is no text; late chunking reads texts only.", param="input", index=index
                )
        why = _cannot(facts.spec) or ("its tokens have types" if facts.processor.has_token_types else "")
        if why:
            raise UnsupportedTask(
                f"{facts.name} cannot chunk late: {why}. It takes a model whose vector is the mean of its "
                "token vectors; send the chunks without late chunking.",
                param="model",
            )
        facts.require(_TOKENS)
        facts.check_dimensions(request.dimensions, DENSE_ONLY)
        if request.outputs != DENSE_ONLY:
            raise InvalidInput("Late chunking returns one dense vector for each chunk and nothing else.")

    def estimate_tokens(self) -> int:
        """See `Work`."""
        prompt_chars = len(resolve_prompt(self._facts.spec, self._request))
        texts = ["".join(chunks) for chunks in self._by_document()]
        return self._facts.processor.estimate_tokens(texts, prompt_chars, truncate=False)

    def is_small(self) -> bool:
        """See `Work`."""
        return sum(map(len, self._chunks)) < _INLINE_CHARS

    def tokenize(self, request_id: int) -> tuple[Sequence, ...]:
        """See `Work`."""
        request = self._request
        prompt = resolve_prompt(self._facts.spec, request)
        processor = ChunkProcessor(self._facts.processor)
        self._documents = processor.encode(
            self._chunks, request.chunks, prompt, request.truncate is not False
        )
        return sequences_of(self._documents, request_id)

    def finish(self, output: Output, num_tokens: int, timing: Timing) -> EncodeResult:
        """See `Work`."""
        assert output.multivector is not None
        request, spec = self._request, self._facts.spec
        normalize = spec.normalize if request.normalize is None else request.normalize
        tables = iter(output.multivector)
        pooled = [document.pool([next(tables) for _ in document.windows]) for document in self._documents]
        vectors = finish_vectors(np.concatenate(pooled), request.dimensions or spec.truncate_dim, normalize)
        return EncodeResult(vectors, None, None, num_tokens, timing)

    def name(self, error: ServingError) -> ServingError:
        """See `Work`: sequence i is a window of a document, which is called by its first chunk."""
        if error.index is None:
            return error
        first = 0
        index = error.index
        for document, count in zip(self._documents, self._request.chunks, strict=True):
            if index < len(document.windows):
                return renamed(error, "input", shift=first - error.index)
            index -= len(document.windows)
            first += count
        return error

    def _by_document(self) -> list[tuple[str, ...]]:
        first, found = 0, []
        for count in self._request.chunks:
            found.append(self._chunks[first : first + count])
            first += count
        return found


def _cannot(spec: ModelSpec) -> str:
    """Why the vector of a model's chunk is not the mean of its token vectors; ``""`` where it is."""
    pooling = spec.pooling
    if pooling is None:
        return "it pools no token vectors"
    if pooling.modes != (PoolingMode.MEAN,):
        return f"it pools by {' and '.join(pooling.modes)}"
    others = [m for m in spec.modules if m is not pooling]
    if others:
        return "its vector goes through further layers after the mean"
    return "it reads texts through a template" if spec.chat is not None else ""
