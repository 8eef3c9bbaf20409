"""Sets of defaults under a name: what `--preset` gives where flags, environment and file say nothing."""

from __future__ import annotations

from collections.abc import Mapping

# A server that lets little in at a time and says so early. Its float16 is left out: `auto` takes 16 bits
# where the device has them, and no CPU computes in float16.
_SEED_004 = {
    "model_id": "Qwen/Qwen3-Embedding-0.6B",
    "host": "0.0.0.0",
    "port": "8080",
    "max_concurrent_requests": "1",
    "max_batch_tokens": "1384",
    "max_batch_requests": "5",
    "max_client_batch_size": "2",
    "limits_per_key": "rate=80 burst=50",
}

PRESETS: Mapping[str, Mapping[str, str]] = {"seed-004": _SEED_004}
