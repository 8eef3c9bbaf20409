"""The platform's routes, for local work: what a program sends to api.runpod.ai it may send here.

`/run`, `/runsync`, `/status/…`, `/stream/…`, `/cancel/…`, `/purge-queue`, and the same under `/v2/<endpoint>`
with `/health` and `/openai/v1/…`, whatever the endpoint is called.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from urllib.parse import parse_qs

import msgspec
import orjson

from hilbert.api.body import BodyDecoder, MalformedRequest
from hilbert.api.call import Call, Reply, inner_call
from hilbert.api.exchange import parsed
from hilbert.api.gate import Gate
from hilbert.api.routing import Claim, Route
from hilbert.api.runpod.answer import Ask, answer, renamed
from hilbert.api.runpod.errors import JobNotFound, RunpodDialect
from hilbert.api.runpod.jobs import KEEP_SECONDS, KEEP_SYNC_SECONDS, Job, Jobs, State
from hilbert.api.runpod.protocol import fields_of, rerank
from hilbert.api.settings import ApiSettings

# How long `/runsync` waits; then the job's state is the answer, and `/status` has the rest.
_WAIT_SECONDS = 90.0
_MAX_WAIT_SECONDS = 300.0
# What stands behind `/v2/<endpoint>` where it is no path of its own.
_PLATFORM = ("run", "runsync", "status", "stream", "cancel", "purge-queue")


class JobBody(msgspec.Struct):
    """A job to do. Unknown fields, such as `policy`, are ignored."""

    input: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    webhook: str | None = None


class JobState(msgspec.Struct, omit_defaults=True):
    """Where a job stands; times in milliseconds."""

    id: str
    status: str
    output: msgspec.Raw | None = None
    error: str | None = None
    delayTime: int | None = None
    executionTime: int | None = None


_decoder = BodyDecoder(JobBody)


def runpod_routes(settings: ApiSettings, gate: Gate, ask: Ask) -> Iterator[Route]:
    """The routes, bare and under `/v2`.

    Args:
        settings: limits of bodies, and how many jobs run at a time.
        gate: where what a job used is counted.
        ask: makes calls to this server.
    """
    dialect = RunpodDialect()
    platform = Platform(settings, gate, ask)
    for path, handler, summary in (
        ("/run", platform.run, "Begin a job (RunPod)"),
        ("/runsync", platform.run_sync, "Do a job (RunPod)"),
        ("/cancel/*", platform.cancel, "End a job (RunPod)"),
        ("/purge-queue", platform.purge, "End all jobs that have not begun (RunPod)"),
    ):
        request = JobBody if path.startswith("/run") else None
        yield Route("POST", path, handler, dialect, summary=summary, request=request, response=JobState)
    for method in ("GET", "POST"):  # the platform takes GET, the development server of its SDK POST
        yield Route(
            method,
            "/status/*",
            platform.status,
            dialect,
            summary="Where a job stands (RunPod)",
            response=JobState,
        )
        yield Route(method, "/stream/*", platform.stream, dialect, summary="A job's output (RunPod)")
        yield Route(method, "/v2/*", platform.endpoint, dialect)


def runpod_rerank(settings: ApiSettings, ask: Ask) -> Claim:
    """`/rerank` and `/v1/rerank` where a body says `docs`, as callers of RunPod's worker do."""
    dialect = RunpodDialect()

    async def rank(call: Call) -> Reply:
        errand = await parsed(call, settings.max_body_bytes, lambda raw: rerank(fields_of(raw)))
        inner = inner_call(errand.method, errand.path, errand.body, call.key, call.prefix)
        reply = await ask(inner, dialect)
        assert reply is not None, "the path is one of this server's own"
        call.num_tokens += inner.num_tokens
        body = renamed(reply.body, errand) if reply.status >= 400 else errand.to_output(reply.body)
        return msgspec.structs.replace(reply, body=body)

    return Claim("docs", rank, dialect)


