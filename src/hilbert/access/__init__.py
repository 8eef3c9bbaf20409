"""Who may call, and how much: keys, verdicts, limits, the true address of a client.

Knows no HTTP framework and no model; `api/gate.py` asks here for the server, `cli/authz.py` for the
sidecar, which therefore starts without an engine.
"""

from hilbert.access.addresses import Proxies, group_of
from hilbert.access.keyfile import ANONYMOUS, BadKeyFile, Key, KeyTable, parse_keys
from hilbert.access.keys import Keys
from hilbert.access.limiter import Limiter, Permit
from hilbert.access.usage import Usage
from hilbert.access.verdicts import PASSED, Verdicts
from hilbert.access.watch import KeyFile

__all__ = [
    "ANONYMOUS",
    "PASSED",
    "BadKeyFile",
    "Key",
    "KeyFile",
    "KeyTable",
    "Keys",
    "Limiter",
    "Permit",
    "Proxies",
    "Usage",
    "Verdicts",
    "group_of",
    "parse_keys",
]
