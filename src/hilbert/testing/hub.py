"""A stand-in for the model hub: a real HTTP server on loopback that speaks the hub's protocol.

Serves local folders as repositories to the real huggingface_hub client, and fails on demand: private
and gated repositories, rate limits, server errors, transfers cut in the middle. It writes down every
request, so that a test can say what was fetched twice. Weights go out through a redirect, as from the
hub's own storage.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

LARGE_SUFFIXES = (".safetensors", ".bin", ".onnx", ".pt")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as the hub saw it: `sent_bytes` counts the body that really left."""

    method: str
    path: str
    status: int
    range: str | None
    sent_bytes: int
    had_token: bool


@dataclass(slots=True)
class _Fault:
    pattern: str
    times: int
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    is_stalled: bool = False


@dataclass(slots=True)
class _Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    is_gated: bool = False


def _git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class StandInHub:
    """A hub with repositories of your own. Use it as a context manager.

    ::

        with StandInHub() as hub:
            hub.add("org/model", folder)
            subprocess.run([...], env=os.environ | hub.environment(cache))
    """

    def __init__(self) -> None:
        self._repositories: dict[str, _Repository] = {}
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._healed = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._url = ""
        self.seen: list[Seen] = []

    def add(
        self,
        model_id: str,
        folder: str | Path,
        *,
        revision: str = "main",
        token: str | None = None,
        is_gated: bool = False,
    ) -> str:
        """Publish a folder as the newest commit of a revision, and return the commit.

        Args:
            model_id: ``org/name``.
            folder: its files are read now; later changes to them need another `add`.
            revision: branch or tag that moves to the new commit.
            token: makes the repository private: only this bearer token opens it.
            is_gated: answers 403 to everyone, as for terms that nobody has accepted.
        """
        root = Path(folder)
        files = {
            path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
        }
        whole = hashlib.sha1(model_id.encode(), usedforsecurity=False)
        for name, data in sorted(files.items()):
            whole.update(f"{name}\0{_git_blob_id(data)}\n".encode())
        commit = whole.hexdigest()
        with self._lock:
            repository = self._repositories.setdefault(model_id, _Repository())
            repository.commits[commit] = files
            repository.refs[revision] = commit
            repository.token, repository.is_gated = token, is_gated
        return commit

    def answer(
        self,
        status: int,
        *,
        times: int = 1,
        pattern: str = "*",
        retry_after_seconds: float | None = None,
    ) -> None:
        """Answer the next `times` requests whose path matches with a status (429, 500, 503, …)."""
        headers = {} if retry_after_seconds is None else {"Retry-After": f"{retry_after_seconds:g}"}
        with self._lock:
            self._faults.append(_Fault(pattern, times, status=status, headers=headers))

    def cut(self, pattern: str, *, after_bytes: int, times: int = 1) -> None:
        """Close the connection after so many bytes of the body of the next matching downloads."""
        with self._lock:
            self._faults.append(_Fault(pattern, times, cut_after_bytes=after_bytes))

    def stall(self, pattern: str, *, after_bytes: int) -> None:
        """Send so many bytes of the body of the next matching download, then none until `heal` or `stop`."""
        self._healed.clear()
        with self._lock:
            self._faults.append(_Fault(pattern, 1, cut_after_bytes=after_bytes, is_stalled=True))

    def heal(self) -> None:
        """Forget every failure asked for so far; what is stalled breaks off."""
        with self._lock:
            self._faults.clear()
        self._healed.set()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``, also after the hub has stopped."""
        return self._url

    @property
    def storage_url(self) -> str:
        """Where weights are: another host name, so that the client does not take it for the hub."""
        return self._url.replace("127.0.0.1", "localhost")

    def environment(self, cache: str | Path) -> dict[str, str]:
        """Variables that point a fresh process at this hub, with a cache folder of its own."""
        return {
            "HF_ENDPOINT": self._url,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(Path(cache) / "hub"),
            "HILBERT_CACHE_DIR": str(Path(cache) / "hilbert"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def downloads(self, pattern: str = "*") -> list[Seen]:
        """The GET requests for file contents so far, redirects not counted."""
        return [
            seen
            for seen in list(self.seen)
            if seen.method == "GET"
            and seen.status in (200, 206)
            and not seen.path.startswith("/api/")
            and fnmatchcase(seen.path, pattern)
        ]

    def start(self) -> None:
        """Listen on a free port of loopback."""

        class Handler(_Handler):
            pass

        Handler.hub = self
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="stand-in-hub",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; requests are refused from now on. May be called twice."""
        self._healed.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # What the handler asks.

    def _fault_for(self, path: str, *, wants_body: bool) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                is_cut = fault.cut_after_bytes is not None
                if fault.times > 0 and fnmatchcase(path, fault.pattern) and (wants_body or not is_cut):
                    fault.times -= 1
                    return fault
        return None

    def _repository(self, model_id: str) -> _Repository | None:
        with self._lock:
            return self._repositories.get(model_id)

    def _saw(self, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)


@dataclass(slots=True)
class _Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


# Model id, commit, the commit's files, file name.
_Serve = Callable[[str, str, Mapping[str, bytes], str | None], _Answer]


def _error(status: int, code: str, text: str) -> _Answer:
    headers = {"X-Error-Code": code, "X-Error-Message": text, "Content-Type": "application/json"}
    return _Answer(status, json.dumps({"error": text}).encode(), headers)


