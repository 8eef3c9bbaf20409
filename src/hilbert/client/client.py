"""`Client` and `AsyncClient`: vectors, rankings and classes from a Hilbert server in one call.

What a call is stands once, in `calls.py`; here are the two drivers that send it: one with threads, one for
asyncio and trio. A call with many inputs goes in parts, several at a time; the first part that fails ends it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar, Unpack

import anyio
import httpx2

from hilbert.client import calls
from hilbert.client.calls import Call
from hilbert.client.inputs import Input
from hilbert.client.progress import progress
from hilbert.client.retries import Patience
from hilbert.client.wire import DEFAULT_URL, Encoded, FloatArray, Hit, LabelScore, read_error, v1_url
from hilbert.core import SparseVector
from hilbert.errors import InvalidInput, ServerUnreachable, ServingError

T = TypeVar("T")
H = TypeVar("H", httpx2.Client, httpx2.AsyncClient)
# Longer than the server's own limit for one request, so that its answer arrives first.
DEFAULT_TIMEOUT_SECONDS = 120.0
DEFAULT_RETRY_SECONDS = 60.0
DEFAULT_BATCH_SIZE = 256
DEFAULT_MAX_IN_FLIGHT = 8
_CONNECT_SECONDS = 10.0


class _Parts(Generic[T]):
    """The parts of one call: what is still to be sent, and what came of the others.

    Attributes:
        failure: the first, if any; then nothing more is sent.
        over: set as soon as nobody waits for the rest.
    """

    def __init__(self, call: Call[T], parts: list[range]) -> None:
        self.failure: BaseException | None = None
        self.over = threading.Event()
        self._call = call
        self._waiting = deque(parts)
        self._answers: dict[int, T] = {}

    def next(self) -> range | None:
        """Another part; None when there is nothing to do."""
        try:
            return None if self.over.is_set() else self._waiting.popleft()
        except IndexError:
            return None

    def done(self, part: range, answer: T) -> None:
        """A part was answered."""
        self._answers[part.start] = answer

    def failed(self, error: BaseException) -> None:
        """A part was not: all ends."""
        self.failure = self.failure or error
        self.over.set()

    def joined(self) -> T:
        """The answer of the whole call.

        Raises:
            ServingError: of the first part that failed.
        """
        if self.failure is not None:
            raise self.failure
        return self._call.join(sorted(self._answers.items()))


class _Base(Generic[H]):
    """What both clients are told, and know about the wire."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        *,
        retry_seconds: float = DEFAULT_RETRY_SECONDS,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        show_progress: bool = True,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("max_in_flight", max_in_flight)):
            if number < 1:
                raise InvalidInput(f"{name} is {number}; it must be 1 or more.", param=name)
        self._url = v1_url(base_url)
        # Reading the certificates takes 20 ms, which plain HTTP has no use for.
        self._is_https = not self._url.startswith("http://")
        self._timeout = httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS), pool=None)
        self._retry_seconds = retry_seconds
        self._batch_size = batch_size
        self._max_in_flight = max_in_flight
        self._show_progress = show_progress
        self._was_answered = False
        self._http: H = self._connect({"authorization": f"Bearer {api_key}"} if api_key else {})

    def _connect(self, headers: dict[str, str]) -> H:
        """The connections."""
        raise NotImplementedError

    def _headers_of(self, call: Call[T]) -> dict[str, str]:
        return {"content-type": call.media_type, "accept": call.media_type}

    def _read(self, call: Call[T], response: httpx2.Response) -> T:
        self._was_answered = True
        if response.status_code != 200:
            raise read_error(response.status_code, response.reason_phrase, response.content, response.headers)
        return call.read(response.content)

    def _unreachable(self, error: httpx2.TransportError) -> ServerUnreachable:
        """What a request without an answer means to the caller."""
        reason = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            found = ServerUnreachable(
                f"No server answers at {self._url}: {reason}. Start one with `hilbert serve`, or name its "
                "address as base_url."
            )
            # A server that answered before is waited for; one that never did may not exist.
            found.retryable = self._was_answered
        elif isinstance(error, httpx2.TimeoutException):
            found = ServerUnreachable(
                f"{self._url} did not answer within {self._timeout.read} s. Send less at a time (batch_size) "
                "or wait longer (timeout)."
            )
            found.retryable = False
        else:
            found = ServerUnreachable(
                f"The connection to {self._url} was cut before the answer had come: {reason}. The server, or "
                "a proxy in front of it, ended it; its log may say why."
            )
        return found


