"""Ten times what the server can carry: everybody is answered, in bounded time, or told when to come back.

How fast it is in numbers is `python bench/overload.py`; here is what must hold on any machine.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from chaos_house import DANGEROUS, LOAD, Held, address_of, serving
from cli_house import Server

LIMIT = 32  # --max-concurrent-requests
SECONDS_PER_BATCH = 0.02
BATCH = 4
PATIENCE_SECONDS = 15.0  # a full queue takes 0.16 s; the rest is for machines that do other things as well


def load(server: Server, *words: str) -> dict:
    command = [*LOAD, *words, "--port", str(address_of(server)[1])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.chaos)])
def test_ten_times_too_much(static: str, tmp_path: Path, seconds: int) -> None:
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('{"input": "a room for one more guest"}\n')
    flags = ("--max-concurrent-requests", str(LIMIT), "--max-batch-requests", str(BATCH))
    with serving(
        "-m", static, *flags, program=DANGEROUS, CHAOS_SECONDS_PER_BATCH=str(SECONDS_PER_BATCH)
    ) as server:
        closed = ("closed", "--bodies", str(bodies), "--connections", "16", "--seconds", "0.7")
        capacity = load(server, *closed)["requests_per_second"]
        before = Held.by(server.process.pid)
        flood = load(
            server, "open", "--bodies", str(bodies), "--connections", "800",
            "--rate", str(10 * capacity), "--seconds", str(seconds),
        )  # fmt: skip
        again = load(server, *closed)
        after = Held.by(server.process.pid)
    print(json.dumps({"capacity": capacity, "again": again["requests_per_second"], **flood}))
    accepted, rejected = flood["accepted"], flood["rejected"]
    assert flood["others"] == {} and flood["without_retry_after"] == 0
    assert accepted["requests"] + rejected["requests"] + flood["unsent"] == flood["requests"]
    # Without a limit nobody would be refused, and by the end seconds of work would wait.
    assert rejected["requests"] > accepted["requests"] > LIMIT
    assert max(accepted["max_ms"], rejected["max_ms"]) / 1e3 < PATIENCE_SECONDS
    assert again["failed"] == 0 and again["requests"] > 0
    assert after.resident - before.resident < 25
    assert after.threads <= before.threads + 6
