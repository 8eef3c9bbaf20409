"""A stand-in of RunPod's platform on loopback, and a worker in a process of its own that takes its jobs."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clients_house import World

HILBERT = [sys.executable, "-c", "import sys; from hilbert.cli import main; sys.exit(main())"]
BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
_POLL_SECONDS = 0.5


class Platform:
    """Hands out jobs, takes outputs.

    Attributes:
        outputs: what was posted for a job, by its id, in the order of arrival.
        pings: the job ids that each sign of life named.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}
        self.pings: list[str] = []
        self._jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self._stops: queue.Queue[str] = queue.Queue()
        self._arrived = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def environ(self) -> dict[str, str]:
        """What the platform sets for its workers."""
        url = f"http://127.0.0.1:{self.server.server_port}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{url}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{url}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{url}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": "key",
            "RUNPOD_POD_ID": "pod",
            "RUNPOD_ENDPOINT_ID": "endpoint",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        }

    def send(self, job_id: str, given: Any) -> None:
        self._jobs.put({"id": job_id, "input": given})

    def stop_job(self, job_id: str) -> None:
        self._stops.put(job_id)

    def output(self, job_id: str, timeout: float = 60) -> Any:
        """What came back for a job; a failed one fails."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: job_id in self.outputs, timeout), f"no output of {job_id}"
        posted = self.outputs[job_id]
        assert set(posted) == {"output"}, posted
        return posted["output"]

    def ask(self, given: Any) -> Any:
        """The output of one job."""
        job_id = f"job-{time.monotonic_ns()}"
        self.send(job_id, given)
        return self.output(job_id)

    def _handler(platform) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                asked = parse_qs(parts.query)
                kind = parts.path.split("/")[1]
                if kind == "ping":
                    platform.pings.append(asked.get("job_id", [""])[0])
                    self._answer(b"{}")
                elif kind == "job-stop":
                    stop = _next(platform._stops)
                    self._answer(None if stop is None else json.dumps({"jobsToStop": [stop]}).encode())
                else:
                    jobs = _several(platform._jobs, int(asked.get("batch_size", ["1"])[0]))
                    is_batch = kind == "job-take-batch"
                    self._answer(json.dumps(jobs if is_batch else jobs[0]).encode() if jobs else None)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with platform._arrived:
                    platform.outputs[urlsplit(self.path).path.split("/")[-1]] = body
                    platform._arrived.notify_all()
                self._answer(b"{}")

            def _answer(self, body: bytes | None) -> None:
                self.send_response(204 if body is None else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _next(waiting: queue.Queue[Any]) -> Any:
    try:
        return waiting.get(timeout=_POLL_SECONDS)
    except queue.Empty:
        return None


def _several(waiting: queue.Queue[Any], at_most: int) -> list[Any]:
    found = [job for job in [_next(waiting)] if job is not None]
    while found and len(found) < at_most and not waiting.empty():
        found.append(waiting.get())
    return found


def worker_environ(world: World, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HILBERT_", "INFINITY_", "RUNPOD_"))}
    models = ";".join([BUNDLED, world.folders["reranker"], world.folders["clip"]])
    return kept | {"MODEL_NAMES": models, "HILBERT_CACHE_DIR": world.cache, **more}


@contextmanager
def worker(*flags: str, environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`hilbert runpod`, up to the line that says it is ready."""
    process = subprocess.Popen(
        [*HILBERT, "runpod", *flags], env=environ, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("hilbert: ready"):
                break
        else:
            raise AssertionError(f"no worker, exit status {process.wait()}")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # the SDK's log
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()