class Client(_Base[httpx2.Client]):
    """Talks to a server. Connections are kept and shared between threads.

    Args:
        base_url: where the server is, with or without ``/v1``.
        api_key: sent as a bearer token.
        timeout: seconds to wait for the answer of one request.
        retry_seconds: how long one request is tried again where the server says that it is full or loads, or
            goes away; 0 never tries again. `Retry-After` is honoured.
        batch_size: inputs that go in one request; a longer list goes in several.
        max_in_flight: requests of one call that are under way at a time.
        show_progress: a bar for long lists, on a terminal, where tqdm is installed.

    Example:
        >>> with Client() as client:  # doctest: +SKIP
        ...     client.embed(["Hilbert's hotel", "one more guest"]).shape
        (2, 384)

    All calls raise:
        ServerUnreachable: no answer came.
        ServingError: the server refused; the class, `status` and `message` are its own (`hilbert.errors`),
            and `index` is the place of the guilty input in the whole list, where there is one.
    """

    def _connect(self, headers: dict[str, str]) -> httpx2.Client:
        return httpx2.Client(headers=headers, timeout=self._timeout, verify=self._is_https)

    def embed(
        self,
        inputs: Input | Iterable[Input],
        model: str | None = None,
        **options: Unpack[calls.DenseOptions],
    ) -> FloatArray:
        """Vectors of `inputs`, in their order.

        Args:
            inputs: one or several: texts, and for a model that sees, images as the bytes or the `Path` of a
                file, the URL of one, or what Pillow opened; a `Path` that ends in .wav, .flac, .ogg or .mp3
                is a sound.
            model: which model; not needed where the server has one.
            options: see `DenseOptions`.
        Returns:
            ``[N, E]`` float32; one text gives ``[1, E]``.
        Raises:
            UnsupportedTask: the model has a vector for each token: `embed_multivector` returns those.
        """
        return self._run(calls.embed(inputs, model, **options))

    def encode(
        self,
        inputs: Input | Iterable[Input],
        model: str | None = None,
        outputs: Collection[str] = ("dense",),
        **options: Unpack[calls.EmbedOptions],
    ) -> Encoded:
        """Several kinds of vector from one pass over the inputs.

        Args:
            inputs: as for `embed`; a string is a text, whatever it looks like.
            model: which model; not needed where the server has one.
            outputs: some of ``"dense"``, ``"sparse"`` and ``"multivector"``.
            options: see `EmbedOptions`.
        """
        return self._run(calls.encode(inputs, model, outputs, **options))

    def embed_multivector(
        self,
        inputs: Input | Iterable[Input],
        model: str | None = None,
        **options: Unpack[calls.EmbedOptions],
    ) -> list[FloatArray]:
        """A vector for each token of each text: late-interaction models, bge-m3, dense models.

        Args:
            inputs: one text or several.
            model: which model; not needed where the server has one.
            options: see `EmbedOptions`; `input_type` says which of a late-interaction model's sides, by
                default ``"document"``.
        Returns:
            ``[n, E]`` float32 for each text, in their order.
        """
        return self._run(calls.embed_multivector(inputs, model, **options))

    def embed_sparse(
        self,
        inputs: Input | Iterable[Input],
        model: str | None = None,
        **options: Unpack[calls.SparseOptions],
    ) -> list[SparseVector]:
        """The weights of each text over the vocabulary, in their order: SPLADE, bge-m3, sparse codes.

        Args:
            inputs: one text or several.
            model: which model; not needed where the server has one.
            options: see `SparseOptions`; give ``input_type="query"`` for queries.
        """
        return self._run(calls.embed_sparse(inputs, model, **options))

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        model: str | None = None,
        **options: Unpack[calls.RerankOptions],
    ) -> list[Hit]:
        """Documents in the order of their relevance to a query, best first.

        Args:
            query: the query.
            documents: at least one.
            model: which model; not needed where the server has one.
            options: see `RerankOptions`.
        """
        return self._run(calls.rerank(query, documents, model, **options))

    def classify(
        self,
        texts: str | Iterable[str],
        model: str | None = None,
        **options: Unpack[calls.ClassifyOptions],
    ) -> list[list[LabelScore]]:
        """The scores of all classes for each text, best first.

        Args:
            texts: one text or several.
            model: which model; not needed where the server has one.
            options: see `ClassifyOptions`.
        """
        return self._run(calls.classify(texts, model, **options))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        all_parts = call.parts(self._batch_size)
        parts = _Parts(call, all_parts)
        if len(all_parts) == 1:
            return self._send(call, all_parts[0], parts.over)
        with progress(len(call.items), self._show_progress) as advance:
            threads = [
                threading.Thread(target=self._work, args=(call, parts, advance), name="hilbert-client")
                for _ in range(min(self._max_in_flight, len(all_parts)))
            ]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            finally:
                parts.over.set()
        return parts.joined()

    def _work(self, call: Call[T], parts: _Parts[T], advance: Callable[[int], object]) -> None:
        """Send one part after the other."""
        try:
            while (part := parts.next()) is not None:
                parts.done(part, self._send(call, part, parts.over))
                advance(len(part))
        except BaseException as error:
            parts.failed(error)

    def _send(self, call: Call[T], part: range, over: threading.Event) -> T:
        """Send one request until it is answered."""
        body, patience = call.body(part), Patience(self._retry_seconds)
        while True:
            try:
                return self._once(call, body)
            except ServingError as error:
                wait = patience.wait_after(calls.placed(error, part.start))
                if over.wait(wait):
                    raise

    def _once(self, call: Call[T], body: bytes) -> T:
        try:
            response = self._http.post(self._url + call.path, content=body, headers=self._headers_of(call))
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        return self._read(call, response)


