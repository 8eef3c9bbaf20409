"""A bar on the terminal for long work, where tqdm is installed; nothing on a pipe or in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Work that is done sooner shows no bar.
_DELAY_SECONDS = 1.0


@contextmanager
def progress(total: int, is_wanted: bool) -> Iterator[Callable[[int], object]]:
    """Yields what counts inputs as done."""
    if is_wanted:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            is_wanted = False
    if not is_wanted:
        yield lambda num_done: None
        return
    with tqdm(total=total, unit=" inputs", delay=_DELAY_SECONDS, disable=None, leave=False) as bar:
        yield bar.update
