"""The models that are served: names to engines, one memory for many, and a request's way through one."""

from hilbert.models.entry import Entry
from hilbert.models.memory import Loader, Memory
from hilbert.models.registry import Readiness, Registry
from hilbert.models.residency import Residency, Resident, State
from hilbert.models.served import ServedModel, outcome_of
from hilbert.models.tokenizers import load_processor

__all__ = [
    "Entry",
    "Loader",
    "Memory",
    "Readiness",
    "Registry",
    "Residency",
    "Resident",
    "ServedModel",
    "State",
    "load_processor",
    "outcome_of",
]
