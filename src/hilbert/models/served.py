"""One served model: what happens to a request between its dialect and the engine.

Admission, tokenizing, the engine, the finish of the vectors, and the deadline over all of it. Knows no
wire format and not where the engine runs. Everything here runs on the event loop; what is heavy goes
to a thread.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence as AbstractSequence

import numpy as np

from hilbert.core import (
    EmbedRequest,
    EmbedResult,
    ModelSpec,
    Output,
    Request,
    Sequence,
    Timing,
    finish_vectors,
)
from hilbert.core.request import FloatArray
from hilbert.engine.base import EngineHandle, Health
from hilbert.errors import (
    CapacityError,
    EngineError,
    InvalidInput,
    ModelError,
    RequestTimeout,
    ServingError,
)
from hilbert.models.offload import offload
from hilbert.observability import ModelMetrics
from hilbert.processors import TextProcessor
from hilbert.scheduler import Admission

# Rows with more numbers than this are finished in a thread (normalising 2048 rows of 384 takes 2 ms).
_INLINE_NUMBERS = 65_536

# Ids are unique over all models of this process, as several of them share one worker.
_request_ids = itertools.count(1)


class ServedModel:
    """A model under its name.

    Attributes:
        name: what clients call it, and what answers carry.
        aliases: further names that it answers to.
        spec: the model.
        engine: what runs it.
        request_timeout_seconds: limit for requests that bring none of their own; None for no limit.
        created: unix time of loading.
    """

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        processor: TextProcessor,
        engine: EngineHandle,
        admission: Admission,
        metrics: ModelMetrics | None = None,
        *,
        aliases: AbstractSequence[str] = (),
        request_timeout_seconds: float | None = None,
    ) -> None:
        self.name = name
        self.aliases = tuple(aliases)
        self.spec = spec
        self.processor = processor
        self.engine = engine
        self.admission = admission
        self.metrics = metrics or ModelMetrics(name)
        self.request_timeout_seconds = request_timeout_seconds
        self.created = int(time.time())
        self.metrics.read_queue_requests = lambda: admission.num_requests
        self.metrics.read_queue_tokens = lambda: admission.num_queued_tokens
        self.metrics.read_ready = lambda: float(self.is_ready)
        self.metrics.read_info = self._info_labels

    @property
    def is_ready(self) -> bool:
        """Whether the engine can answer now."""
        return self.engine.health is Health.READY

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Turn texts or token ids into finished vectors, in the order of the inputs.

        Cancelling the awaiting task drops the request's work.

        Raises:
            ClientError: the request is at fault.
            CapacityError: no room, too late, or the engine is not there now.
            ModelError, EngineError: the model failed; the first guilty input is named.
        """
        start = time.monotonic()
        try:
            self.check_dimensions(request.dimensions)
            num_estimated = self.processor.estimate_tokens(request.inputs)
            self.admission.admit(num_estimated, start)
        except ServingError as error:
            self._count_failure(error)
            raise
        num_sequences = len(request.inputs)
        self.metrics.queue_sequences += num_sequences
        is_answered = False
        try:
            result = await self._embed_in_time(request, start)
            is_answered = True
        except ServingError as error:
            self._count_failure(error)
            raise
        except asyncio.CancelledError:
            self.metrics.on_failure("cancelled")
            raise
        except Exception:
            self.metrics.on_failure("server_error")
            raise
        finally:
            self.metrics.queue_sequences -= num_sequences
            if is_answered:
                self.admission.complete(num_estimated, time.monotonic())
            else:
                self.admission.release(num_estimated)
        self.metrics.on_request(
            num_sequences,
            result.num_tokens,
            request_seconds=time.monotonic() - start,
            tokenize_seconds=result.timing.tokenize_seconds,
            queue_seconds=result.timing.queue_seconds,
        )
        return result

    def check_dimensions(self, dimensions: int | None) -> None:
        """Refuse a length that the model's vectors do not have.

        Raises:
            InvalidInput: it is not in 1..E.
        """
        if dimensions is not None and not 1 <= dimensions <= self.spec.dimensions:
            raise InvalidInput(
                f"dimensions is {dimensions}; {self.name} takes 1 to {self.spec.dimensions}.",
                param="dimensions",
            )

    async def _embed_in_time(self, request: EmbedRequest, start: float) -> EmbedResult:
        limit = request.timeout_seconds
        if limit is None:
            limit = self.request_timeout_seconds
        if limit is None:
            return await self._embed(request, start, None)
        try:
            async with asyncio.timeout(limit):
                return await self._embed(request, start, start + limit)
        except TimeoutError:
            raise RequestTimeout(
                f"The request was not answered within {limit:g} s and was dropped; try again later, or send "
                "fewer inputs."
            ) from None

    async def _embed(self, request: EmbedRequest, start: float, deadline: float | None) -> EmbedResult:
        request_id = next(_request_ids)
        if sum(map(len, request.inputs)) + len(request.prompt or "") < self.processor.inline_chars:
            sequences = self.processor.encode(request, request_id)
        else:
            sequences = await offload(self.processor.encode, request, request_id)
        tokenize_seconds = time.monotonic() - start
        # A text without a single token (static models) has the zero vector and nothing to compute.
        filled = tuple(s for s in sequences if s.num_tokens)
        output: Output | None = None
        num_tokens = 0
        if filled:
            if len(filled) != len(sequences):
                filled = tuple(_renumber(s, index) for index, s in enumerate(filled))
            engine_request = Request(request_id, filled, deadline=deadline)
            num_tokens = engine_request.num_tokens
            output = await self.engine.run(engine_request)
        if output is not None and output.errors:
            raise self._first_error(output, [s.index for s in sequences if s.num_tokens])
        rows = self._rows(output, sequences)
        normalize = self.spec.normalize if request.normalize is None else request.normalize
        if rows.size < _INLINE_NUMBERS:
            vectors = finish_vectors(rows, request.dimensions, normalize)
        else:
            vectors = await offload(finish_vectors, rows, request.dimensions, normalize)
        timing = Timing(
            tokenize_seconds,
            output.queue_seconds if output else 0.0,
            output.inference_seconds if output else 0.0,
        )
        return EmbedResult(vectors, num_tokens, timing)

    def _rows(self, output: Output | None, sequences: tuple[Sequence, ...]) -> FloatArray:
        """The engine's rows, with zero rows where a sequence had no tokens."""
        if output is not None:
            assert output.dense is not None, "an engine answered without vectors and without errors"
            if len(output.dense) == len(sequences):
                return output.dense
        rows = np.zeros((len(sequences), self.spec.dimensions), dtype=np.float32)
        if output is not None:
            rows[[i for i, s in enumerate(sequences) if s.num_tokens]] = output.dense
        return rows

    def _first_error(self, output: Output, indices: list[int]) -> ServingError:
        """The error of the first guilty input. What befell the whole request is told as it is."""
        position = min(output.errors)
        error = output.errors[position]
        if isinstance(error, CapacityError | EngineError):
            return error
        index = indices[position]
        return type(error)(
            f"input[{index}]: {error.message}",
            param=error.param or "input",
            index=index,
            retry_after_seconds=error.retry_after_seconds,
        )

    def _count_failure(self, error: ServingError) -> None:
        if isinstance(error, CapacityError):
            self.metrics.on_rejection(error.code)
            self.metrics.on_failure("rejected")
        elif isinstance(error, ModelError | EngineError):
            self.metrics.on_failure("server_error")
        else:
            self.metrics.on_failure("client_error")

    def _info_labels(self) -> dict[str, str]:
        labels = {"model_id": self.spec.model_id, "family": self.spec.family or self.spec.kind}
        if self.is_ready:  # a runtime that is not loaded has nothing to say of itself
            info = self.engine.info
            labels |= {
                "engine": info.engine, "device": info.device, "dtype": info.dtype, "program": info.program,
            }  # fmt: skip
        return labels


def _renumber(sequence: Sequence, index: int) -> Sequence:
    return Sequence(
        sequence.request_id, index, sequence.input_ids, sequence.token_type_ids, sequence.prompt_len
    )
