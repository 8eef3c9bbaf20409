"""From the headers of a request to the key that it carries."""

from __future__ import annotations

from collections.abc import Mapping

from hilbert.access.keyfile import ANONYMOUS, Key, KeyTable, digest_of
from hilbert.access.watch import KeyFile
from hilbert.errors import Unauthorized


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

    def identify(self, headers: Mapping[bytes, bytes]) -> Key:
        """The key of a request; `ANONYMOUS` where none is asked for.

        Raises:
            Unauthorized: a key is required, and none or an unknown one was given.
        """
        if self.is_open:
            return ANONYMOUS
        tokens = _tokens(headers)
        single, table = self._single, None if self._file is None else self._file.table()
        for token in tokens:
            digest = digest_of(token)
            key = None if single is None else single.find(digest)
            if key is None and table is not None:
                key = table.find(digest)
            if key is not None:
                return key
        raise Unauthorized(
            "The API key is wrong." if tokens else "An API key is needed: send `Authorization: Bearer KEY`."
        )


def _tokens(headers: Mapping[bytes, bytes]) -> list[bytes]:
    given = headers.get(b"authorization")
    other = headers.get(b"x-api-key")
    tokens = []
    if given is not None:
        scheme, _, rest = given.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            scheme = rest.lstrip()
        if scheme:
            tokens.append(scheme)
    if other is not None and (other := other.strip()):
        tokens.append(other)
    return tokens
