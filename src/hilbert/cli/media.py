"""What a server may fetch for its clients, from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hilbert.config import ServerSettings
from hilbert.models.media import MediaLoader

if TYPE_CHECKING:
    from hilbert.processors.fetch import Fetcher


def media_loader(settings: ServerSettings) -> MediaLoader:
    """One loader for all models of a server."""

    def fetcher() -> Fetcher:
        # A server that is never sent a URL does without the HTTP client.
        from hilbert.processors.fetch import Fetcher, FetchSettings

        hosts = settings.fetch_private_hosts.split(",")
        return Fetcher(
            FetchSettings(
                user_agent=settings.http_client_user_agent,
                timeout_seconds=settings.http_client_timeout,
                max_connections=settings.http_client_max_connections,
                max_keepalive_connections=settings.http_client_max_keepalive_connections,
                private_hosts=frozenset(host.strip().lower() for host in hosts if host.strip()),
            )
        )

    return MediaLoader(fetcher if settings.fetch_urls else None, settings.max_fetch_bytes)
