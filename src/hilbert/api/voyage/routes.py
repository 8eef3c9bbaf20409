"""Voyage's own routes: multimodal and contextualized embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from hilbert.api.call import Call, Reply
from hilbert.api.exchange import embedded, ordered, written
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.api.voyage import protocol
from hilbert.api.voyage.errors import VoyageDialect
from hilbert.core import Task
from hilbert.errors import ServingError
from hilbert.models import Registry
from hilbert.processors import called, placed, spelled


def voyage_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes under one base, such as ``/v1``."""
    limit, size = settings.max_client_batch_size, settings.max_body_bytes

    def read_multimodal(raw: bytes) -> protocol.VoyageOrder:
        return protocol.to_multimodal(protocol.multimodal_decoder.decode(raw), limit)

    def read_contextualized(raw: bytes) -> protocol.VoyageOrder:
        return protocol.to_contextualized(protocol.contextualized_decoder.decode(raw), limit)

    async def multimodal(call: Call) -> Reply:
        order = await ordered(call, models, size, read_multimodal)
        task = Task.IMAGE_EMBED if order.num_media else Task.EMBED
        with called("inputs"), spelled("output_dimension", of="dimensions"):
            model, result = await embedded(call, models, order.model, order.request, task)
        write = partial(protocol.multimodal_json, order, result, model.embedding_dtype)
        return Reply(await written(result.num_numbers, write, model.name, model.spec))

    async def contextualized(call: Call) -> Reply:
        order = await ordered(call, models, size, read_contextualized)
        try:
            with spelled("output_dimension", of="dimensions"):
                model, result = await embedded(call, models, order.model, order.request)
        except ServingError as error:
            if error.index is None or error.param != "input":
                raise
            document, place = protocol.chunk_named(error.index, order.request.chunks)
            raise placed(error, "inputs", place, document) from None
        write = protocol.contextualized_json
        return Reply(
            await written(result.num_numbers, write, order, result, model.embedding_dtype, model.name)
        )

    yield Route(
        "POST",
        f"{base}/multimodalembeddings",
        multimodal,
        VoyageDialect(),
        summary="Embed texts and images (Voyage's answer)",
        request=protocol.MultimodalBody,
        response=protocol.MultimodalList,
    )
    yield Route(
        "POST",
        f"{base}/contextualizedembeddings",
        contextualized,
        VoyageDialect(),
        summary="Embed the chunks of documents, each in sight of its document (Voyage's answer)",
        request=protocol.ContextualizedBody,
        response=protocol.ContextualizedList,
    )
