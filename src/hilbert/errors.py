"""Every way in which a request can fail, and whose fault it is.

::

    ServingError                      status  retryable
    ├── ClientError                             the request is at fault
    │   ├── InvalidInput              400     no
    │   ├── InputTooLong              400     no
    │   ├── UnsupportedTask           400     no
    │   ├── MediaError                400     no
    │   │   └── MalformedMedia        400     no   (neither a URL nor data: seen before anything is fetched)
    │   ├── Unauthorized              401     no
    │   ├── Forbidden                 403     no
    │   ├── ModelNotFound             404     no
    │   ├── RequestTooSlow            408     no
    │   └── PayloadTooLarge           413     no
    ├── CapacityError                           try again later
    │   ├── Overloaded                429     yes
    │   ├── RateLimited               429     yes  (its caller's quota, not the server's room)
    │   ├── ModelLoading              503     yes
    │   ├── NoRoom                    503     yes  (once the budget, or what is pinned, has changed)
    │   ├── RequestTimeout            503     yes
    │   ├── ShuttingDown              503     yes
    │   └── ServerUnreachable         503     mostly  (raised by the client: no answer came)
    ├── ModelError                              the model or its files are at fault
    │   ├── ModelUnavailable          500     no   (not on the hub, no access, broken transfer)
    │   ├── UnsupportedArchitecture   500     no
    │   ├── UnsafeWeights             500     no
    │   ├── WeightMismatch            500     no
    │   ├── MissingDependency         500     no
    │   ├── OutOfMemory               500     no   (one sequence alone does not fit)
    │   └── NonFiniteOutput           500     no
    └── EngineError                             a bug, or a lost device
        └── WorkerLost                503     yes

Messages name the value, the limit and the remedy. This module knows nothing of HTTP frameworks:
``status`` is the number that a dialect starts from.
"""

from __future__ import annotations

# Of what a library says. transformers lists its 500 architectures where it knows none of them.
_MAX_CHARS = 300


class ServingError(Exception):
    """Base of all errors that Hilbert raises on purpose.

    Attributes:
        message: text for the caller: the value, the limit, the remedy.
        param: the request field at fault, where there is one.
        index: position of the guilty input in its request, where there is one.
        retry_after_seconds: when a retryable error is worth another try.
    """

    status = 500
    code = "internal_error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        index: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.index = index
        self.retry_after_seconds = retry_after_seconds


class ClientError(ServingError):
    """The request is at fault; sending it again changes nothing."""

    status = 400
    code = "invalid_request"


class InvalidInput(ClientError):
    """A field has a wrong type or a value out of range."""

    code = "invalid_value"


class InputTooLong(ClientError):
    """An input exceeds the model's length and the caller forbade truncation."""

    code = "input_too_long"


class UnsupportedTask(ClientError):
    """The model exists but cannot do what was asked of it."""

    code = "unsupported_task"


class MediaError(ClientError):
    """An image or audio input cannot be fetched or decoded."""

    code = "invalid_media"


class MalformedMedia(MediaError):
    """An image or audio input is neither a URL that may be fetched nor a data URI nor base64."""


class Unauthorized(ClientError):
    """The key is missing or unknown."""

    status = 401
    code = "invalid_api_key"


class Forbidden(ClientError):
    """The key is known but may not do this."""

    status = 403
    code = "forbidden"


class ModelNotFound(ClientError):
    """No served model has this name."""

    status = 404
    code = "model_not_found"


class RequestTooSlow(ClientError):
    """The request body did not arrive in time."""

    status = 408
    code = "request_too_slow"


class PayloadTooLarge(ClientError):
    """The request body exceeds the limit in bytes."""

    status = 413
    code = "payload_too_large"


class CapacityError(ServingError):
    """The server cannot take the request now; the same request may succeed later."""

    status = 503
    code = "unavailable"
    retryable = True


class Overloaded(CapacityError):
    """The queue is full."""

    status = 429
    code = "overloaded"


class RateLimited(CapacityError):
    """The caller, or all of them together, have used up what they may ask for."""

    status = 429
    code = "rate_limit_exceeded"


class ModelLoading(CapacityError):
    """The model is being loaded."""

    code = "model_loading"


class NoRoom(CapacityError):
    """The model does not fit into the memory that all models share."""

    code = "no_room"


class RequestTimeout(CapacityError):
    """The request waited longer than its time limit and was dropped."""

    code = "timeout"


class ShuttingDown(CapacityError):
    """The server is draining and takes no new requests."""

    code = "shutting_down"


class ServerUnreachable(CapacityError):
    """No answer came: nobody listens, the connection was cut, or time ran out. Raised by the client alone."""

    code = "unreachable"


class ModelError(ServingError):
    """The model, or one of its files, is at fault."""

    code = "model_error"


class ModelUnavailable(ModelError):
    """The model's files cannot be had: unknown id, no access, hub out of reach."""

    code = "model_unavailable"


class UnsupportedArchitecture(ModelError):
    """No program can run this architecture."""

    code = "unsupported_architecture"


class UnsafeWeights(ModelError):
    """The weights are a pickle that needs more than ``weights_only=True``."""

    code = "unsafe_weights"


class WeightMismatch(ModelError):
    """The weights do not fit the configuration, or a file's digest is wrong."""

    code = "weight_mismatch"


class MissingDependency(ModelError):
    """An optional package is needed and not installed; the message names the extra."""

    code = "missing_dependency"


class OutOfMemory(ModelError):
    """A batch does not fit the device's memory. The engine splits it; alone, the input fails."""

    code = "out_of_memory"


class NonFiniteOutput(ModelError):
    """The model produced NaN or infinity for this input."""

    code = "non_finite_output"


class EngineError(ServingError):
    """A bug in Hilbert, or a lost device."""


class WorkerLost(EngineError):
    """The worker process died or hung and was replaced."""

    status = 503
    code = "worker_lost"
    retryable = True


def in_short(error: BaseException) -> str:
    """What a library says went wrong, without its lists of all that it knows: at most 300 characters."""
    text = str(error).partition("\n")[0] or type(error).__name__
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]} …"
