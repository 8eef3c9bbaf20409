"""Fixtures of tests/seed000; what they are made of is in tests/cli/cli_house.py."""

from cli_house import start, static

__all__ = ["start", "static"]