def _json(value: object) -> _Answer:
    return _Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


_INFO = re.compile(r"/api/models/(?P<id>[^/]+(?:/[^/]+)?)(?:/revision/(?P<revision>.+))?")
_TREE = re.compile(r"/api/models/(?P<id>[^/]+(?:/[^/]+)?)/tree/(?P<revision>[^/]+)/?")
_FILE = re.compile(r"/(?P<id>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_BLOB = re.compile(r"/storage/(?P<id>[^/]+(?:/[^/]+)?)/(?P<revision>[0-9a-f]{40})/(?P<name>.+)")


class _Handler(BaseHTTPRequestHandler):
    """One connection. Everything it knows of repositories it asks the hub."""

    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are kept in `StandInHub.seen`, not printed."""

    def do_GET(self) -> None:
        """Answer with a body."""
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._serve(with_body=False)

    def _serve(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        answer = self._answer(path)
        is_content = answer.status in (200, 206)
        fault = self.hub._fault_for(path, wants_body=with_body and is_content)
        if fault is not None and fault.status:
            answer = _error(fault.status, "", "as the test asked")
            answer.headers |= fault.headers
        body = answer.body if with_body else b""
        cut = None if fault is None else fault.cut_after_bytes
        sent = body if cut is None else body[:cut]

        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        # Written down before the last byte leaves, so that a client that has its answer finds it here.
        self.hub._saw(
            Seen(
                method=self.command,
                path=path,
                status=answer.status,
                range=self.headers.get("Range"),
                sent_bytes=len(sent),
                had_token="Authorization" in self.headers,
            )
        )
        try:
            self.wfile.write(sent)
            if fault is not None and fault.is_stalled:
                self.wfile.flush()
                self.hub._healed.wait()
        except OSError:
            self.close_connection = True  # the client left: its business
        if cut is not None:
            self.close_connection = True

    def _answer(self, path: str) -> _Answer:
        blob = _BLOB.fullmatch(path)
        if blob is not None:  # its address is the permission, as with signed addresses
            return self._blob(blob["id"], blob["revision"], blob["name"])
        # Trees before infos: an id of one part would otherwise swallow "tree".
        for pattern, serve in (
            (_TREE, self._tree),
            (_INFO, self._info),
            (_FILE, self._file),
        ):
            match = pattern.fullmatch(path)
            if match is not None:
                parts = match.groupdict()
                return self._opened(parts["id"], parts.get("revision") or "main", parts.get("name"), serve)
        return _error(404, "", "no such page")

    def _opened(self, model_id: str, revision: str, name: str | None, serve: _Serve) -> _Answer:
        repository = self.hub._repository(model_id)
        authorization = self.headers.get("Authorization")
        if repository is None:
            # The real hub does not tell strangers what exists.
            missing = (404, "RepoNotFound", "Repository not found")
            return (
                _error(*missing)
                if authorization
                else _error(401, "RepoNotFound", "Invalid username or password.")
            )
        if repository.is_gated:
            return _error(403, "GatedRepo", "Access to this model is restricted.")
        if repository.token is not None and authorization != f"Bearer {repository.token}":
            return _error(401, "RepoNotFound", "Invalid username or password.")
        commit = repository.refs.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return serve(model_id, commit, files, name)

    def _info(self, model_id: str, commit: str, files: Mapping[str, bytes], name: str | None) -> _Answer:
        siblings = [{"rfilename": path} for path in sorted(files)]
        repository = self.hub._repository(model_id)
        is_private = repository is not None and repository.token is not None
        return _json(
            {"id": model_id, "modelId": model_id, "sha": commit, "private": is_private, "siblings": siblings}
        )

    def _tree(self, model_id: str, commit: str, files: Mapping[str, bytes], name: str | None) -> _Answer:
        entries: list[dict[str, object]] = []
        for path, data in sorted(files.items()):
            entry: dict[str, object] = {
                "type": "file",
                "path": path,
                "size": len(data),
                "oid": _git_blob_id(data),
            }
            if path.endswith(LARGE_SUFFIXES):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return _json(entries)

    def _file(self, model_id: str, commit: str, files: Mapping[str, bytes], name: str | None) -> _Answer:
        data = files.get(name or "")
        if data is None:
            return _error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name is not None and name.endswith(LARGE_SUFFIXES):
            digest = hashlib.sha256(data).hexdigest()
            headers |= {
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{digest}"',
                "ETag": f'"{digest}"',
                "Location": f"{self.hub.storage_url}/storage/{model_id}/{commit}/{name}",
            }
            return _Answer(302, b"", headers)
        return self._content(data, headers | {"ETag": f'"{_git_blob_id(data)}"'})

    def _blob(self, model_id: str, commit: str, name: str) -> _Answer:
        repository = self.hub._repository(model_id)
        data = repository.commits.get(commit, {}).get(name) if repository is not None else None
        if data is None:
            return _error(404, "EntryNotFound", "Entry not found")
        return self._content(
            data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        )

    def _content(self, data: bytes, headers: dict[str, str]) -> _Answer:
        headers["Content-Type"] = "application/octet-stream"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return _Answer(200, data, headers)
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            return _Answer(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return _Answer(206, data[start : end + 1], headers)
