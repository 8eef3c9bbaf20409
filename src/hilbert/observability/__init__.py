"""What Hilbert tells about itself: names, units and help of every metric in one table."""

from hilbert.observability.metrics import Metrics, ModelMetrics

__all__ = ["Metrics", "ModelMetrics"]
