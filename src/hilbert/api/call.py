"""One HTTP exchange: the request as a handler sees it, and the reply it returns.

Thin over ASGI: no middleware, no request object that parses what nobody asks for.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import count
from math import inf
from types import coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from hilbert.access import ANONYMOUS, Key
from hilbert.core import EncodeResult, Task, Timing
from hilbert.errors import InvalidInput, PayloadTooLarge, RequestTooSlow, ServingError

if TYPE_CHECKING:
    from hilbert.api.routing import Route
    from hilbert.models import Entry

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ANSWER = "hilbert.answer"
"""An ASGI extension of `cli/http.py`: its ``write`` takes a whole answer at once, where it can, and
``received_at`` is when a request's headers had come and it was its turn, as `time.perf_counter`."""

Headers = tuple[tuple[bytes, bytes], ...]
Answer = Callable[[int, Headers, bytes], bool]
"""Status, headers and body in; false where it has to go by `send`."""


class Dialect(Protocol):
    """How one family of routes words its errors."""

    def error(self, error: ServingError) -> Reply:
        """An error that was raised on purpose."""
        ...

    def no_route(self, call: Call) -> Reply:
        """404: nothing lives at this path."""
        ...

    def wrong_method(self, call: Call, allowed: str) -> Reply:
        """405: the path exists, but not for this method."""
        ...


class Counted(Protocol):
    """What models return."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the work took."""
        ...

    @property
    def timing(self) -> Timing:
        """Where the time went."""
        ...


T = TypeVar("T", bound=Counted)

JSON = b"application/json"

# Ids that callers may bring: what is safe in a header and in a log line.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_process = os.urandom(6).hex().encode()
_numbers = count(1)

# A client that sends a body beyond the limit reads no answer before it has sent all of it, so this much
# is read and thrown away; a client that sends more is cut off.
_MAX_DRAIN_BYTES = 512 * 1024 * 1024
_MAX_DRAIN_SECONDS = 15.0

# A large body may take longer to arrive, by this rate: half a megabit a second, which any network has.
_SLOWEST_BYTES_PER_SECOND = 64 * 1024

# Most requests are over by then, so that most never pay for the task that listens for a disconnect.
_WATCH_AFTER_SECONDS = 0.1


class ClientGone(Exception):
    """The client closed its connection; nobody is left to answer."""


class Reply(msgspec.Struct, frozen=True):
    """What goes back. Length, request id and timing headers are added on the way out."""

    body: bytes
    status: int = 200
    media_type: bytes = JSON
    headers: Headers = ()


@dataclass(slots=True)
class Asked:
    """What a request asks of a model, as far as a trace may tell: never an input.

    Attributes:
        model: the name in the request; ``""`` where it has none.
        task: what is asked for.
        encoding: how vectors are to be written, where the request says.
        dimensions: how many numbers a vector of the answer has.
    """

    model: str = ""
    task: Task | None = None
    encoding: str = ""
    dimensions: int = 0


