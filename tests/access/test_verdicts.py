"""Verdicts are written together, in order, with their own times, and none is lost at the end."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time

import pytest

from hilbert.access import PASSED, Verdicts


def test_together_in_order_and_with_their_own_times(caplog: pytest.LogCaptureFixture) -> None:
    async def talk() -> tuple[int, int, float]:
        verdicts = Verdicts()
        asked = time.time()
        verdicts.log(PASSED, "1.2.3.4", "alice", "GET", "/a")
        verdicts.log(PASSED, "1.2.3.4", "bob", "GET", "/b")
        at_once = len(caplog.records)
        async with asyncio.timeout(10):
            while len(caplog.records) < 2:
                await asyncio.sleep(0.01)
        verdicts.log(PASSED, "1.2.3.4", "carol", "GET", "/c")
        verdicts.log(401, "1.2.3.4", "", "GET", "/d\n")  # a refusal waits for nothing
        return at_once, len(caplog.records), asked

    with caplog.at_level(logging.INFO, "hilbert.access"):
        at_once, in_the_end, asked = asyncio.run(talk())
    assert (at_once, in_the_end) == (0, 4)
    assert [record.message for record in caplog.records] == [
        "ok 1.2.3.4 [alice] GET /a",
        "ok 1.2.3.4 [bob] GET /b",
        "ok 1.2.3.4 [carol] GET /c",
        "401 deny 1.2.3.4 [-] GET '/d\\n'",
    ]
    assert abs(caplog.records[0].created - asked) < 0.01
    assert [record.levelname for record in caplog.records[2:]] == ["INFO", "WARNING"]


def test_a_quiet_log_keeps_the_refusals(caplog: pytest.LogCaptureFixture) -> None:
    async def talk() -> None:
        verdicts = Verdicts()
        verdicts.log(PASSED, "1.2.3.4", "alice", "GET", "/a")
        verdicts.log(429, "1.2.3.4", "alice", "GET", "/a")

    with caplog.at_level(logging.WARNING, "hilbert.access"):
        asyncio.run(talk())
    assert [record.message for record in caplog.records] == ["429 deny 1.2.3.4 [alice] GET /a"]


def test_what_a_client_wrote_stays_short_and_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    async def talk() -> None:
        Verdicts().log(401, "1.2.3.4", "", "GET\x9b2J" + "X" * 1000, "/" + "a" * 60_000)

    with caplog.at_level(logging.WARNING, "hilbert.access"):
        asyncio.run(talk())
    (record,) = caplog.records
    assert "GET\\x9b2J" in record.message and len(record.message) < 620
    assert len(record.fields["path"]) == 512  # type: ignore[attr-defined]


def test_what_waits_is_written_when_the_process_ends() -> None:
    program = (
        "import asyncio\nfrom hilbert.access import PASSED, Verdicts\n"
        "from hilbert.logs import log_to_stderr\n"
        "log_to_stderr('info')\nverdicts = Verdicts()\n"
        "async def main(): verdicts.log(PASSED, '1.2.3.4', 'alice', 'GET', '/a')\nasyncio.run(main())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stderr.endswith("INFO hilbert.access: ok 1.2.3.4 [alice] GET /a\n")
