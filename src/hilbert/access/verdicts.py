"""One log line for each verdict: whether, whom, from where, and for what; never a token."""

from __future__ import annotations

import logging

logger = logging.getLogger("hilbert.access")


def log_verdict(status: int, client: str, label: str, method: str, path: str) -> None:
    """Say who was let in or not.

    Args:
        status: 204 where the request may pass, else what it was answered.
        client: its true address.
        label: of its key; ``""`` where it has none that is known.
        path: without the query, which may hold anything.
    """
    level = logging.INFO if status == 204 else logging.WARNING
    if not logger.isEnabledFor(level):
        return
    if not path.isascii() or not path.isprintable():
        path = ascii(path)
    word = "ok" if status == 204 else "deny"
    text = f"{status} {word} {client} [{label or '-'}] {method} {path}"
    # `logger.info` would look up the line of code it stands on, which is this one.
    logger.handle(logging.LogRecord(logger.name, level, __file__, 0, text, None, None))
