"""What the HTTP layer is told; filled by `cli` from flags and environment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Each field has the meaning of the flag with its name.

    Attributes:
        api_key: a key that callers may present; without it and a file of keys everyone may call.
        keys_file: the file of further keys; ``""`` for none.
        limits_per_key, limits_overall: see `hilbert.config.limits`.
        trusted_proxies: whose `X-Forwarded-For` is believed.
        url_prefix: a second place for every route but health and metrics; ``""`` or ``/x``.
        redirect_slash: where a visitor of ``/`` is sent; ``""`` for nowhere.
        proxy_root_path: the path under which a proxy publishes this server.
        permissive_cors: let web pages of any origin call.
        cors_origins: origins, divided by commas, whose web pages may call.
        max_client_batch_size: inputs that one request may have.
        max_body_bytes: bytes that a request body may have.
        body_timeout: seconds that a body may take to arrive; a large one gets more, by its size.
        runpod_api: answer RunPod's routes, too.
        runpod_max_concurrency: jobs of RunPod's that run at a time.
        slow_request: seconds after which an answered request has a line in the log.
    """

    api_key: str = ""
    keys_file: str = ""
    limits_per_key: str = ""
    limits_overall: str = ""
    trusted_proxies: str = ""
    url_prefix: str = ""
    redirect_slash: str = "/docs"
    proxy_root_path: str = ""
    permissive_cors: bool = False
    cors_origins: str = ""
    max_client_batch_size: int = 2048
    max_body_bytes: int = 32 * 1024 * 1024
    body_timeout: float = 20.0
    runpod_api: bool = False
    runpod_max_concurrency: int = 300
    slow_request: float = 5.0
