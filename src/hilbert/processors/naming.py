"""Errors about an input, in the words of the call that it came with.

Processors speak of ``input[i]``; in a call that has a query and documents it is ``documents[i]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hilbert.errors import ServingError


@contextmanager
def called(field: str, *, is_list: bool = True, shift: int = 0, of: str = "input") -> Iterator[None]:
    """Rename what is raised inside.

    Args:
        field: the field's name in the caller's request.
        is_list: whether it holds several inputs, so that errors name one by its place.
        shift: added to the places.
        of: what it is called inside.
    """
    try:
        yield
    except ServingError as error:
        raise renamed(error, field, is_list=is_list, shift=shift, of=of) from error


@contextmanager
def spelled(field: str, *, of: str) -> Iterator[None]:
    """Rename what is raised inside about a field as a whole, such as ``dimensions``.

    Args:
        field: its name in the caller's request.
        of: what it is called inside.
    """
    try:
        yield
    except ServingError as error:
        if error.param != of or error.index is not None:
            raise
        raise type(error)(error.message.replace(of, field, 1), param=field) from error


def renamed(
    error: ServingError, field: str, *, is_list: bool = True, shift: int = 0, of: str = "input"
) -> ServingError:
    """The same error about ``field[i]``, or ``field`` alone; errors about anything else are untouched."""
    if error.param != of or error.index is None:
        return error
    index = error.index + shift
    place = f"{field}[{index}]" if is_list else field
    return placed(error, field, place, index if is_list else None, of=of)


def placed(
    error: ServingError, field: str, place: str, index: int | None, *, of: str = "input"
) -> ServingError:
    """The same error about a place that has a name of its own in the caller's request."""
    return type(error)(
        error.message.replace(f"{of}[{error.index}]", place, 1),
        param=field,
        index=index,
        retry_after_seconds=error.retry_after_seconds,
    )
