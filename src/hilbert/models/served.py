"""One served model: what happens to a request between its dialect and the engine.

Admission, loading of media, tokenizing, the engine, the finish of the rows, and the deadline over all of
it: one path for every task (what differs between tasks is `work.py`). Knows no wire format and not where
the engine runs.
Everything here runs on the event loop; what is heavy goes to a thread.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import replace
from typing import TypeVar

import msgspec

from hilbert.core import (
    DENSE_ONLY,
    ClassifyRequest,
    ClassifyResult,
    EmbedRequest,
    EmbedResult,
    EncodeResult,
    ExtractRequest,
    ExtractResult,
    ModelSpec,
    Output,
    OutputDtype,
    OutputType,
    Request,
    RerankRequest,
    RerankResult,
    Task,
    Timing,
    Token,
)
from hilbert.engine.base import EngineHandle, Health
from hilbert.errors import (
    CapacityError,
    EngineError,
    InputTooLong,
    ModelError,
    RequestTimeout,
    ServingError,
)
from hilbert.models.chunks import ChunkWork
from hilbert.models.classify import ClassifyWork
from hilbert.models.encode import EncodeWork, with_empty_rows
from hilbert.models.extract import ExtractWork
from hilbert.models.facts import Facts
from hilbert.models.media import MediaLoader
from hilbert.models.offload import offload, offload_media
from hilbert.models.rerank import rerank_work
from hilbert.models.work import Work
from hilbert.observability import ModelMetrics
from hilbert.observability.tei import Kind
from hilbert.processors import PairProcessors, SpanProcessor, StaticQueries, TextProcessor
from hilbert.scheduler import Admission

Result = TypeVar("Result")
Asked = TypeVar("Asked", EmbedRequest, RerankRequest, ClassifyRequest, ExtractRequest)

# Of the token vectors of one request: 1 GiB of float32, and several of JSON.
MAX_TOKEN_NUMBERS = 2**28

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
        embedding_dtype: the type of its vectors where a request names none.
        truncates: whether long inputs are cut where a request does not say.
        media: what gets the images and sounds that requests point to.
        created: unix time of loading.
        on_idle: called when the last request has left.
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
        embedding_dtype: OutputDtype = OutputDtype.FLOAT32,
        truncates: bool = True,
        media: MediaLoader | None = None,
    ) -> None:
        self.name = name
        self.aliases = tuple(aliases)
        self.spec = spec
        self.processor = processor
        self.engine = engine
        self.admission = admission
        self.metrics = metrics or ModelMetrics(name)
        self.request_timeout_seconds = request_timeout_seconds
        self.embedding_dtype = embedding_dtype
        self.truncates = truncates
        self.media = media or MediaLoader()
        self.created = int(time.time())
        self.on_idle: Callable[[], None] | None = None
        static_queries = None if spec.static_queries is None else StaticQueries(spec)
        self._facts = Facts(name, spec, processor, None, static_queries)
        self._pairs = PairProcessors(processor)
        self._spans = None if spec.extractor is None else SpanProcessor(processor)
        self.metrics.read_queue_requests = lambda: admission.num_requests
        self.metrics.read_queue_tokens = lambda: admission.num_queued_tokens
        self.metrics.read_backlog_seconds = lambda: admission.backlog_seconds
        self.metrics.read_ready = lambda: float(self.is_ready)
        self.metrics.read_info = self.info_labels

    @property
    def is_ready(self) -> bool:
        """Whether the engine can answer now."""
        return self.engine.health is Health.READY

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Turn texts or token ids into dense vectors; see `encode`."""
        result = await self.encode(request)
        assert result.dense is not None
        return EmbedResult(result.dense, result.num_tokens, result.timing)

    async def encode(self, request: EmbedRequest) -> EncodeResult:
        """Turn texts or token ids into every kind of vector that the request names, in one pass.

        Cancelling the awaiting task drops the request's work.

        Raises:
            ClientError: the request is at fault, or the model is not one for it.
            CapacityError: no room, too late, or the engine is not there now.
            ModelError, EngineError: the model failed; the first guilty input is named.
        """
        request = self._decided(request)
        if request.chunks:
            return await self._serve(ChunkWork(self.facts, request))
        return await self._serve(EncodeWork(self.facts, request))

    async def rerank(self, request: RerankRequest) -> RerankResult:
        """Order documents by their relevance to a query. Raises as `encode` does."""
        facts = self.facts
        try:
            work = rerank_work(facts, self._pairs, self._decided(request))
        except ServingError as error:
            self._count_failure(error)
            raise
        return await self._serve(work)

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Score the classes of texts. Raises as `encode` does."""
        return await self._serve(ClassifyWork(self.facts, self._pairs, self._decided(request)))

    async def extract(self, request: ExtractRequest) -> ExtractResult:
        """Find spans of texts. Raises as `encode` does."""
        return await self._serve(ExtractWork(self.facts, self._spans, self._decided(request)))

    def check_room(self) -> None:
        """Refuse early what would be refused anyway: whatever a request asks, it does not get in now.

        Raises:
            Overloaded: the model is full.
        """
        if self.metrics.tei is not None:  # which counts refusals by what was asked
            return
        try:
            self.admission.check_room()
        except ServingError as error:
            self._count_failure(error)
            raise

    async def spell(
        self, texts: AbstractSequence[str], prompt_name: str | None = None, *, is_framed: bool = True
    ) -> tuple[tuple[Token, ...], ...]:
        """The tokens of texts; see `TextProcessor.spell`. The engine has no part in it."""
        return await offload(self.processor.spell, texts, prompt_name, is_framed=is_framed)

    async def unspell(
        self, inputs: AbstractSequence[AbstractSequence[int]], *, skips_special: bool = True
    ) -> tuple[str, ...]:
        """The texts of token ids; see `TextProcessor.unspell`."""
        return await offload(self.processor.unspell, inputs, skips_special=skips_special)

    @property
    def facts(self) -> Facts:
        """What is known of the model now; more once its runtime is loaded."""
        try:
            info = self.engine.info
        except EngineError:
            info = None
        if self._facts.info is not info:
            self._facts = replace(self._facts, info=info)
        return self._facts

    @property
    def task(self) -> Task:
        """What it is served for when a request does not say."""
        return self.spec.task

    @property
    def dimensions(self) -> int:
        """Numbers in a dense vector."""
        return self.facts.dimensions

    def check_dimensions(self, dimensions: int | None) -> None:
        """Refuse a length that the model's dense vectors do not have.

        Raises:
            InvalidInput: it is not in 1..E.
        """
        self.facts.check_dimensions(dimensions, DENSE_ONLY)

    def _decided(self, request: Asked) -> Asked:
        """The request with the server's word where it leaves truncation open; open means that it is cut."""
        if self.truncates or request.truncate is not None:
            return request
        return msgspec.structs.replace(request, truncate=False)

    async def _serve(self, work: Work[Result]) -> Result:
        """The one path of every request: admission, tokens, engine, result, and the books."""
        start = time.monotonic()
        tei = self.metrics.tei
        if tei is not None:
            tei.on_call(_tei_kind(work), work.num_inputs)
        try:
            work.check()
            num_estimated = work.estimate_tokens()
            self.admission.admit(num_estimated, start)
        except ServingError as error:
            self._count_failure(error)
            raise
        self.metrics.queue_sequences += work.num_inputs
        is_answered = False
        try:
            result, num_tokens, timing = await self._in_time(work, start)
            is_answered = True
        except ServingError as error:
            self._count_failure(error)
            raise
        except asyncio.CancelledError:
            self.metrics.on_failure("cancelled")
            if tei is not None:
                tei.on_failure(None)
            raise
        except BaseException:  # the panic of a native library is no Exception
            self._count_failure(EngineError(""))
            raise
        finally:
            self.metrics.queue_sequences -= work.num_inputs
            if is_answered:
                self.admission.complete(num_estimated, time.monotonic())
            else:
                self.admission.release(num_estimated)
            if self.on_idle is not None and not self.admission.num_requests:
                self.on_idle()
        self.metrics.on_request(
            work.num_inputs,
            num_tokens,
            tokenize_seconds=timing.tokenize_seconds,
            queue_seconds=timing.queue_seconds,
        )
        if tei is not None:
            spent = (timing.tokenize_seconds, timing.queue_seconds, timing.inference_seconds)
            seconds = (time.monotonic() - start, *spent)
            tei.on_answer(_tei_kind(work), work.num_inputs, num_tokens, seconds)
        return result

    async def _in_time(self, work: Work[Result], start: float) -> tuple[Result, int, Timing]:
        limit = work.timeout_seconds
        if limit is None:
            limit = self.request_timeout_seconds
        if limit is None:
            return await self._carry_out(work, start, None)
        try:
            async with asyncio.timeout(limit):
                return await self._carry_out(work, start, start + limit)
        except TimeoutError:
            raise RequestTimeout(
                f"The request was not answered within {limit:g} s and was dropped; try again later, or send "
                "fewer inputs."
            ) from None

    async def _carry_out(
        self, work: Work[Result], start: float, deadline: float | None
    ) -> tuple[Result, int, Timing]:
        load_seconds = 0.0
        if isinstance(work, EncodeWork) and work.has_references:  # no other call takes images or sounds
            await work.load(self.media)
            start, arrived = time.monotonic(), start
            load_seconds = start - arrived
        request_id = next(_request_ids)
        if work.is_small():
            sequences = work.tokenize(request_id)
        elif isinstance(work, EncodeWork) and work.has_media:
            sequences = await offload_media(work.tokenize, request_id)
        else:
            sequences = await offload(work.tokenize, request_id)
        tokenize_seconds = time.monotonic() - start
        # A text without a single token has nothing to compute.
        filled = tuple(s for s in sequences if s.num_tokens)
        output: Output | None = None
        num_tokens = 0
        if filled:
            if len(filled) != len(sequences):
                filled = tuple(msgspec.structs.replace(s, index=index) for index, s in enumerate(filled))
            request = Request(request_id, filled, work.outputs, deadline)
            num_tokens = request.num_tokens
            if OutputType.MULTIVECTOR in work.outputs:
                self._check_token_vectors(num_tokens)
            output = await self.engine.run(request)
            if output.errors:
                raise self._first_error(work, output, [i for i, s in enumerate(sequences) if s.num_tokens])
        timing = Timing(
            tokenize_seconds,
            output.queue_seconds if output else 0.0,
            output.inference_seconds if output else 0.0,
            load_seconds,
        )
        if output is None or len(filled) != len(sequences):
            output = with_empty_rows(self.facts, work.outputs, output, sequences)
        if _num_numbers(output) < _INLINE_NUMBERS:
            return work.finish(output, num_tokens, timing), num_tokens, timing
        return await offload(work.finish, output, num_tokens, timing), num_tokens, timing

    def _check_token_vectors(self, num_tokens: int) -> None:
        """Refuse what would be gigabytes of token vectors, before they are computed.

        Raises:
            InputTooLong: they have more numbers than `MAX_TOKEN_NUMBERS`.
        """
        size = self.facts.token_dimensions
        if num_tokens * size > MAX_TOKEN_NUMBERS:
            raise InputTooLong(
                f"The request has {num_tokens:,} tokens, whose vectors of {size:,} numbers would be "
                f"{num_tokens * size:,} numbers; those of one request may be {MAX_TOKEN_NUMBERS:,}, which is "
                f"{MAX_TOKEN_NUMBERS // size:,} tokens. Send fewer or shorter inputs at once."
            )

    def _first_error(self, work: Work[Result], output: Output, places: list[int]) -> ServingError:
        """The error of the first guilty input. What befell the whole request is told as it is."""
        position = min(output.errors)
        error = output.errors[position]
        if isinstance(error, CapacityError | EngineError):
            return error
        index = places[position]
        return work.name(
            type(error)(
                f"input[{index}]: {error.message}",
                param=error.param or "input",
                index=index,
                retry_after_seconds=error.retry_after_seconds,
            )
        )

    def _count_failure(self, error: ServingError) -> None:
        self.metrics.on_failure(outcome_of(error))
        if self.metrics.tei is not None:
            self.metrics.tei.on_failure(error)

    def info_labels(self) -> dict[str, str]:
        """What `hilbert_model_info` says of it."""
        labels = {"model_id": self.spec.model_id, "family": self.spec.family or self.spec.kind}
        if self.is_ready:  # a runtime that is not loaded has nothing to say of itself
            info = self.engine.info
            labels |= {
                "engine": info.engine, "device": info.device, "dtype": info.dtype, "program": info.program,
            }  # fmt: skip
        return labels


def outcome_of(error: ServingError) -> str:
    """The word for a failure in the metrics."""
    if isinstance(error, CapacityError):
        return "rejected"
    return "server_error" if isinstance(error, ModelError | EngineError) else "client_error"


def _tei_kind(work: Work[Result]) -> Kind:
    return "predict" if OutputType.LOGITS in work.outputs else "embed"


def _num_numbers(output: Output) -> int:
    """How much there is to finish."""
    num_numbers = output.dense.size if output.dense is not None else 0
    if output.multivector is not None:
        num_numbers += sum(rows.size for rows in output.multivector)
    if output.sparse is not None:
        num_numbers += sum(len(vector.token_ids) for vector in output.sparse)
    return num_numbers if output.logits is None else num_numbers + output.logits.size
