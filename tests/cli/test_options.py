"""Every flag of `hilbert serve`, on a real server: each test fails when its flag is ignored.

Flags whose effect needs a GPU, a hub or a crash have their tests in the files beside this one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from cli_house import clean_environment, hilbert, is_alive

from hilbert.config import available_threads
from hilbert.testing.models import tiny_model

TEXTS = [f"guest {i} moves to room {i + 1}" for i in range(8)]


def test_model_id_served_model_name_and_host(start, static) -> None:
    server = start("--model-id", static, "--served-model-name", "rooms", "--host", "127.0.0.1")
    assert [m["id"] for m in server.get("/v1/models").json()["data"]] == ["rooms"]
    assert server.post(["a"]).json()["model"] == "rooms"
    assert server.url.startswith("http://127.0.0.1:")
    other = start("-m", static, "--host", "127.0.0.2")
    assert other.url.startswith("http://127.0.0.2:") and other.post(["a"]).status_code == 200


def test_the_name_is_the_last_two_parts_of_the_id(start, static) -> None:
    assert start("-m", static).post(["a"]).json()["model"] == "tiny/static"


def test_several_models(start, static, tmp_path) -> None:
    other = str(tiny_model("static", tmp_path / "other", seed=1))
    server = start("-m", static, "-m", other, "--served-model-name", "one", "--served-model-name", "two")
    answers = [server.post(["room"], model=name).json() for name in ("one", "two", other)]
    vectors = [answer["data"][0]["embedding"] for answer in answers]
    assert vectors[0] != vectors[1] == vectors[2]  # the id is a name, too
    assert [answer["model"] for answer in answers] == ["one", "two", "two"]
    assert server.post(["room"], model="three").status_code == 404


def test_environment_and_infinitys_names(start, static) -> None:
    server = start(INFINITY_MODEL_ID=f"{static};", HILBERT_SERVED_MODEL_NAME="rooms", HILBERT_PORT="0")
    assert server.post(["a"]).json()["model"] == "rooms"


def test_embedding_dtype(start, static) -> None:
    def numbers(*flags: str, **more: str) -> np.ndarray:
        body = start("-m", static, *flags).post(["room one"], **more).json()
        return np.array(body["data"][0]["embedding"])

    full = numbers().astype(np.float32)
    small = numbers("--embedding-dtype", "int8")
    assert np.array_equal(small, np.rint(full / np.abs(full).max() * np.float32(127)))
    assert np.array_equal(
        numbers("--embedding-dtype", "int8", output_dtype="float32").astype(np.float32), full
    )


def test_task(start, static) -> None:
    entry = start("-m", static, "--task", "rerank").get("/v1/models").json()["data"][0]
    assert entry["task"] == "rerank"
    refused = hilbert("serve", "-m", static, "--task", "classify", "--port", "0")
    assert refused.returncode != 0 and "it can for: embed, rerank" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_default_prompt_truncation_and_the_hubs_cache(start, static, tmp_path) -> None:
    commit = "0" * 40
    folder = tmp_path / "models--org--name"
    shutil.copytree(static, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(commit)
    file = folder / "snapshots" / commit / "tokenizer.json"
    limit = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation": limit}))
    where = ("-m", "org/name", "--hub-cache-dir", str(tmp_path), "--prompts", '{"q": "hotel "}')
    told = start(*where, "--default-prompt-name", "q", "--no-auto-truncate", HF_HUB_OFFLINE="1")
    plain = start(*where, HF_HUB_OFFLINE="1")

    def vector(server, text, **more):
        return server.post([text], **more).json()["data"][0]["embedding"]

    assert vector(told, "room") == vector(plain, "hotel room") != vector(plain, "room")
    long = "room one two three four five"
    assert told.post([long]).status_code == 400 and plain.post([long]).status_code == 200
    assert told.post([long], truncate=True).status_code == 200
    assert plain.post([long], truncate=False).status_code == 400
    refused = hilbert("serve", "-m", static, "--default-prompt-name", "x", "--port", "0")
    assert refused.returncode != 0 and "has no prompt 'x'" in refused.stderr


def test_port(start, static) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start("-m", static, "--port", str(port))
    assert httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    assert server.url == f"http://127.0.0.1:{port}"


def test_a_port_in_use_is_one_clear_line(static) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = hilbert("serve", "-m", static, "--port", str(port))
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"hilbert: port {port} of 127.0.0.1 is in use; stop what listens there, or choose another with --port"
    ]


def test_a_host_that_is_not_here(static) -> None:
    ended = hilbert("serve", "-m", static, "--host", "192.0.2.1")
    assert ended.returncode == 1 and "--host '192.0.2.1'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_uds(start, static, tmp_path) -> None:
    path = str(tmp_path / "h.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)  # left behind by a server that was killed
    server = start("-m", static, "--uds", path)
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=path)) as client:
        assert client.get("http://localhost/readyz").status_code == 200
    assert "--unix-socket" in server.curl
    second = hilbert("serve", "-m", static, "--uds", path)
    assert second.returncode == 1 and "in use" in second.stderr
    assert server.stop() == 0
    assert not os.path.exists(path)
    Path(path).write_text("mine")
    third = hilbert("serve", "-m", static, "--uds", path)
    assert third.returncode == 1 and Path(path).read_text() == "mine"


def test_url_prefix_and_redirect_slash(start, static) -> None:
    server = start("-m", static, "--url-prefix", "/embed", "--redirect-slash", "/embed/docs")
    assert server.post(["a"], "/embed/embeddings").status_code == 200
    home = server.get("/")
    assert (home.status_code, home.headers["location"]) == (307, "/embed/docs")
    plain = start("-m", static, "--redirect-slash", "")
    assert plain.post(["a"], "/embed/embeddings").status_code == 404
    assert (plain.get("/").status_code, plain.get("/").text) == (200, "")  # health, as in TEI


def test_proxy_root_path(start, static) -> None:
    server = start("-m", static, "--proxy-root-path", "/gpu")
    assert server.get("/").headers["location"] == "/gpu/docs"


def test_permissive_cors(start, static) -> None:
    allowed = "access-control-allow-origin"
    assert allowed in start("-m", static, "--permissive-cors").get("/v1/models", origin="http://x").headers
    assert allowed not in start("-m", static).get("/v1/models", origin="http://x").headers


def test_api_key_and_a_curl_line_without_it(start, static) -> None:
    server = start("-m", static, HILBERT_API_KEY="sesame")
    assert server.post(["a"]).status_code == 401
    assert server.post(["a"], headers={"Authorization": "Bearer sesame"}).status_code == 200
    assert "sesame" not in server.banner
    pasted = subprocess.run(
        ["sh", "-c", server.curl],
        env=clean_environment(HILBERT_API_KEY="sesame"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert '"embedding"' in pasted.stdout


def test_max_client_batch_size_and_max_body_bytes(start, static) -> None:
    server = start("-m", static, "--max-client-batch-size", "3", "--max-body-bytes", "1000")
    assert server.post(TEXTS[:3]).status_code == 200
    assert server.post(TEXTS[:4]).status_code == 400
    assert server.post(["x" * 1000]).status_code == 413


def test_max_batch_requests_and_max_batch_tokens(start, static) -> None:
    def batches(*flags: str) -> float:
        server = start("-m", static, *flags)
        assert server.post(TEXTS).status_code == 200
        return server.metric("hilbert_batch_sequences_count")

    assert batches() == 1
    assert batches("--max-batch-requests", "2") == 4
    assert batches("--batch-size", "1") == 8
    assert batches("--max-batch-tokens", "1") == 8


@pytest.mark.parametrize("flag", ["--max-concurrent-requests", "--max-queued-tokens"])
def test_a_full_house_refuses(start, static, flag) -> None:
    texts = TEXTS * 100

    def statuses(server) -> set[int]:
        with ThreadPoolExecutor(12) as pool:
            return {answer.status_code for answer in pool.map(lambda _: server.post(texts), range(36))}

    assert 429 in statuses(start("-m", static, flag, "1"))
    assert statuses(start("-m", static)) == {200}


def test_request_timeout(start, static) -> None:
    assert start("-m", static, "--request-timeout", "0.001").post(TEXTS * 100).status_code == 503


def test_runpod_api_and_runpod_max_concurrency(start, static) -> None:
    server = start("-m", static, "--runpod-api", "--runpod-max-concurrency", "1")
    job = {"input": {"input": ["a"]}}
    (worker,) = server.children
    os.kill(worker, signal.SIGSTOP)
    ids = [httpx2.post(server.url + "/run", json=job).json()["id"] for _ in range(3)]
    states = [server.get(f"/status/{job_id}").json()["status"] for job_id in ids]
    assert states == ["IN_PROGRESS", "IN_QUEUE", "IN_QUEUE"]
    os.kill(worker, signal.SIGCONT)
    output = httpx2.post(server.url + "/v2/e/runsync", json=job, timeout=60).json()["output"]
    assert output == server.post(["a"]).json()


def test_in_process(start, static) -> None:
    server = start("-m", static, "--in-process")
    assert server.children == []
    assert server.post(["a"]).status_code == 200
    worker = start("-m", static)
    assert len(worker.children) == 1
    same = [s.post(["room"]).json()["data"][0]["embedding"] for s in (server, worker)]
    assert same[0] == same[1]


def test_log_level(start, static) -> None:
    server = start("-m", static, "--log-level", "info")
    server.stop()
    assert any(" INFO hilbert.cli.serve" in line for line in server.errors)
    assert any(" INFO hilbert.worker.process: worker " in line for line in server.errors)
    quiet = start("-m", static, "--log-level", "warning")
    quiet.stop()
    assert quiet.errors == []
    loud = start("-m", static, "--log-level", "debug")
    loud.stop()
    assert any("uvicorn" in line for line in loud.errors)


def test_a_device_that_is_not_here(static, tmp_path) -> None:
    model = str(tiny_model("bert", tmp_path / "bert"))
    ended = hilbert("serve", "-m", model, "--device", "cuda:31", "--port", "0")
    assert ended.returncode == 1 and "cuda:31" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.slow
def test_cache_dir_dtype_engine_and_preload_only(start, tmp_path) -> None:
    model = str(tiny_model("bert", tmp_path / "bert"))
    first, second = tmp_path / "first", tmp_path / "second"
    ended = hilbert("serve", "-m", model, "--preload-only", "--cache-dir", str(first), "--dtype", "float32")
    assert ended.returncode == 0 and "float32" in ended.stdout
    assert ended.stdout.endswith("dense of 64 numbers, multivector of 64 numbers\n")
    traced = sorted(path.name for path in (first / "artifacts").iterdir())
    assert len(traced) == 1
    assert hilbert("v2", "--model-id", model, "--preload-only", HILBERT_CACHE_DIR=str(second)).returncode == 0
    assert len(list((second / "artifacts").iterdir())) == 1

    served = start("-m", model, "--cache-dir", str(first), "--dtype", "float32")
    assert sorted(path.name for path in (first / "artifacts").iterdir()) == traced
    assert 'dtype="float32"' in served.get("/metrics").text
    assert 'engine="openvino"' in served.get("/metrics").text
    eager = start("-m", model, "--engine", "torch", "--dtype", "float32")
    assert 'engine="torch"' in eager.get("/metrics").text
    rows = [np.array([row["embedding"] for row in s.post(TEXTS).json()["data"]]) for s in (served, eager)]
    assert np.abs(rows[0] - rows[1]).max() < 1e-5


@pytest.mark.skipif(available_threads() < 2, reason="one CPU shows no difference")
def test_threads(start, cache) -> None:
    server = start("--threads", "1", "--cache-dir", cache)
    (worker,) = server.children

    def ticks() -> list[int]:
        fields = [
            (task / "stat").read_text().rpartition(")")[2].split()
            for task in sorted(Path(f"/proc/{worker}/task").iterdir())
        ]
        return [int(row[11]) + int(row[12]) for row in fields]

    before = ticks()
    assert server.post(["room for one more guest " * 30] * 64).status_code == 200
    used = sorted((now - then for now, then in zip(ticks(), before, strict=True)), reverse=True)
    # The two threads that take batches in turns compute themselves; a second compute thread is a third.
    assert sum(used[:2]) > 0.9 * sum(used)


def test_worker_timeout(start, static) -> None:
    server = start("-m", static, "--worker-timeout", "1")
    (worker,) = server.children
    os.kill(worker, 19)  # SIGSTOP: it lives and says nothing
    assert server.post(["a"]).status_code == 200  # by the next worker
    assert not is_alive(worker) and server.children != [worker]


def test_keys_file_limits_and_trusted_proxies(start, static, tmp_path) -> None:
    keys = tmp_path / "api_keys.txt"
    server = start(
        "-m", static, "--keys-file", str(keys), "--limits-per-key", "rate=0.001 burst=2",
        "--limits-overall", "rate=0.001 burst=3", "--trusted-proxies", "127.0.0.1",
    )  # fmt: skip
    assert server.post(["a"]).status_code == 401

    def ask(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": "203.0.113.9"}
        return server.post(["a"], headers=headers).status_code

    keys.write_text("tok_1 # alice\ntok_2 # bob\n")
    assert [ask("tok_1"), ask("tok_1"), ask("tok_1")] == [200, 200, 429]
    assert [ask("tok_2"), ask("tok_2")] == [200, 429]  # three of all together
    assert server.stop() == 0
    log = "".join(server.errors)
    assert "does not exist" in log and "401 deny 127.0.0.1 [-] POST /v1/embeddings" in log
    assert " ok 203.0.113.9 [alice] POST /v1/embeddings" in log and "tok_" not in log


def test_cors_origins(start, static) -> None:
    server = start("-m", static, "--cors-origins", "http://x,http://y")
    assert server.get("/v1/models", origin="http://y").headers["access-control-allow-origin"] == "http://y"
    assert "access-control-allow-origin" not in server.get("/v1/models", origin="http://z").headers


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    chain, key = str(folder / "chain.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-keyout", key, "-out", chain, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return chain, key


def test_tls(start, static, certificate) -> None:
    chain, key = certificate
    server = start("-m", static, "--ssl-certfile", chain, "--ssl-keyfile", key)
    url = next(word for word in server.banner.split() if word.startswith("https://"))
    with httpx2.Client(verify=ssl.create_default_context(cafile=chain)) as client:
        assert client.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
        # Without TLS nobody gets an answer.
        with pytest.raises(httpx2.HTTPError):
            client.get(url.replace("https", "http") + "/healthz")


def test_a_certificate_that_cannot_be_used(static, certificate, tmp_path) -> None:
    chain, key = certificate
    for flags, why in (
        (("--ssl-certfile", str(tmp_path / "none.pem")), "No such file"),
        (("--ssl-certfile", chain, "--ssl-keyfile", chain), "cannot be used"),
        (("--ssl-keyfile", key), "--ssl-certfile"),
    ):
        ended = hilbert("serve", "-m", static, "--port", "0", *flags)
        assert ended.returncode in (1, 2) and why in ended.stderr and "Traceback" not in ended.stderr


def test_header_and_idle_timeouts(start, static) -> None:
    server = start("-m", static, "--header-timeout", "0.3", "--idle-timeout", "0.3")
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    for sent, answer in ((b"", b""), (b"GET /healthz HTTP/1.1\r\nhost: x\r\n", b"HTTP/1.1 408")):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(sent)
            assert connection.recv(65536).startswith(answer)
            assert answer or connection.recv(1) == b""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        while more := connection.recv(65536):  # until it hangs up
            received += more
        assert received.startswith(b"HTTP/1.1 200")


def test_body_timeout(start, static) -> None:
    server = start("-m", static, "--body-timeout", "0.3")
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as late:
        late.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        assert late.recv(65536).startswith(b"HTTP/1.1 408")
