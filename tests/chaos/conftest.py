"""Fixtures of tests/chaos, those of tests/cli; and the long forms stay out unless they are asked for."""

import pytest
from cli_house import cache, start, static

__all__ = ["cache", "start", "static"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`-m chaos` asks for them, and nothing else does: not `-m 'not gpu'` either."""
    if "chaos" in config.option.markexpr:
        return
    long_forms = [item for item in items if item.get_closest_marker("chaos")]
    config.hook.pytest_deselected(items=long_forms)
    items[:] = [item for item in items if item not in long_forms]
