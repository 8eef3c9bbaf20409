"""What the HTTP layer is told; filled by `cli` from flags and environment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Each field has the meaning of the flag with its name.

    Attributes:
        api_key: the key that callers must present; ``""`` lets everyone in.
        url_prefix: a second place for every route but health and metrics; ``""`` or ``/x``.
        redirect_slash: where a visitor of ``/`` is sent; ``""`` for nowhere.
        proxy_root_path: the path under which a proxy publishes this server.
        permissive_cors: let web pages of any origin call.
        max_client_batch_size: inputs that one request may have.
        max_body_bytes: bytes that a request body may have.
    """

    api_key: str = ""
    url_prefix: str = ""
    redirect_slash: str = "/docs"
    proxy_root_path: str = ""
    permissive_cors: bool = False
    max_client_batch_size: int = 2048
    max_body_bytes: int = 32 * 1024 * 1024
