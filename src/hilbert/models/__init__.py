"""The models that are served: names to engines, and one request's way through one of them."""

from hilbert.models.registry import Readiness, Registry
from hilbert.models.served import ServedModel
from hilbert.models.tokenizers import load_processor

__all__ = ["Readiness", "Registry", "ServedModel", "load_processor"]
