"""`Client` and `AsyncClient`: vectors from a Hilbert server in one call."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx2

from hilbert.client.wire import (
    DEFAULT_URL,
    FloatArray,
    embed_body,
    embeddings_url,
    headers,
    read_error,
    read_vectors,
)

# Longer than the server's own limit for one request, so that its answer arrives first.
DEFAULT_TIMEOUT_SECONDS = 120.0


class Client:
    """Talks to a server. Connections are kept and shared between threads.

    Args:
        base_url: where the server is, with or without ``/v1``.
        api_key: sent as a bearer token.
        timeout: seconds to wait for an answer.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._url = embeddings_url(base_url)
        self._http = httpx2.Client(headers=headers(api_key), timeout=timeout)

    def embed(
        self,
        texts: str | Sequence[str],
        model: str | None = None,
        *,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: bool = True,
    ) -> FloatArray:
        """Vectors of `texts`, in their order.

        Args:
            texts: one text or several.
            model: which model; not needed where the server has one.
            dimensions: keep the first so many numbers, normalised again.
            prompt_name: one of the model's prompts; ``""`` for none.
            prompt: text to put before every input.
            input_type: ``"query"`` or ``"document"``.
            truncate: cut texts that are too long for the model; when false they are an error.
        Returns:
            ``[N, E]`` float32; one text gives ``[1, E]``.
        Raises:
            ServingError: the server refused; `status` and `message` are its own (`hilbert.errors`).
            httpx2.TransportError: no answer came.
        """
        response = self._http.post(
            self._url,
            content=embed_body(
                texts,
                model=model,
                dimensions=dimensions,
                prompt_name=prompt_name,
                prompt=prompt,
                input_type=input_type,
                truncate=truncate,
            ),
        )
        return _vectors_of(response)

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


class AsyncClient:
    """As `Client`, for asyncio and trio."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._url = embeddings_url(base_url)
        self._http = httpx2.AsyncClient(headers=headers(api_key), timeout=timeout)

    async def embed(
        self,
        texts: str | Sequence[str],
        model: str | None = None,
        *,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: bool = True,
    ) -> FloatArray:
        """As `Client.embed`."""
        response = await self._http.post(
            self._url,
            content=embed_body(
                texts,
                model=model,
                dimensions=dimensions,
                prompt_name=prompt_name,
                prompt=prompt,
                input_type=input_type,
                truncate=truncate,
            ),
        )
        return _vectors_of(response)

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


def _vectors_of(response: httpx2.Response) -> FloatArray:
    if response.status_code != 200:
        raise read_error(
            response.status_code,
            response.reason_phrase,
            response.content,
            response.headers.get("retry-after"),
        )
    return read_vectors(response.content)
