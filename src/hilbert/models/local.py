"""The Python way in: a model in this process, with the same queue, batches and vectors as the server.

Everything runs on one private event loop in a thread of its own, so `embed` works with and without a
running loop (in a notebook, too), and from any thread.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from collections.abc import Sequence as AbstractSequence
from concurrent.futures import Future
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack, cast

import msgspec
import numpy as np

from hilbert import hub
from hilbert.core import (
    DENSE_ONLY,
    ClassifyRequest,
    ClassifyResult,
    EmbedRequest,
    EncodeResult,
    Input,
    Media,
    Modality,
    ModelSpec,
    OutputType,
    Picture,
    RerankRequest,
    Scale,
    SparseVector,
    Task,
    Timing,
    as_png,
    with_task,
)
from hilbert.core.request import FloatArray, IntArray
from hilbert.engine import Engine, EngineLimits, LocalEngine, start_engine
from hilbert.errors import InvalidInput, MediaError, ServingError
from hilbert.models.encode import EncodeWork
from hilbert.models.offload import offload_media
from hilbert.models.served import MAX_TOKEN_NUMBERS, ServedModel
from hilbert.models.tokenizers import load_processor
from hilbert.processors import called, token_array
from hilbert.processors.audio import MAX_REQUEST_SAMPLES
from hilbert.processors.images import MAX_REQUEST_PIXELS
from hilbert.processors.media import MAX_REQUEST_BYTES, decoded_size
from hilbert.processors.text import MAX_REQUEST_CHARS
from hilbert.runtimes import load_runtime
from hilbert.runtimes.base import Runtime, RuntimeInfo, RuntimeSettings
from hilbert.scheduler import Admission

T = TypeVar("T")
Text = str | AbstractSequence[int] | IntArray
File = str | PathLike[str] | bytes | Any
"""An image or a sound: a file's path, its bytes, or, for images, what Pillow opened."""

# A long list goes in pieces, two at a time: one is tokenized while the other is computed, and the memory
# for tokens stays bounded.
_PIECE = 4096
# Of texts; prompts come to them.
_PIECE_CHARS = MAX_REQUEST_CHARS // 4
# Of token vectors. Tokens are estimated at four characters each; in truth a character may be four tokens.
_PIECE_NUMBERS = MAX_TOKEN_NUMBERS // 16
# Of images and sounds, which are features of half a megabyte each.
_MEDIA_PIECE = 128
_PIECES_IN_FLIGHT = 2


_VECTORS = (OutputType.DENSE, OutputType.SPARSE, OutputType.MULTIVECTOR)


