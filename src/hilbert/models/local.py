"""The Python way in: a model in this process, with the same queue, batches and vectors as the server.

Everything runs on one private event loop in a thread of its own, so `embed` works with and without a
running loop (in a notebook, too), and from any thread.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Coroutine, Iterable
from collections.abc import Sequence as AbstractSequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from hilbert import hub
from hilbert.core import EmbedRequest, ModelSpec
from hilbert.core.request import FloatArray, IntArray
from hilbert.engine import Device, Engine, LocalEngine
from hilbert.errors import InvalidInput, ServingError
from hilbert.models.served import ServedModel
from hilbert.models.tokenizers import load_processor
from hilbert.processors import token_array
from hilbert.runtimes import load_runtime
from hilbert.runtimes.base import Runtime, RuntimeInfo, RuntimeSettings
from hilbert.scheduler import Admission, Scheduler

T = TypeVar("T")
Text = str | AbstractSequence[int] | IntArray

# A long list goes in pieces, two at a time: one is tokenized while the other is computed, and the memory
# for tokens stays bounded.
_PIECE = 4096
_PIECES_IN_FLIGHT = 2


class Model:
    """A model that embeds texts in this process.

    Example:
        >>> with Model() as model:  # doctest: +SKIP
        ...     vectors = model.embed(["Hilbert's hotel", "one more guest"])
        ...     vectors.shape
        (2, 384)

    Args:
        model_id: a hub id or a folder; without it, the bundled all-MiniLM-L6-v2.
        engine: ``"auto"``, ``"openvino"`` or ``"torch"``.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``.
        threads: compute threads; by default the CPUs that this process may use.
        cache_dir: folder for traced graphs; ``""`` takes the default.
        revision: branch, tag or commit on the hub.
        token: hub token for a private model.
        trust_remote_code: run Python code that the model repository brings.
        max_batch_tokens: tokens in one batch; by default what was measured to be best.

    Raises:
        ModelError: the model cannot be had or run; the message says what to do.
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
    ) -> None:
        settings = RuntimeSettings(engine, dtype, device, threads, cache_dir, trust_remote_code)
        spec = hub.resolve(model_id, revision=revision, token=token, trust_remote_code=trust_remote_code)
        processor = load_processor(spec, cache_dir)
        runtime: Runtime[Any] = load_runtime(spec, settings)
        budget = max_batch_tokens or runtime.info.max_batch_tokens
        running = Engine(runtime, Scheduler(budget), Device(), name=spec.model_id)
        running.start()
        self._info = runtime.info
        # A caller in this process is not refused: it waits for itself only.
        admission = Admission(sys.maxsize, sys.maxsize)
        self._served = ServedModel(spec.model_id, spec, processor, LocalEngine(running), admission)
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
        return self._served.spec.dimensions

    def embed(
        self,
        texts: str | Iterable[Text],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        input_type: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool = True,
    ) -> FloatArray:
        """Embed texts, in order.

        Args:
            texts: texts, or lists of the model's own token ids; a lone string counts as one text.
            prompt: text to put before every text; wins over `prompt_name`.
            prompt_name: one of the model's prompts; ``""`` for none, None for the model's default.
            input_type: ``"query"`` or ``"document"``: the model's prompt for that side.
            dimensions: keep the first so many numbers, then normalise again.
            normalize: scale to length 1; None does what the model's own chain does.
            truncate: cut texts to the model's length; when false a longer one is an error.
        Returns:
            ``[N, dimensions]`` float32.

        Raises:
            InvalidInput: a text or an argument is at fault; the message names it.
            InputTooLong: `truncate` is false and a text is too long.
        """
        request = EmbedRequest(
            _inputs(texts), prompt, prompt_name, input_type, truncate, dimensions, normalize
        )
        return self._submit(self._embed(request)).result()

    async def aembed(
        self,
        texts: str | Iterable[Text],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        input_type: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool = True,
    ) -> FloatArray:
        """As `embed`, for callers on an event loop. Cancelling it drops the work."""
        request = EmbedRequest(
            _inputs(texts), prompt, prompt_name, input_type, truncate, dimensions, normalize
        )
        return await asyncio.wrap_future(self._submit(self._embed(request)))

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

    async def _embed(self, request: EmbedRequest) -> FloatArray:
        inputs = request.inputs
        if len(inputs) <= _PIECE:
            return await self._piece(request, inputs)
        gate = asyncio.Semaphore(_PIECES_IN_FLIGHT)

        async def piece(start: int) -> FloatArray:
            async with gate:
                try:
                    return await self._piece(request, inputs[start : start + _PIECE])
                except ServingError as error:
                    raise _shifted(error, start) from error

        pieces = [asyncio.ensure_future(piece(start)) for start in range(0, len(inputs), _PIECE)]
        try:
            return np.concatenate(await asyncio.gather(*pieces))
        finally:
            for task in pieces:
                task.cancel()

    async def _piece(self, request: EmbedRequest, inputs: tuple[str | IntArray, ...]) -> FloatArray:
        if not inputs:
            self._served.check_dimensions(request.dimensions)
            return np.empty((0, request.dimensions or self.dimensions), dtype=np.float32)
        return (await self._served.embed(replace(request, inputs=inputs))).vectors


def _inputs(texts: str | Iterable[Text]) -> tuple[str | IntArray, ...]:
    if isinstance(texts, str):
        return (texts,)
    return tuple(text if isinstance(text, str) else _ids(text, i) for i, text in enumerate(texts))


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
    message = error.message.replace(f"input[{error.index}]", f"input[{index}]", 1)
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