class Call:
    """One request on its way through a handler.

    Attributes:
        method, path: as received; the path without the proxy's own part and without `prefix`.
        prefix: what the path began with where that selects a model, such as ``/bge``; else ``""``.
        headers: by lower-case name; the last one wins.
        request_id: the caller's `x-request-id` if it is sound, else a new one.
        tail: what a route that ends in ``*`` matched there.
        started: `time.perf_counter()` at arrival.
        query: what stands behind the ``?``, as received.
        answer: writes the reply in one piece; None where the server cannot.
        received_at: when its headers had come and it was its turn, as `started`; infinite where nobody says.
        peer: the address at the other end of the connection; None for a unix socket.
        body_seconds: how long a body may take to arrive; a large one gets more, by its size.
        key: who asks; set at the gate.
        dialect: whose words errors are in, where the body decides that; None leaves it to the route.
        num_tokens: what the request has used so far.
        reply_headers: to be sent with whatever the reply is.
        route: where it was sent to; None while nobody has looked, and where nothing lives.
        entry: the model that it is for, once that is known.
        asked: what is asked of the model, for a trace; None where nobody traces.
        error: why it failed.
        waited_at: when it began to wait for its model to be loaded, as `started`; 0 where that was there.
        wait_seconds: how long it waited for that.
        worked_at, computed_at: when the model was asked and when it had answered, as `started`; 0 before.
        replied_at: when the reply was ready to be sent, likewise.
        timing: what the model said of its answer.
    """

    # What most requests never change costs them nothing here.
    prefix = tail = ""
    query = b""
    answer: Answer | None = None
    received_at = inf
    key = ANONYMOUS
    dialect: Dialect | None = None
    num_tokens = 0
    reply_headers: Headers = ()
    route: Route | None = None
    entry: Entry | None = None
    asked: Asked | None = None
    error: ServingError | None = None
    timing: Timing | None = None
    waited_at = wait_seconds = 0.0
    worked_at = computed_at = replied_at = 0.0
    _unread: bytes | None = None

    def __init__(
        self,
        method: str,
        path: str,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        peer: str | None = None,
        body_seconds: float = 20.0,
    ) -> None:
        self.started = time.perf_counter()
        self.method = method
        self.path = path
        self.headers = headers
        self.receive = receive
        self.peer = peer
        self.body_seconds = body_seconds
        given = headers.get(b"x-request-id")
        self.request_id = (
            given if given and _REQUEST_ID.fullmatch(given) else b"req_%s%08x" % (_process, next(_numbers))
        )

    async def body(self, max_bytes: int) -> bytes:
        """The whole body, once.

        Raises:
            PayloadTooLarge: it has more than `max_bytes`; what came is drained, so the client can read this.
            InvalidInput: it is compressed.
            RequestTooSlow: it does not arrive in time.
            ClientGone: the connection closed in the middle.
        """
        if self._unread is not None:
            raw, self._unread = self._unread, None
            return raw
        encoding = self.headers.get(b"content-encoding", b"identity")
        if encoding not in (b"identity", b""):
            raise InvalidInput(
                f"Content-Encoding {encoding.decode('latin-1')!r} is not accepted; send the body as it is."
            )
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > max_bytes:
            # With `Expect: 100-continue` the client waits for a word before it sends, and this is it.
            if self.headers.get(b"expect", b"").lower() != b"100-continue":
                await self._drain(0)
            raise _too_large(int(length), max_bytes)
        coming = self._next()
        message, pause = _begun(coming)
        if message is not None and not message.get("more_body", False):
            whole: bytes = message.get("body", b"")
            if len(whole) > max_bytes:
                raise _too_large(len(whole), max_bytes)
            return whole  # as most are here by now, and need no timer
        try:
            async with asyncio.timeout(self.body_seconds) as limit:
                return await self._read(message or await _resumed(coming, pause), max_bytes, limit)
        except TimeoutError:
            raise RequestTooSlow(
                f"The request body did not arrive within {self.body_seconds:g} s (--body-timeout), and "
                f"a second for each {_SLOWEST_BYTES_PER_SECOND} bytes that came; send it faster."
            ) from None

    def unread(self, raw: bytes) -> None:
        """Put the body back, for whoever reads it next."""
        self._unread = raw

    async def _read(self, message: Message, max_bytes: int, limit: asyncio.Timeout) -> bytes:
        chunks: list[bytes] = []
        size = 0
        deadline = limit.when() or 0.0
        while True:
            chunk = message.get("body", b"")
            has_more = message.get("more_body", False)
            chunks.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                chunks.clear()
                limit.reschedule(None)
                if has_more:
                    await self._drain(size)
                raise _too_large(None, max_bytes)
            if not has_more:
                return b"".join(chunks)
            limit.reschedule(deadline + size / _SLOWEST_BYTES_PER_SECOND)
            message = await self._next()

    async def _next(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    async def _drain(self, size: int) -> None:
        try:
            async with asyncio.timeout(_MAX_DRAIN_SECONDS):
                while size < _MAX_DRAIN_BYTES:
                    message = await self._next()
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """Await a result, count its tokens, and cancel it when the client goes away.

        Raises:
            ClientGone: it did.
        """
        task = asyncio.current_task()
        assert task is not None
        watch = _Watch(self.receive, task)
        timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_SECONDS, watch.arm)
        self.worked_at = time.perf_counter()
        try:
            result = await work
            self.computed_at = time.perf_counter()
            self.num_tokens += result.num_tokens
            self.timing = result.timing
            if self.asked is not None and isinstance(result, EncodeResult) and result.dense is not None:
                self.asked.dimensions = result.dense.shape[1]
            return result
        except asyncio.CancelledError:
            if watch.has_fired:
                task.uncancel()
                raise ClientGone from None
            raise
        finally:
            timer.cancel()
            watch.stop()


