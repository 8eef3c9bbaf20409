"""Flags, environment and a file to frozen settings, at the edge.

Does not know torch, the network or any file after start. `settings.py` is the table; everything else
follows from it.
"""

from hilbert.config.load import OPTIONS, Effective, effective, load, load_runpod
from hilbert.config.machine import available_memory_bytes, available_threads
from hilbert.config.option import Option
from hilbert.config.settings import DEFAULT_MODEL_ID, ModelSettings, ServerSettings
from hilbert.config.sources import BadSetting

__all__ = [
    "DEFAULT_MODEL_ID",
    "OPTIONS",
    "BadSetting",
    "Effective",
    "ModelSettings",
    "Option",
    "ServerSettings",
    "available_memory_bytes",
    "available_threads",
    "effective",
    "load",
    "load_runpod",
]
