"""SIE's API, in JSON: `/v1/encode/{model}`."""

from hilbert.api.sie.routes import sie_routes

__all__ = ["sie_routes"]
