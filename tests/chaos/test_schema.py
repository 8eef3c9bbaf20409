"""The served OpenAPI document, taken at its word: schemathesis makes the requests and checks the answers.

Requests that the document allows and such that it does not; no answer is a 5xx, and each has a status, a type
and a form that the document names.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import uvicorn
from chaos_house import serving
from cli_house import Server
from fuzz_decoders import application
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis")

from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip


@pytest.fixture(scope="module")
def server(static: str) -> Iterator[Server]:
    with serving("-m", static, "--log-level", "error", "--body-timeout", "5") as it:
        yield it


@pytest.fixture(scope="module")
def able() -> Iterator[str]:
    """The address of an application in this process, whose model can do everything, on no device."""
    listener = socket.create_server(("127.0.0.1", 0))
    with application() as app:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        web = uvicorn.Server(config)
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        web.should_exit = True
        thread.join(20)
    listener.close()


def test_every_answer_is_what_the_document_says(server: Server) -> None:
    check_document(server.url, 1)


@pytest.mark.chaos
def test_every_answer_of_a_model_that_can_everything(able: str) -> None:
    check_document(able, 150)


def check_document(url: str, number: int) -> None:
    """Try each operation `number` times with what it allows and with what it does not; once in turns."""
    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    num_operations = 0
    start = time.monotonic()
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.path.startswith(("/admin", "/openai/")):  # the latter is /v1 by another name
                continue
            num_operations += 1
            for mode in modes if number > 1 else modes[num_operations % 2 :][:1]:
                try:
                    _try(operation, mode, number, session, counts)
                except Unsatisfiable:
                    continue  # nothing can be wrong with a request that has no parts
                except (Exception, BaseExceptionGroup) as error:
                    failures.append(f"{operation.label} {mode.value}: {error}")
    print(f"{counts.total()} requests in {time.monotonic() - start:.0f} s: {dict(counts)}")
    assert not failures, "\n\n".join(failures)
    assert counts["200"] > 0 and not [status for status in counts if status >= "500"]


def _try(
    operation: Any, mode: GenerationMode, number: int, session: requests.Session, counts: Counter[str]
) -> None:
    @seed(1)
    @settings(
        max_examples=number, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(mode))
    def check(case: Any) -> None:
        response = case.call(session=session)
        counts[str(response.status_code)] += 1
        case.validate_response(response, checks=CHECKS)

    check()
