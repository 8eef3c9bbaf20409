"""Infinity's API on the bare routes, so that its users change nothing."""

from hilbert.api.infinity.routes import infinity_routes

__all__ = ["infinity_routes"]
