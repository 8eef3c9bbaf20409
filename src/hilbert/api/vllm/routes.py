"""The routes of vLLM's `/score`: a rerank for each text of the first side, put back in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from msgspec.structs import astuple

from hilbert.api.call import Call, Reply
from hilbert.api.exchange import model_for, ordered, written
from hilbert.api.openai.errors import OpenAIDialect
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.api.vllm import protocol
from hilbert.core import RerankResult, Task, Timing
from hilbert.models import Registry

# Requests in flight for one body, so that many pairs do not fill the house by themselves.
_AT_ONCE = 16


class _Results(NamedTuple):
    results: list[RerankResult]

    @property
    def num_tokens(self) -> int:
        return sum(result.num_tokens for result in self.results)

    @property
    def timing(self) -> Timing:
        timings = [result.timing for result in self.results]
        return Timing(*map(max, zip(*map(astuple, timings), strict=True)))


async def _together(work: Iterable[Awaitable[RerankResult]]) -> _Results:
    return _Results(await asyncio.gather(*work))


class ScoreRoute:
    """Handles `POST …/score`."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        self._models = models
        self._max_inputs = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, call: Call) -> Reply:
        """Score pairs."""
        parse = partial(protocol.read_order, max_inputs=self._max_inputs)
        order = await ordered(call, self._models, self._max_body_bytes, parse)
        found: list[RerankResult] = []
        name = ""
        for start in range(0, len(order.requests), _AT_ONCE):
            requests = order.requests[start : start + _AT_ONCE]
            model = await model_for(call, self._models, order.model, Task.RERANK)
            found += (await call.unless_gone(_together([model.rerank(r) for r in requests]))).results
            name = model.name
        return Reply(await written(8 * order.num_pairs, protocol.to_json, order, found, name))


def vllm_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes under one base: ``""``, or the URL prefix."""
    for path in ("/score", "/v1/score"):
        yield Route(
            "POST",
            base + path,
            ScoreRoute(models, settings),
            OpenAIDialect(),
            summary="Score pairs of texts (vLLM's answer)",
            request=protocol.VllmScoreBody,
            response=protocol.VllmScores,
        )
