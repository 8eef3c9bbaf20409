"""From the headers of a request to the key that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from hilbert.access.keyfile import ANONYMOUS, Key, KeyTable, digest_of
from hilbert.access.watch import KeyFile
from hilbert.errors import Unauthorized

_NO_KEYS = KeyTable({})


class Keys:
    """The keys of a server: the one of ``--api-key``, those of ``--keys-file``, both, or none.

    A key comes as ``Authorization: Bearer KEY``, as a bare ``KEY`` there, or as ``x-api-key``.

    Args:
        api_key: the single key; it may administer, as its holder owns the server. ``""`` for none.
        keys_file: the file of further keys; ``""`` for none.
    """

    def __init__(self, api_key: str = "", keys_file: str = "") -> None:
        digest = digest_of(api_key.encode())
        single = KeyTable({digest: Key("api-key", digest, is_admin=True)})
        self._single = single if api_key else None
        self._file = KeyFile(keys_file) if keys_file else None
        self.is_open = not api_key and self._file is None
        if self._file is not None:
            self._file.table()  # what is wrong with it is said at the start

    def identify(self, headers: Mapping[bytes, bytes], received_at: float = inf) -> Key:
        """The key of a request; `ANONYMOUS` where none is asked for.

        Args:
            headers: by lower-case name.
            received_at: when they had come, as `time.perf_counter`: the keys file is looked at unless it was
                looked at since. By default it always is.

        Raises:
            Unauthorized: a key is required, and none or an unknown one was given.
        """
        if self.is_open:
            return ANONYMOUS
        table = _NO_KEYS if self._file is None else self._file.table(received_at)
        token = _token(headers.get(b"authorization", b""))
        key = self._key_of(token, table) if token else None
        if key is None and (other := headers.get(b"x-api-key", b"").strip()):
            token, key = other, self._key_of(other, table)
        if key is None:
            raise Unauthorized(
                "The API key is wrong."
                if token
                else "An API key is needed: send `Authorization: Bearer KEY`."
            )
        return key

    def _key_of(self, token: bytes, table: KeyTable) -> Key | None:
        """The single key comes first: its holder owns the server, whatever the file says of it."""
        key = None if self._single is None else self._single.find(token)
        return table.find(token) if key is None else key


def _token(given: bytes) -> bytes:
    """What ``Authorization`` holds: behind ``Bearer``, or its first word."""
    first, _, rest = given.strip().partition(b" ")
    return rest.lstrip() if first.lower() == b"bearer" else first
