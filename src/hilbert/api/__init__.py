"""HTTP: bytes to requests and results to bytes, one folder per dialect.

Knows nothing of runtimes, schedulers or queues; everything goes through `models.Registry`.
"""

from hilbert.api.app import create_app
from hilbert.api.settings import ApiSettings

__all__ = ["ApiSettings", "create_app"]
