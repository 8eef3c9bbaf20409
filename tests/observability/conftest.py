"""Fixtures of tests/observability: real servers; what they are made of is in cli_house.py."""

from cli_house import cache, start, static

__all__ = ["cache", "start", "static"]
