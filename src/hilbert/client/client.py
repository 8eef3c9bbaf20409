"""`Client` and `AsyncClient`: vectors, rankings and classes from a Hilbert server in one call."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx2

from hilbert.client.wire import (
    DEFAULT_URL,
    FloatArray,
    Hit,
    Input,
    LabelScore,
    classify_body,
    embed_body,
    headers,
    read_classes,
    read_error,
    read_ranking,
    read_sparse_vectors,
    read_token_vectors,
    read_vectors,
    rerank_body,
    sparse_body,
    v1_url,
)
from hilbert.core import SparseVector

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
        self._url = v1_url(base_url)
        self._http = httpx2.Client(headers=headers(api_key), timeout=timeout)

    def embed(
        self,
        inputs: Input | Sequence[Input],
        model: str | None = None,
        *,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: bool = True,
        modality: str | None = None,
    ) -> FloatArray:
        """Vectors of `inputs`, in their order.

        Args:
            inputs: one or several: texts, and for a model that sees, images as the bytes or the `Path` of a
                file, or the URL of one; a `Path` that ends in .wav, .flac, .ogg or .mp3 is a sound.
            model: which model; not needed where the server has one.
            dimensions: keep the first so many numbers, normalised again.
            prompt_name: one of the model's prompts; ``""`` for none.
            prompt: text to put before every input.
            input_type: ``"query"`` or ``"document"``.
            truncate: cut texts that are too long for the model; when false they are an error.
            modality: ``"text"``, ``"image"`` or ``"audio"``: what all inputs are.
        Returns:
            ``[N, E]`` float32; one text gives ``[1, E]``.
        Raises:
            UnsupportedTask: the model has a vector for each token: `embed_multivector` returns those.
            ServingError: the server refused; `status` and `message` are its own (`hilbert.errors`).
            httpx2.TransportError: no answer came.
        """
        response = self._http.post(
            f"{self._url}/embeddings",
            content=embed_body(
                inputs,
                model=model,
                dimensions=dimensions,
                prompt_name=prompt_name,
                prompt=prompt,
                input_type=input_type,
                truncate=truncate,
                modality=modality,
            ),
        )
        return read_vectors(_content_of(response))

    def embed_multivector(
        self,
        inputs: str | Sequence[str],
        model: str | None = None,
        *,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: bool = True,
    ) -> list[FloatArray]:
        """A vector for each token of each text: late-interaction models, bge-m3, dense models.

        Args:
            inputs: one text or several; the options are those of `embed`.
            input_type: which of a late-interaction model's sides; None is ``"document"``.
        Returns:
            ``[n, E]`` float32 for each text, in their order.
        Raises:
            ServingError: the server refused.
            httpx2.TransportError: no answer came.
        """
        response = self._http.post(
            f"{self._url}/embeddings/colbert",
            content=embed_body(
                inputs,
                model=model,
                dimensions=dimensions,
                prompt_name=prompt_name,
                prompt=prompt,
                input_type=input_type,
                truncate=truncate,
                modality=None,
            ),
        )
        return read_token_vectors(_content_of(response))

    def embed_sparse(
        self,
        inputs: str | Sequence[str],
        model: str | None = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: bool = True,
    ) -> list[SparseVector]:
        """The weights of each text over the vocabulary, in their order: SPLADE, bge-m3, sparse codes.

        Args:
            inputs: one text or several; the options are those of `embed`.
            input_type: ``"query"`` for queries; None is ``"document"``.
        Raises:
            ServingError: the server refused.
            httpx2.TransportError: no answer came.
        """
        body = sparse_body(
            inputs,
            model=model,
            prompt_name=prompt_name,
            prompt=prompt,
            input_type=input_type,
            truncate=truncate,
        )
        return read_sparse_vectors(
            _content_of(self._http.post(f"{self._url}/embeddings_sparse", content=body))
        )

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        model: str | None = None,
        *,
        top_n: int | None = None,
        raw_scores: bool = False,
        truncate: bool = True,
        prompt: str | None = None,
    ) -> list[Hit]:
        """Documents in the order of their relevance to a query, best first.

        Args:
            query: the query.
            documents: at least one.
            model: which model; not needed where the server has one.
            top_n: return only so many of the best.
            raw_scores: a cross-encoder's logits instead of their sigmoid.
            truncate: cut texts that are too long for the model; when false they are an error.
            prompt: the instruction of a reranker that takes one; None takes the model's own.
        Raises:
            ServingError: the server refused.
            httpx2.TransportError: no answer came.
        """
        body = rerank_body(
            query,
            documents,
            model=model,
            top_n=top_n,
            raw_scores=raw_scores,
            truncate=truncate,
            prompt=prompt,
        )
        return read_ranking(_content_of(self._http.post(f"{self._url}/rerank", content=body)))

    def classify(
        self,
        texts: str | Sequence[str],
        model: str | None = None,
        *,
        raw_scores: bool = False,
        truncate: bool = True,
    ) -> list[list[LabelScore]]:
        """The scores of all classes for each text, best first.

        Args:
            texts: one text or several.
            model: which model; not needed where the server has one.
            raw_scores: logits instead of probabilities.
            truncate: cut texts that are too long for the model; when false they are an error.
        Raises:
            ServingError: the server refused.
            httpx2.TransportError: no answer came.
        """
        body = classify_body(texts, model=model, raw_scores=raw_scores, truncate=truncate)
        return read_classes(_content_of(self._http.post(f"{self._url}/classify", content=body)))

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
        self._url = v1_url(base_url)
        self._http = httpx2.AsyncClient(headers=headers(api_key), timeout=timeout)

    async def embed(
        self,
        inputs: Input | Sequence[Input],
        model: str | None = None,
        *,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: bool = True,
        modality: str | None = None,
    ) -> FloatArray:
        """As `Client.embed`."""
        response = await self._http.post(
            f"{self._url}/embeddings",
            content=embed_body(
                inputs,
                model=model,
                dimensions=dimensions,
                prompt_name=prompt_name,
                prompt=prompt,
                input_type=input_type,
                truncate=truncate,
                modality=modality,
            ),
        )
        return read_vectors(_content_of(response))

    async def embed_multivector(
        self,
        inputs: str | Sequence[str],
        model: str | None = None,
        *,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: bool = True,
    ) -> list[FloatArray]:
        """As `Client.embed_multivector`."""
        response = await self._http.post(
            f"{self._url}/embeddings/colbert",
            content=embed_body(
                inputs,
                model=model,
                dimensions=dimensions,
                prompt_name=prompt_name,
                prompt=prompt,
                input_type=input_type,
                truncate=truncate,
                modality=None,
            ),
        )
        return read_token_vectors(_content_of(response))

    async def embed_sparse(
        self,
        inputs: str | Sequence[str],
        model: str | None = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        input_type: str | None = None,
        truncate: bool = True,
    ) -> list[SparseVector]:
        """As `Client.embed_sparse`."""
        body = sparse_body(
            inputs,
            model=model,
            prompt_name=prompt_name,
            prompt=prompt,
            input_type=input_type,
            truncate=truncate,
        )
        return read_sparse_vectors(
            _content_of(await self._http.post(f"{self._url}/embeddings_sparse", content=body))
        )

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        model: str | None = None,
        *,
        top_n: int | None = None,
        raw_scores: bool = False,
        truncate: bool = True,
        prompt: str | None = None,
    ) -> list[Hit]:
        """As `Client.rerank`."""
        body = rerank_body(
            query,
            documents,
            model=model,
            top_n=top_n,
            raw_scores=raw_scores,
            truncate=truncate,
            prompt=prompt,
        )
        return read_ranking(_content_of(await self._http.post(f"{self._url}/rerank", content=body)))

    async def classify(
        self,
        texts: str | Sequence[str],
        model: str | None = None,
        *,
        raw_scores: bool = False,
        truncate: bool = True,
    ) -> list[list[LabelScore]]:
        """As `Client.classify`."""
        body = classify_body(texts, model=model, raw_scores=raw_scores, truncate=truncate)
        return read_classes(_content_of(await self._http.post(f"{self._url}/classify", content=body)))

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


def _content_of(response: httpx2.Response) -> bytes:
    if response.status_code != 200:
        raise read_error(
            response.status_code,
            response.reason_phrase,
            response.content,
            response.headers.get("retry-after"),
        )
    return response.content
