"""What tests of the wire format share: a stream in pieces, and errors of every kind."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hilbert import errors
from hilbert.worker.frames import FrameReader

SERVING_ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.ServingError)
]

# Other work on the machine must not fail a test that is about bytes.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)


@st.composite
def serving_errors(draw):
    kind = draw(st.sampled_from(SERVING_ERRORS))
    return kind(
        draw(st.text()),
        param=draw(st.none() | st.text()),
        index=draw(st.none() | st.integers(0, 2048)),
        retry_after_seconds=draw(st.none() | st.floats(0, 100)),
    )


def read(data: bytes, cuts: list[int] = (), reader: FrameReader | None = None):
    """Feed bytes in pieces of the given sizes, over and over."""
    reader = reader or FrameReader()
    received = []
    position = turn = 0
    while position < len(data):
        buffer = reader.get_buffer()
        assert len(buffer) > 0
        size = min(cuts[turn % len(cuts)] if cuts else len(data), len(buffer), len(data) - position)
        buffer[:size] = data[position : position + size]
        received += reader.received(size)
        position += size
        turn += 1
    return received


def one(buffers, cuts=()):
    (frame,) = read(b"".join(buffers), cuts)
    return frame
