"""Who runs next, and who may come in. Pure: no I/O, no threads, no clock.

`Scheduler` orders the sequences of admitted requests into batches (in the worker). `Admission` decides
whether a request may join the queue at all (in the front, before it is tokenized).
"""

from hilbert.scheduler.admission import Admission
from hilbert.scheduler.scheduler import Scheduler

__all__ = ["Admission", "Scheduler"]