class AsyncClient(_Base[httpx2.AsyncClient]):
    """As `Client`, for asyncio and trio."""

    def _connect(self, headers: dict[str, str]) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(headers=headers, timeout=self._timeout, verify=self._is_https)

    async def embed(
        self,
        inputs: Input | Iterable[Input],
        model: str | None = None,
        **options: Unpack[calls.DenseOptions],
    ) -> FloatArray:
        """As `Client.embed`."""
        return await self._run(calls.embed(inputs, model, **options))

    async def encode(
        self,
        inputs: Input | Iterable[Input],
        model: str | None = None,
        outputs: Collection[str] = ("dense",),
        **options: Unpack[calls.EmbedOptions],
    ) -> Encoded:
        """As `Client.encode`."""
        return await self._run(calls.encode(inputs, model, outputs, **options))

    async def embed_multivector(
        self,
        inputs: Input | Iterable[Input],
        model: str | None = None,
        **options: Unpack[calls.EmbedOptions],
    ) -> list[FloatArray]:
        """As `Client.embed_multivector`."""
        return await self._run(calls.embed_multivector(inputs, model, **options))

    async def embed_sparse(
        self,
        inputs: Input | Iterable[Input],
        model: str | None = None,
        **options: Unpack[calls.SparseOptions],
    ) -> list[SparseVector]:
        """As `Client.embed_sparse`."""
        return await self._run(calls.embed_sparse(inputs, model, **options))

    async def rerank(
        self,
        query: str,
        documents: Iterable[str],
        model: str | None = None,
        **options: Unpack[calls.RerankOptions],
    ) -> list[Hit]:
        """As `Client.rerank`."""
        return await self._run(calls.rerank(query, documents, model, **options))

    async def classify(
        self,
        texts: str | Iterable[str],
        model: str | None = None,
        **options: Unpack[calls.ClassifyOptions],
    ) -> list[list[LabelScore]]:
        """As `Client.classify`."""
        return await self._run(calls.classify(texts, model, **options))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(self, call: Call[T]) -> T:
        all_parts = call.parts(self._batch_size)
        if len(all_parts) == 1:
            return await self._send(call, all_parts[0])
        parts = _Parts(call, all_parts)
        with progress(len(call.items), self._show_progress) as advance:
            async with anyio.create_task_group() as group:
                for _ in range(min(self._max_in_flight, len(all_parts))):
                    group.start_soon(self._work, call, parts, advance, group.cancel_scope)
        return parts.joined()

    async def _work(
        self,
        call: Call[T],
        parts: _Parts[T],
        advance: Callable[[int], object],
        scope: anyio.CancelScope,
    ) -> None:
        """Send one part after the other."""
        try:
            while (part := parts.next()) is not None:
                parts.done(part, await self._send(call, part))
                advance(len(part))
        except Exception as error:
            parts.failed(error)
            scope.cancel()

    async def _send(self, call: Call[T], part: range) -> T:
        """Send one request until it is answered."""
        patience = Patience(self._retry_seconds)
        body = await anyio.to_thread.run_sync(call.body, part) if call.reads_files else call.body(part)
        while True:
            try:
                return await self._once(call, body)
            except ServingError as error:
                await anyio.sleep(patience.wait_after(calls.placed(error, part.start)))

    async def _once(self, call: Call[T], body: bytes) -> T:
        try:
            response = await self._http.post(
                self._url + call.path, content=body, headers=self._headers_of(call)
            )
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        return self._read(call, response)