class Options(TypedDict, total=False):
    """How texts become vectors.

    Attributes:
        prompt: text to put before every text; wins over `prompt_name`.
        prompt_name: one of the model's prompts; ``""`` for none, None for the model's default.
        input_type: ``"query"`` or ``"document"``: the model's prompt for that side.
        dimensions: keep the first so many numbers, then normalise again.
        normalize: scale to length 1; None does what the model's own chain does.
        truncate: cut texts to the model's length; when false a longer one is an error.
    """

    prompt: str | None
    prompt_name: str | None
    input_type: str | None
    dimensions: int | None
    normalize: bool | None
    truncate: bool


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document of `Model.rerank`: its place in the list given, its score, and itself."""

    index: int
    score: float
    document: str


@dataclass(frozen=True, slots=True)
class Label:
    """A class of `Model.classify` and its score."""

    label: str
    score: float


class Model:
    """A model in this process: it embeds, reranks or classifies texts, as far as it can.

    Example:
        >>> with Model() as model:  # doctest: +SKIP
        ...     vectors = model.embed(["Hilbert's hotel", "one more guest"])
        ...     vectors.shape
        (2, 384)

    Args:
        model_id: a hub id or a folder; without it, the bundled all-MiniLM-L6-v2.
        engine: ``"auto"``, ``"openvino"``, ``"torch"``, ``"onnx"`` or ``"ctranslate2"``.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"`` or ``"fp8"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``.
        threads: compute threads; by default the CPUs that this process may use.
        cache_dir: folder for traced graphs; ``""`` takes the default.
        revision: branch, tag or commit on the hub.
        token: hub token for a private model.
        trust_remote_code: run Python code that the model repository brings.
        max_batch_tokens: tokens in one batch; by default what was measured to be best.
        task: serve it for another task than its usual one: ``"multi_embed"`` makes a dense model rerank
            by its token vectors.

    Raises:
        ModelError: the model cannot be had or run; the message says what to do.
        UnsupportedTask: it is no model for `task`.
    """

    def __init__(
        self,
        model_id: str | None = None,
        *,
        engine: str = "auto",
        dtype: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        cache_dir: str = "",
        revision: str | None = None,
        token: str | None = None,
        trust_remote_code: bool = False,
        max_batch_tokens: int | None = None,
        task: str | None = None,
    ) -> None:
        settings = RuntimeSettings(engine, dtype, device, threads, cache_dir, trust_remote_code)
        spec = hub.resolve(
            model_id,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
            own_cache=cache_dir,
        )
        if task is not None:
            spec = with_task(spec, Task(task))
        processor = load_processor(spec, cache_dir)
        runtime: Runtime[Any] = load_runtime(spec, settings)
        running = start_engine(runtime, EngineLimits(max_batch_tokens), {}, spec.model_id)
        self._info = runtime.info
        # A caller in this process is not refused: it waits for itself only.
        admission = Admission(sys.maxsize, sys.maxsize)
        try:
            self._served = ServedModel(spec.model_id, spec, processor, LocalEngine(running), admission)
        except BaseException:
            running.stop()
            runtime.close()
            raise
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="hilbert-model", daemon=True)
        thread.start()
        # Also runs at interpreter exit, while native threads can still be ended in order.
        self._close = weakref.finalize(self, _close, self._loop, thread, running, runtime)

    @property
    def spec(self) -> ModelSpec:
        """What the model is, as its repository says."""
        return self._served.spec

    @property
    def info(self) -> RuntimeInfo:
        """How it runs: engine, device, dtype, program."""
        return self._info

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""
        return self._served.dimensions

    def embed(self, texts: str | Media | Iterable[Text | Media], **options: Unpack[Options]) -> FloatArray:
        """Embed texts, in order.

        Args:
            texts: texts, lists of the model's own token ids, or `Media`, mixed as you like; a lone one
                counts as one.
            options: see `Options`.
        Returns:
            ``[N, dimensions]`` float32.

        Raises:
            InvalidInput: a text or an argument is at fault; the message names it.
            InputTooLong: `truncate` is false and a text is too long.
            UnsupportedTask: the model makes no dense vectors.
        """
        return _dense(self.encode(texts, **options))

    async def aembed(self, texts: str | Iterable[Text], **options: Unpack[Options]) -> FloatArray:
        """As `embed`, for callers on an event loop. Cancelling it drops the work."""
        return _dense(await self.aencode(texts, **options))

    def embed_image(
        self, images: File | Iterable[File], *, dimensions: int | None = None, normalize: bool | None = None
    ) -> FloatArray:
        """Embed images, in order, in the space of the model's texts (CLIP, SigLIP).

        Args:
            images: paths, bytes of files, or Pillow images; a lone one counts as one image.
            dimensions: as for texts.
            normalize: as for texts.
        Returns:
            ``[N, dimensions]`` float32.

        Raises:
            UnsupportedTask: the model reads no images.
            MediaError: one cannot be read; the message names it.
            MissingDependency: Pillow is not installed.
        """
        return self.embed(_media(images, Modality.IMAGE), dimensions=dimensions, normalize=normalize)

    def embed_audio(
        self, sounds: File | Iterable[File], *, dimensions: int | None = None, normalize: bool | None = None
    ) -> FloatArray:
        """Embed sounds, in order, in the space of the model's texts (CLAP): paths, or bytes of files.

        Raises as `embed_image` does.
        """
        return self.embed(_media(sounds, Modality.AUDIO), dimensions=dimensions, normalize=normalize)

    def embed_sparse(self, texts: str | Iterable[Text], **options: Unpack[Options]) -> list[SparseVector]:
        """The weights of each text over the vocabulary (SPLADE, bge-m3). Raises as `embed` does."""
        return _sparse(self.encode(texts, {OutputType.SPARSE}, **options))

    async def aembed_sparse(
        self, texts: str | Iterable[Text], **options: Unpack[Options]
    ) -> list[SparseVector]:
        """As `embed_sparse`, for callers on an event loop."""
        return _sparse(await self.aencode(texts, {OutputType.SPARSE}, **options))

    def embed_multivector(self, texts: str | Iterable[Text], **options: Unpack[Options]) -> list[FloatArray]:
        """A vector for each token that counts, ``[n, E]`` float32 per text. Raises as `embed` does.

        Late-interaction models have two sides: give ``input_type="query"`` for queries; everything else
        is a document.
        """
        return _multivector(self.encode(texts, {OutputType.MULTIVECTOR}, **options))

    async def aembed_multivector(
        self, texts: str | Iterable[Text], **options: Unpack[Options]
    ) -> list[FloatArray]:
        """As `embed_multivector`, for callers on an event loop."""
        return _multivector(await self.aencode(texts, {OutputType.MULTIVECTOR}, **options))

    def embed_chunks(
        self, documents: Iterable[Iterable[str]], **options: Unpack[Options]
    ) -> list[FloatArray]:
        """Late chunking: a vector for each chunk of each document, which has seen the whole document.

        Args:
            documents: the chunks of each, in their order in it; they are joined to one text.
            options: see `Options`. With `truncate` false a document longer than the model is an error;
                otherwise it is read in windows that overlap.
        Returns:
            ``[chunks, dimensions]`` float32 for each document.

        Raises:
            UnsupportedTask: the model's vector is not the mean of its token vectors.
            ClientError: as `embed`.
        """
        return self._submit(self._embed_chunks(documents, options)).result()

    async def aembed_chunks(
        self, documents: Iterable[Iterable[str]], **options: Unpack[Options]
    ) -> list[FloatArray]:
        """As `embed_chunks`, for callers on an event loop."""
        return await asyncio.wrap_future(self._submit(self._embed_chunks(documents, options)))

    def encode(
        self,
        texts: str | Media | Iterable[Text | Media],
        outputs: Collection[str] = DENSE_ONLY,
        **options: Unpack[Options],
    ) -> EncodeResult:
        """Several kinds of vector from one pass over the texts.

        Args:
            texts: as in `embed`.
            outputs: some of ``"dense"``, ``"sparse"`` and ``"multivector"``.
            options: see `Options`.

        Raises:
            UnsupportedTask: the model cannot return one of them; the message says what it can do.
            ClientError: as `embed`.
        """
        return self._submit(self._encode(_request(texts, outputs, options))).result()

    async def aencode(
        self,
        texts: str | Media | Iterable[Text | Media],
        outputs: Collection[str] = DENSE_ONLY,
        **options: Unpack[Options],
    ) -> EncodeResult:
        """As `encode`, for callers on an event loop."""
        return await asyncio.wrap_future(self._submit(self._encode(_request(texts, outputs, options))))

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        raw_scores: bool = False,
        truncate: bool = True,
        prompt: str | None = None,
    ) -> list[Ranked]:
        """Order documents by their relevance to a query.

        A cross-encoder scores each pair; any other model compares its vectors.

        Args:
            query: the query.
            documents: the texts to order.
            top_n: return only so many of the best.
            raw_scores: a cross-encoder's logits; otherwise they go through the activation that the model's
                config names, a sigmoid by default, as in sentence-transformers.
            truncate: cut what is too long; when false that is an error.
            prompt: the instruction of a reranker that takes one (Qwen3-Reranker), else text before the
                query; None takes the model's own.
        Returns:
            The best first; ties keep the order of `documents`.

        Raises:
            UnsupportedTask: the model has several labels.
            ClientError: as `embed`.
        """
        return self._submit(self._rerank(query, documents, top_n, raw_scores, truncate, prompt)).result()

    async def arerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        raw_scores: bool = False,
        truncate: bool = True,
        prompt: str | None = None,
    ) -> list[Ranked]:
        """As `rerank`, for callers on an event loop."""
        work = self._submit(self._rerank(query, documents, top_n, raw_scores, truncate, prompt))
        return await asyncio.wrap_future(work)

    def classify(
        self, texts: str | Iterable[str], *, raw_scores: bool = False, truncate: bool = True
    ) -> list[list[Label]]:
        """The scores of all classes for each text, best first.

        Args:
            texts: a lone string counts as one text.
            raw_scores: the logits instead of probabilities.
            truncate: cut what is too long; when false that is an error.

        Raises:
            UnsupportedTask: the model has no classes.
            ClientError: as `embed`.
        """
        return self._submit(self._classify(texts, raw_scores, truncate)).result()

    async def aclassify(
        self, texts: str | Iterable[str], *, raw_scores: bool = False, truncate: bool = True
    ) -> list[list[Label]]:
        """As `classify`, for callers on an event loop."""
        return await asyncio.wrap_future(self._submit(self._classify(texts, raw_scores, truncate)))

    def close(self) -> None:
        """End the threads and give the memory back. Calls that still wait get an error."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._close.alive:
            work.close()
            raise RuntimeError("this Model is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _rerank(
        self,
        query: str,
        documents: Iterable[str],
        top_n: int | None,
        raw_scores: bool,
        truncate: bool,
        prompt: str | None,
    ) -> list[Ranked]:
        texts = _texts(documents, "documents")
        if top_n is not None and top_n < 1:
            raise InvalidInput(f"top_n is {top_n}; it must be 1 or more.", param="top_n")
        if not texts:
            return []
        scale = Scale.RAW if raw_scores else Scale.MODEL
        request = RerankRequest(query, texts, None, scale, truncate, prompt=prompt)

        async def scored(run: slice) -> FloatArray:
            result = await self._served.rerank(msgspec.structs.replace(request, documents=texts[run]))
            return result.scores[np.argsort(result.indices)]

        count = None
        if OutputType.MULTIVECTOR in self._served.facts.outputs:
            count = self._count_numbers(EmbedRequest(texts, input_type="document", truncate=truncate))
        # A chat template repeats the query before each document.
        most = max(1, min(_PIECE, _PIECE_CHARS // (1 + len(query) + len(prompt or ""))))
        scores = np.concatenate(await _in_pieces(_runs(texts, most, count), scored))
        order = np.argsort(-scores, kind="stable")[:top_n]
        return [
            Ranked(index, score, texts[index])
            for index, score in zip(order.tolist(), scores[order].tolist(), strict=True)
        ]

    async def _classify(
        self, texts: str | Iterable[str], raw_scores: bool, truncate: bool
    ) -> list[list[Label]]:
        given = (texts,) if isinstance(texts, str) else _texts(texts, "input")
        if not given:
            return []

        async def classified(run: slice) -> ClassifyResult:
            return await self._served.classify(ClassifyRequest(given[run], raw_scores, truncate))

        return [
            [Label(result.labels[place], score) for place, score in zip(places, scores, strict=True)]
            for result in await _in_pieces(_runs(given, _PIECE), classified)
            for places, scores in zip(result.order.tolist(), result.scores.tolist(), strict=True)
        ]

    async def _embed_chunks(self, documents: Iterable[Iterable[str]], options: Options) -> list[FloatArray]:
        found = []
        for index, document in enumerate(documents):
            chunks = _texts(document, f"documents[{index}]")
            if not chunks:
                raise InvalidInput(f"documents[{index}] has no chunks.", param="documents", index=index)
            request = EmbedRequest(chunks, **options, chunks=(len(chunks),))
            with called(f"documents[{index}]"):
                found.append(_dense(await self._served.encode(request)))
        return found

    async def _encode(self, request: EmbedRequest) -> EncodeResult:
        inputs = request.inputs
        count = self._count_numbers(request) if OutputType.MULTIVECTOR in request.outputs else None
        if self.spec.towers and any(isinstance(x, Media) for x in inputs):
            runs = await offload_media(_runs, inputs, self._media_piece, count, has_media=True)
        else:
            runs = _runs(inputs, _PIECE, count)
        pieces = await _in_pieces(runs, lambda run: self._piece(request, inputs[run]))
        return pieces[0] if len(pieces) == 1 else _joined(pieces)

    @property
    def _media_piece(self) -> int:
        """Images or sounds that go together: their features are not more than one request may have."""
        largest = max((4 * math.prod(tower.shape) for tower in self.spec.towers), default=1)
        return min(_MEDIA_PIECE, MAX_REQUEST_BYTES // largest)

    def _count_numbers(self, request: EmbedRequest) -> Callable[[Input], int]:
        """About how many numbers the token vectors of an input of this request have."""
        facts = self._served.facts
        prompt_chars = EncodeWork(facts, request).prompt_chars
        sides = self.spec.multivector
        fewest = 0 if sides is None else sides.expansion_len

        def count(given: Input) -> int:
            num_tokens = facts.processor.estimate_tokens(
                (given,), prompt_chars, truncate=request.truncate is not False
            )
            return max(fewest, num_tokens) * facts.token_dimensions

        return count

    async def _piece(self, request: EmbedRequest, inputs: tuple[Input, ...]) -> EncodeResult:
        if inputs:
            return await self._served.encode(msgspec.structs.replace(request, inputs=inputs))
        facts, outputs = self._served.facts, request.outputs
        facts.require(outputs)
        facts.check_dimensions(request.dimensions, outputs)
        size = request.dimensions or self.spec.truncate_dim or facts.dimensions
        return EncodeResult(
            np.empty((0, size), dtype=np.float32) if OutputType.DENSE in outputs else None,
            () if OutputType.SPARSE in outputs else None,
            () if OutputType.MULTIVECTOR in outputs else None,
            0,
            Timing(),
        )


def _request(
    texts: str | Media | Iterable[Text | Media], outputs: Collection[str], options: Options
) -> EmbedRequest:
    names = {outputs} if isinstance(outputs, str) else set(outputs)
    unknown = sorted(names - {o.value for o in _VECTORS})
    if unknown or not names:
        raise InvalidInput(
            f"outputs are {unknown or 'missing'}; give some of {', '.join(_VECTORS)}.", param="outputs"
        )
    return EmbedRequest(_inputs(texts), **options, outputs=frozenset(map(OutputType, names)))


def _runs(
    inputs: tuple[Input, ...],
    most: int,
    count_numbers: Callable[[Input], int] | None = None,
    *,
    has_media: bool = False,
) -> list[slice]:
    """Pieces of so many inputs at most, which are not more together than one request may have.

    Reads the headers of images and sounds where the model takes any.
    """
    runs, start = [], 0
    num_chars = num_pixels = num_samples = num_numbers = 0
    for place, given in enumerate(inputs):
        chars = len(given) if isinstance(given, str) else 0
        numbers = 0 if count_numbers is None else count_numbers(given)
        pixels, samples = decoded_size(given) if has_media else (0, 0)
        is_full = (
            num_chars + chars > _PIECE_CHARS
            or num_numbers + numbers > _PIECE_NUMBERS
            or num_pixels + pixels > MAX_REQUEST_PIXELS
            or num_samples + samples > MAX_REQUEST_SAMPLES
        )
        if place - start == most or (is_full and place > start):
            runs.append(slice(start, place))
            start, num_chars, num_pixels, num_samples, num_numbers = place, 0, 0, 0, 0
        num_numbers += numbers
        num_chars, num_pixels, num_samples = num_chars + chars, num_pixels + pixels, num_samples + samples
    return [*runs, slice(start, len(inputs))]


async def _in_pieces(runs: list[slice], work: Callable[[slice], Awaitable[T]]) -> list[T]:
    """The results of all runs, a few of which are in work at a time.

    Raises:
        ServingError: one failed; it names the place among all inputs. The others are cancelled.
    """
    if len(runs) == 1:
        return [await work(runs[0])]
    gate = asyncio.Semaphore(_PIECES_IN_FLIGHT)

    async def piece(run: slice) -> T:
        async with gate:
            try:
                return await work(run)
            except ServingError as error:
                raise _shifted(error, run.start) from error

    pieces = [asyncio.ensure_future(piece(run)) for run in runs]
    try:
        return await asyncio.gather(*pieces)
    finally:
        for task in pieces:
            task.cancel()


def _joined(pieces: AbstractSequence[EncodeResult]) -> EncodeResult:
    first = pieces[0]
    return EncodeResult(
        None if first.dense is None else np.concatenate([p.dense for p in pieces if p.dense is not None]),
        None if first.sparse is None else tuple(v for p in pieces for v in p.sparse or ()),
        None if first.multivector is None else tuple(v for p in pieces for v in p.multivector or ()),
        sum(p.num_tokens for p in pieces),
        first.timing,
    )


def _dense(result: EncodeResult) -> FloatArray:
    assert result.dense is not None
    return result.dense


def _sparse(result: EncodeResult) -> list[SparseVector]:
    assert result.sparse is not None
    return list(result.sparse)


def _multivector(result: EncodeResult) -> list[FloatArray]:
    assert result.multivector is not None
    return list(result.multivector)


def _texts(texts: Iterable[str], field: str) -> tuple[str, ...]:
    if isinstance(texts, str):
        raise InvalidInput(f"{field} is a string; give a list of strings.", param=field)
    given = tuple(texts)
    for index, text in enumerate(given):
        if not isinstance(text, str):
            raise InvalidInput(
                f"{field}[{index}] is a {type(text).__name__}; give strings.", param=field, index=index
            )
    return given


def _inputs(texts: str | Media | Iterable[Text | Media]) -> tuple[str | IntArray | Media, ...]:
    if isinstance(texts, str | Media):
        return (texts,)
    return tuple(text if isinstance(text, str | Media) else _ids(text, i) for i, text in enumerate(texts))


def _media(given: File | Iterable[File], modality: Modality) -> tuple[Media, ...]:
    is_one = isinstance(given, str | bytes | PathLike | Picture)
    things: Iterable[Any] = (given,) if is_one else cast("Iterable[Any]", given)
    return tuple(Media(modality, _file_bytes(thing, index)) for index, thing in enumerate(things))


def _file_bytes(thing: Any, index: int) -> bytes:
    """A file's bytes; a Pillow image becomes a PNG, which loses nothing."""
    if isinstance(thing, bytes):
        return thing
    if isinstance(thing, Picture):
        return as_png(thing)
    if not isinstance(thing, str | PathLike):
        raise InvalidInput(
            f"input[{index}] is a {type(thing).__name__}; give a path, bytes or a Pillow image.",
            param="input",
            index=index,
        )
    try:
        return Path(thing).read_bytes()
    except OSError as error:
        raise MediaError(
            f"input[{index}]: {thing} cannot be read: {error.strerror}.", param="input", index=index
        ) from None


def _ids(ids: object, index: int) -> IntArray:
    try:
        if isinstance(ids, bytes | bytearray):
            raise TypeError
        return token_array([int(i) for i in ids], index)  # type: ignore[attr-defined]  # that is what is tried
    except (TypeError, ValueError):
        raise InvalidInput(
            f"input[{index}] is a {type(ids).__name__}; give strings, or lists of token ids.",
            param="input",
            index=index,
        ) from None


def _shifted(error: ServingError, start: int) -> ServingError:
    """The error of a piece, in terms of the whole list."""
    if error.index is None:
        return error
    index = error.index + start
    message = error.message.replace(f"[{error.index}]", f"[{index}]", 1)
    return type(error)(message, param=error.param, index=index)


def _close(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, engine: Engine[Any], runtime: Runtime[Any]
) -> None:
    """Answer what waits, then end the threads, then free the device."""
    engine.stop()
    if threading.current_thread() is not thread:
        asyncio.run_coroutine_threadsafe(_settle(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    runtime.close()


async def _settle() -> None:
    """Let every other task of this loop end: the engine has answered them all."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
