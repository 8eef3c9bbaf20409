"""From references to bytes: what a request only points to, or carries as text, is loaded here.

A URL is fetched under the guard of `processors/fetch.py`, data URIs and base64 are decoded, in a thread
when they are large. Nothing here knows what the bytes mean. The HTTP client is made for the first URL.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from hilbert.core import Input, Media, MediaRef
from hilbert.errors import MalformedMedia, MediaError, ServingError
from hilbert.models.offload import offload

if TYPE_CHECKING:
    from hilbert.processors.fetch import ByteBudget, Fetcher

# One request keeps no more connections busy, so that others get theirs.
_FETCHES_PER_REQUEST = 16
# Decoding a megabyte of base64 takes about a millisecond.
_INLINE_CHARS = 256 * 1024
_MAX_SHOWN = 40
_WHITESPACE = str.maketrans("", "", " \t\r\n")


class MediaLoader:
    """Loads images and sounds.

    Args:
        make_fetcher: opens the HTTP client; None where nothing may be fetched.
        max_fetch_bytes: what the URLs of one request may bring together.
    """

    def __init__(
        self, make_fetcher: Callable[[], Fetcher] | None = None, max_fetch_bytes: int = 64 * 1024 * 1024
    ) -> None:
        self._make_fetcher = make_fetcher
        self._max_fetch_bytes = max_fetch_bytes
        self._fetcher: asyncio.Task[Fetcher] | None = None

    async def load(self, inputs: Sequence[Input]) -> tuple[Input, ...]:
        """The inputs with `Media` in place of every `MediaRef`.

        Raises:
            MediaError: one cannot be had; of several the first that is known, named by its index.
        """
        refs = [(index, given) for index, given in enumerate(inputs) if isinstance(given, MediaRef)]
        if not refs:
            return tuple(inputs)
        loaded = list(inputs)
        texts = [(index, ref) for index, ref in refs if not is_url(ref.source)]
        if sum(len(ref.source) for _, ref in texts) < _INLINE_CHARS:
            loaded_texts = _decode_all(texts)
        else:
            loaded_texts = await offload(_decode_all, texts)
        urls = [(index, ref) for index, ref in refs if is_url(ref.source)]
        for index, media in [*loaded_texts, *(await self._fetch_all(urls) if urls else ())]:
            loaded[index] = media
        return tuple(loaded)

    async def _fetch_all(self, refs: list[tuple[int, MediaRef]]) -> list[tuple[int, Media]]:
        from hilbert.processors.fetch import ByteBudget

        budget = ByteBudget(self._max_fetch_bytes)
        slots = asyncio.Semaphore(_FETCHES_PER_REQUEST)

        async def fetch(index: int, ref: MediaRef) -> tuple[int, Media]:
            async with slots:
                return index, Media(ref.modality, await self._fetch(index, ref.source, budget))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(fetch(index, ref)) for index, ref in refs]
        except ExceptionGroup as failed:
            raise min(failed.exceptions, key=_index_of) from None
        return [task.result() for task in tasks]

    async def _fetch(self, index: int, url: str, budget: ByteBudget) -> bytes:
        try:
            return await (await self._open()).fetch(url, budget)
        except MediaError as error:
            raise _at(index, error) from None

    async def _open(self) -> Fetcher:
        if self._make_fetcher is None:
            raise MediaError("URLs are not fetched here (--no-fetch-urls); send the content as a data URI.")
        if self._fetcher is None or _has_failed(self._fetcher):
            self._fetcher = asyncio.ensure_future(offload(self._make_fetcher))
        return await asyncio.shield(self._fetcher)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._fetcher is None:
            return
        await asyncio.wait([self._fetcher])
        if not _has_failed(self._fetcher):
            await self._fetcher.result().aclose()


def _has_failed(task: asyncio.Task[Fetcher]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def is_url(text: str) -> bool:
    """Whether a source is to be fetched, or at least looks so: it names a scheme and is no data URI."""
    return "://" in text[:32] and text[:5].lower() != "data:"


def decode(text: str) -> bytes:
    """The bytes of a data URI, or of base64 alone.

    Raises:
        MalformedMedia: it is neither.
    """
    data = _decode(text)
    if not data:
        raise MalformedMedia("It is empty. Send a URL, a data URI or base64.")
    return data


def _decode(text: str) -> bytes:
    is_data = text[:5].lower() == "data:"
    if is_data:
        head, comma, text = text.partition(",")
        if not comma:
            raise MalformedMedia("The data URI has no comma, after which its data would begin.")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(text)
        if "%" in text:
            text = unquote_to_bytes(text).decode("latin-1")
    try:
        return binascii.a2b_base64(text.translate(_WHITESPACE), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        why = f"{str(error)[:1].lower()}{str(error)[1:]}"
        if is_data:
            raise MalformedMedia(f"It is not valid base64: {why}.") from None
        raise MalformedMedia(
            f"{_shown(text)} is no URL, as it does not begin with http:// or https://, no data URI, and not "
            f"valid base64 ({why}); send one of the three."
        ) from None


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]!r}… ({len(text)} characters)"


def _decode_all(refs: list[tuple[int, MediaRef]]) -> list[tuple[int, Media]]:
    decoded = []
    for index, ref in refs:
        try:
            decoded.append((index, Media(ref.modality, decode(ref.source))))
        except MediaError as error:
            raise _at(index, error) from None
    return decoded


def _at(index: int, error: MediaError) -> MediaError:
    return type(error)(f"input[{index}]: {error.message}", param="input", index=index)


def _index_of(error: Exception) -> int:
    """Where in the request an error belongs; -1 for what nobody expected, which is told first."""
    return error.index or 0 if isinstance(error, ServingError) else -1