class Platform:
    """Handles the routes."""

    def __init__(self, settings: ApiSettings, gate: Gate, ask: Ask) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._gate = gate
        self._ask = ask
        self._jobs = Jobs(settings.runpod_max_concurrency)

    async def run(self, call: Call) -> Reply:
        """Begin a job."""
        return _state(self._jobs, await self._begin(call, KEEP_SECONDS))

    async def run_sync(self, call: Call) -> Reply:
        """Do a job, and answer when it is done, or with its state when that takes too long."""
        wait = _wait_seconds(call)
        job = await self._begin(call, KEEP_SYNC_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.is_done.wait(), wait)
        return _state(self._jobs, job)

    async def status(self, call: Call) -> Reply:
        """Where a job stands."""
        return _state(self._jobs, self._find(call))

    async def stream(self, call: Call) -> Reply:
        """A job's output in one piece, once: nothing is left for those who ask again."""
        job = self._find(call)
        parts = []
        if job.state is State.COMPLETED and not job.is_streamed:
            job.is_streamed = True
            parts.append({"output": msgspec.Raw(job.output)})
        return Reply(msgspec.json.encode({"id": job.id, "status": job.state, "stream": parts}))

    async def cancel(self, call: Call) -> Reply:
        """End a job that is not done."""
        job = self._find(call)
        self._jobs.cancel(job)
        return Reply(orjson.dumps({"id": job.id, "status": job.state}))

    async def purge(self, call: Call) -> Reply:
        """End the caller's jobs that have not begun."""
        return Reply(orjson.dumps({"removed": self._jobs.purge(call.key.digest), "status": "completed"}))

    async def endpoint(self, call: Call) -> Reply:
        """What lies under `/v2/<endpoint>`."""
        _, _, rest = call.tail.partition("/")
        if rest == "health" and call.method == "GET":
            return self._health()
        if rest.startswith("openai/v1/") or rest.partition("/")[0] in _PLATFORM:
            call.path = "/" + rest
            reply = await self._ask(call)
            if reply is not None:
                return reply
        return RunpodDialect().no_route(call)

    async def _begin(self, call: Call, keep_seconds: float) -> Job:
        raw = await parsed(call, self._max_body_bytes, _read)

        async def work() -> bytes:
            done = await answer(self._ask, raw, call.key, call.prefix)
            self._gate.charge(call, done.num_tokens)
            return done.output

        return self._jobs.submit(call.key.digest, len(raw), work, keep_seconds)

    def _find(self, call: Call) -> Job:
        job = self._jobs.find(call.tail, call.key.digest)
        if job is None:
            raise JobNotFound(
                f"No job has the id {call.tail!r:.80}; results are kept for half an hour after /run and for "
                "a minute after /runsync, earlier ones make room for later ones."
            )
        return job

    def _health(self) -> Reply:
        count = self._jobs.count
        running = count(State.IN_PROGRESS)
        jobs = {
            "completed": count(State.COMPLETED),
            "failed": count(State.FAILED),
            "inProgress": running,
            "inQueue": count(State.IN_QUEUE),
            "retried": 0,
        }
        workers = {"idle": int(not running), "initializing": 0, "ready": 1, "running": int(running > 0)}
        return Reply(orjson.dumps({"jobs": jobs, "workers": workers | {"throttled": 0, "unhealthy": 0}}))


def _read(raw: bytes) -> bytes:
    """The job's input, as JSON."""
    body = _decoder.decode(raw)
    if body.webhook is not None:
        raise MalformedRequest(
            "`webhook` is not called by this server; leave it out and ask /status/<id>.", param="webhook"
        )
    return bytes(body.input)


def _wait_seconds(call: Call) -> float:
    given = parse_qs(call.query.decode("ascii", "replace")).get("wait")
    if given is None:
        return _WAIT_SECONDS
    if not given[0].isdigit():
        raise MalformedRequest(f"`wait` is {given[0]!r:.50}; give milliseconds.", param="wait")
    return min(int(given[0]) / 1000, _MAX_WAIT_SECONDS)


def _state(jobs: Jobs, job: Job) -> Reply:
    waited, ran = jobs.seconds_of(job)
    state = JobState(job.id, job.state.value)
    if job.state is State.COMPLETED:
        state.output = msgspec.Raw(job.output)
    elif job.state is State.FAILED:
        state.error = f"Internal error. The server's log has the details under job {job.id}."
    if ran is not None:
        state.delayTime = round(waited * 1000)
        if job.state.is_final:
            state.executionTime = round(ran * 1000)
    return Reply(msgspec.json.encode(state))
