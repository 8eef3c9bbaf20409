"""RunPod's jobs: what its serverless workers are asked, and for local work the platform's own routes."""

from hilbert.api.runpod.answer import Ask, answer
from hilbert.api.runpod.routes import runpod_rerank, runpod_routes

__all__ = ["Ask", "answer", "runpod_rerank", "runpod_routes"]
