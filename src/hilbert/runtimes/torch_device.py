"""What every runtime on torch does with its device: pick it, bound its threads, name its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hilbert.config.machine import available_threads
from hilbert.errors import InvalidInput, OutOfMemory, WorkerLost
from hilbert.runtimes.base import RuntimeSettings


def pick_device(device: str) -> str:
    """A device that exists.

    Raises:
        InvalidInput: the named one does not.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise InvalidInput(
                f"device {device!r} does not exist: torch {torch.__version__} sees "
                f"{torch.cuda.device_count()} CUDA devices; take --device cpu or a CUDA build of torch"
            )
        return f"cuda:{number}"
    if device == "mps" and not torch.backends.mps.is_available():
        raise InvalidInput("device 'mps' does not exist on this machine; take --device cpu")
    if device not in ("cpu", "mps"):
        raise InvalidInput(f"device {device!r} is unknown; take auto, cpu, cuda, cuda:N or mps")
    return device


def bound_threads(device: str, settings: RuntimeSettings) -> None:
    """On a CPU, compute with the threads that were asked for, else with those that this process may use."""
    if device == "cpu":
        torch.set_num_threads(settings.threads or available_threads())


@contextmanager
def device_errors() -> Iterator[None]:
    """What torch raises in here is raised in our words.

    Raises:
        OutOfMemory: the batch does not fit.
        WorkerLost: the device is gone for good; CUDA fails whatever is asked of it afterwards.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory(_first_line(error)) from error
    except torch.AcceleratorError as error:
        raise WorkerLost(f"the device is lost: {_first_line(error)}") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise OutOfMemory(_first_line(error)) from error
        raise


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
