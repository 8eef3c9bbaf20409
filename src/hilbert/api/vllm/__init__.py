"""vLLM's scores of pairs: `/score` and `/v1/score`."""

from hilbert.api.vllm.routes import vllm_routes

__all__ = ["vllm_routes"]