def inner_call(method: str, path: str, body: bytes, key: Key = ANONYMOUS, prefix: str = "") -> Call:
    """A call that this server makes to itself: its body is there, and nobody hangs up.

    Args:
        key: on whose behalf.
        prefix: what selects the model, where the caller's path did.
    """
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # until whoever listens is cancelled
        raise AssertionError("nobody sets this event")

    call = Call(method, path, {b"content-type": JSON}, receive)
    call.key, call.prefix = key, prefix
    return call


class _Watch:
    """Listens for the end of a connection and cancels the task that works for it."""

    __slots__ = ("_listener", "_receive", "_worker", "has_fired")

    def __init__(self, receive: Receive, worker: asyncio.Task[Any]) -> None:
        self._receive = receive
        self._worker = worker
        self._listener: asyncio.Task[None] | None = None
        self.has_fired = False

    def arm(self) -> None:
        self._listener = asyncio.ensure_future(self._listen())

    def stop(self) -> None:
        listener, self._listener = self._listener, None  # whose error would hold this, and this it
        if listener is not None:
            listener.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_fired = True
        self._worker.cancel()


async def send_reply(send: Send, call: Call, reply: Reply) -> None:
    """Write a reply with its length, the request id and how long it took."""
    call.replied_at = time.perf_counter()
    milliseconds = (call.replied_at - call.started) * 1000
    headers = (
        (b"content-type", reply.media_type),
        (b"content-length", b"%d" % len(reply.body)),
        (b"x-request-id", call.request_id),
        (b"openai-processing-ms", b"%.3g" % milliseconds if milliseconds < 100 else b"%d" % milliseconds),
        *call.reply_headers,
        *reply.headers,
    )
    body = b"" if call.method == "HEAD" else reply.body
    if call.answer is None or not call.answer(reply.status, headers, body):
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _begun(work: Coroutine[Any, Any, Message]) -> tuple[Message | None, Any]:
    """Run a coroutine as far as it comes without waiting: what it returns, else what it waits for."""
    try:
        return None, work.send(None)
    except StopIteration as done:
        return done.value, None


@coroutine
def _resumed(begun: Coroutine[Any, Any, Message], pause: Any) -> Generator[Any, Any, Message]:
    """The rest of a coroutine that was begun by hand and waits for `pause`."""
    try:
        while True:
            try:
                given = yield pause
            except BaseException as error:
                pause = begun.throw(error)
            else:
                pause = begun.send(given)
    except StopIteration as done:
        message: Message = done.value
        return message


def _too_large(size: int | None, limit: int) -> PayloadTooLarge:
    what = "more than that" if size is None else f"{size} bytes"
    return PayloadTooLarge(
        f"The request body may have {limit} bytes and has {what}; send fewer inputs per request, or raise "
        "--max-body-bytes."
    )
