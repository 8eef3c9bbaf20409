"""What Hilbert tells about itself: metrics (names, units and help in one table) and traces."""

from hilbert.observability.metrics import DeviceReading, Metrics, ModelMetrics, WorkerReading
from hilbert.observability.traces import RequestTrace, Stage, Tracer, TraceSettings

__all__ = [
    "DeviceReading",
    "Metrics",
    "ModelMetrics",
    "RequestTrace",
    "Stage",
    "TraceSettings",
    "Tracer",
    "WorkerReading",
]
