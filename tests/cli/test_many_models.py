"""Many models in one server: who is loaded when, who answers, edits while it runs, the operator's verbs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from cli_house import Server, children_of, hilbert

from hilbert.cli import main
from hilbert.testing.models import tiny_model


def megabytes(server: Server) -> float:
    """Resident memory of the server and its workers."""
    total = 0
    for pid in (server.process.pid, *children_of(server.process.pid)):
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        except OSError:
            continue
    return total / 1e6


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.05)


def models_of(server: Server) -> dict[str, dict]:
    return {m["id"]: m for m in server.get("/v1/models").json()["data"]}


def vector(server: Server, name: str, **more: str) -> list[float]:
    reply = server.post(["a room"], model=name, **more)
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == name
    return reply.json()["data"][0]["embedding"]


def test_seed_000_in_one_file(start, static, tmp_path) -> None:
    other = str(tiny_model("static", tmp_path / "e5", seed=1))
    file = tmp_path / "hilbert.yaml"
    file.write_text(
        f"""
        models:
          - {{id: "{static}", name: bge-m3, prefix: /bge, aliases: [m3], prompts: {{query: "query: "}}}}
          - {{id: "{static}", name: reranker, prefix: /reranker, task: rerank, preload: false}}
          - {{id: "{other}", name: multilingual-e5-large, prefix: /, pin: true}}
        """
    )
    server = start("--config", str(file))
    assert {n: m["state"] for n, m in models_of(server).items()} == {
        "bge-m3": "loaded", "reranker": "available", "multilingual-e5-large": "loaded",
    }  # fmt: skip
    assert server.get("/readyz").status_code == 200
    until(lambda: models_of(server)["reranker"]["outputs"] == ["dense"])  # told by its files alone
    away = models_of(server)["reranker"]
    assert away["state"] == "available" and away["task"] == "rerank" and not away["stats"]["loads"]
    assert away["dimensions"] == models_of(server)["bge-m3"]["dimensions"] == away["dims"]["dense"]
    assert models_of(server)["multilingual-e5-large"]["pinned"] is True
    for path, model in {"/bge/v1": "bge-m3", "/v1": "multilingual-e5-large"}.items():
        assert server.post(["hej"], f"{path}/embeddings", model="whatever").json()["model"] == model
    plain, prompted = vector(server, "bge-m3"), vector(server, "bge-m3", prompt_name="query")
    assert plain != prompted
    body = {"query": "hvor ligger Aarhus?", "documents": ["a", "b"], "top_n": 1}
    ranked = httpx2.post(server.url + "/reranker/rerank", json=body, timeout=60)
    assert ranked.status_code == 200 and ranked.json()["model"] == "reranker"
    assert models_of(server)["reranker"]["stats"]["loads"] == 1
    unnamed = httpx2.post(server.url + "/v1/rerank", json=body, timeout=60)
    assert unnamed.json()["model"] == "multilingual-e5-large"  # the default; every embedder reranks


@pytest.mark.slow
def test_models_under_a_budget_answer_and_keep_to_it(start, static, tmp_path, cache) -> None:
    """The short form; ten minutes of it is `python bench/many.py`."""
    other = str(tiny_model("static", tmp_path / "other", seed=1))
    names = [f"m{i}" for i in range(6)]
    flags = ["-m", "bundled"] * 4 + ["-m", static, "-m", other]
    flags = [flags[i : i + 2] for i in range(0, 12, 2)]
    argv = [word for i, pair in enumerate(flags) for word in (*pair, "--served-model-name", f"m{i}")]
    start(*argv[:4], "--cache-dir", cache).stop()  # traced
    budget = 480
    server = start(*argv, "--memory", f"{budget}MB", "--cache-dir", cache)
    wanted = {name: vector(server, name) for name in names}
    assert wanted["m0"] == wanted["m3"] != wanted["m4"] != wanted["m5"]
    samples: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            samples.append(megabytes(server))

    def client(seed: int) -> int:
        rng = random.Random(seed)
        for _ in range(8):
            name = rng.choice(names)
            assert vector(server, name) == pytest.approx(wanted[name], abs=2e-3)
        return 8

    watching = threading.Thread(target=sample)
    watching.start()
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(client, range(6))) == 48
    ended.set()
    watching.join()
    assert max(samples) < budget + 150
    assert sum(m["stats"]["unloads"] for m in models_of(server).values()) > 0
    assert server.metric("hilbert_model_unloads_total") > 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ten_models_that_do_not_fit_together_take_turns() -> None:
    """A minute and a half of what `bench/many.py` does for ten."""
    bench = Path(__file__).parents[2] / "bench" / "many.py"
    argv = [sys.executable, str(bench), "--only", "turns", "--minutes", "1.5"]
    found = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)["turns"]
    assert found["failures"] == 0 and found["unloads"] > 20, found
    assert found["peak_mb"] < found["budget_mb"] + 150, found


def test_too_small_a_budget_says_so(start, static) -> None:
    server = start("-m", static, "-m", "bundled", "--memory", "150MB", "--no-preload")
    refused = server.post(["a"], model="bundled")
    assert refused.status_code == 503 and "--memory" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"]
    assert models_of(server)["bundled"]["last_error"]["code"] == "no_room"
    alone = hilbert("serve", "-m", "bundled", "--memory", "1MB", "--port", "0")
    assert alone.returncode == 1 and "raise it with --memory" in alone.stderr
    none = hilbert("serve", "-m", static, "--memory", "1MB", "--no-preload", "--port", "0")
    assert none.returncode == 1 and none.stderr.count("\n") <= 2, none.stderr
    assert "memory (--memory) is 1MB, and the server takes" in none.stderr


def test_idle_unload(start, static) -> None:
    server = start("-m", static, "--idle-unload", "0.3")
    until(lambda: models_of(server)["tiny/static"]["state"] == "available")
    assert server.get("/readyz").status_code == 200
    assert server.post(["a"]).status_code == 200
    assert models_of(server)["tiny/static"]["stats"]["loads"] == 2


def test_load_timeout(start, tmp_path) -> None:
    model = str(tiny_model("bert", tmp_path / "bert"))
    server = start("-m", model, "--no-preload", "--load-timeout", "0.1", "--cache-dir", str(tmp_path / "c"))
    late = server.post(["a"])
    assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1
    assert "--load-timeout" in late.json()["error"]["message"]


@pytest.mark.slow
def test_nobody_waits_for_the_trace_of_another_model(start, static, tmp_path) -> None:
    model = str(tiny_model("bert", tmp_path / "bert"))
    server = start("-m", model, "-m", static, "--no-preload", "--cache-dir", str(tmp_path / "c"))
    names = list(models_of(server))
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(server.post, ["a"], model=names[0])
        time.sleep(0.5)
        for _ in range(2):
            assert server.post(["a"], model=names[1]).status_code == 200
            asked = httpx2.post(server.url + "/admin/models/unload", json={"model": names[1]}, timeout=30)
            assert asked.status_code == 200
        assert not slow.done()  # tracing takes as long as importing torch at least
        assert slow.result().status_code == 200


@pytest.mark.slow
def test_pooling(start, tmp_path, cache) -> None:
    model = str(tiny_model("bert", tmp_path / "bert", pooling="mean"))
    rows = [
        start("-m", model, "--pooling", pooling, "--dtype", "float32", "--cache-dir", cache)
        .post(["one more guest"])
        .json()["data"][0]["embedding"]
        for pooling in ("auto", "mean", "cls")
    ]
    assert rows[0] == rows[1] != rows[2]


def test_edits_while_it_runs(start, static, tmp_path) -> None:
    other = str(tiny_model("static", tmp_path / "other", seed=1))
    file = tmp_path / "hilbert.yaml"
    one = f'- {{id: "{static}", name: one}}'
    file.write_text(f"models:\n{one}\n")
    server = start("--config", str(file), HILBERT_API_KEY="sesame")
    head = {"Authorization": "Bearer sesame"}

    def config() -> dict:
        return server.get("/admin/status", **head).json()["config"]

    def names() -> list[str]:
        return [m["id"] for m in server.get("/v1/models", **head).json()["data"]]

    statuses: list[int] = []
    ended = threading.Event()

    def traffic() -> None:
        while not ended.is_set():
            reply = server.post(["a room"] * 20, model="one", headers=head)
            statuses.append(reply.status_code)

    clients = [threading.Thread(target=traffic) for _ in range(3)]
    for client in clients:
        client.start()
    before = server.post(["a"], model="one", headers=head).json()["data"][0]["embedding"]
    file.write_text(f'models:\n{one}\n- {{id: "{other}", name: two, prefix: /two}}\nhost: 127.0.0.3\n')
    until(lambda: names() == ["one", "two"])
    assert server.post(["a"], "/two/embeddings", headers=head).status_code == 200
    until(lambda: config()["needs_restart"] != [])
    assert config()["error"] is None and config()["needs_restart"] == ["host"]
    file.write_text(f'models:\n- {{id: "{other}", name: one}}\n')  # another model under the same name
    until(lambda: names() == ["one"])
    after = server.post(["a"], model="one", headers=head).json()["data"][0]["embedding"]
    assert after != before
    file.write_text("")  # as an editor that writes in place leaves it for a moment
    file.write_text(f'models:\n- {{id: "{other}", name: one}}\n')
    for broken, words in (
        ("models: [{id: a, dtyp: x}]", "models[0].dtyp"),
        (f'models: [{{id: "{tmp_path}/nowhere", name: one}}]', "the model one: There is no model folder"),
        ("[", "line 1"),
        ("# nothing", "names no models any more"),
        (f'models:\n- {{id: "{other}", name: one}}\nmemory: 1MB\n', "--memory"),
    ):
        file.write_text(broken)
        until(lambda: config()["error"] is not None)
        assert words in config()["error"]
        assert server.post(["a"], model="one", headers=head).json()["data"][0]["embedding"] == after
        file.write_text(f'models:\n- {{id: "{other}", name: one}}\n')
        until(lambda: config()["error"] is None)
    file.unlink()
    until(lambda: config()["error"] is not None)
    ended.set()
    for client in clients:
        client.join()
    assert set(statuses) == {200} and len(statuses) > 10
    shown = hilbert("status", "--url", server.url, HILBERT_API_KEY="sesame")
    assert shown.returncode == 0 and "REFUSED" in shown.stdout and "memory" in shown.stdout
    server.stop()
    assert sum("everything stays as it was" in line for line in server.errors) == 6


def test_the_operators_verbs(start, static) -> None:
    server = start(
        "-m", static, "-m", "bundled", "--served-model-name", "one", "--served-model-name", "other",
        HILBERT_API_KEY="sesame",
    )  # fmt: skip

    def run(*argv: str, key: str = "sesame") -> str:
        ended = hilbert(*argv, "--url", server.url, HILBERT_API_KEY=key)
        return ended.stdout if ended.returncode == 0 else f"status {ended.returncode}: {ended.stderr}"

    assert "loaded" in run("models", "list") and "one" in run("models", "list")
    assert "available" in run("models", "unload", "one")
    assert models_of_key(server)["one"]["stats"]["memory_bytes"] == 0
    assert "loaded" in run("models", "load", "one")
    assert "loaded" in run("models", "reload", "one")
    assert models_of_key(server)["one"]["stats"]["loads"] == 3
    assert '"state": "loaded"' in run("models", "info", "one")
    assert "memory" in run("status") and "ready" in run("status")
    wrong = run("models", "unload", "two")
    assert "status 1" in wrong and "Available: one" in wrong and "Traceback" not in wrong
    assert "401" in run("models", "unload", "one", key="open")
    nobody = hilbert("models", "list", "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 1 and "no server answers" in nobody.stderr


def models_of_key(server: Server) -> dict[str, dict]:
    listed = server.get("/v1/models", authorization="Bearer sesame").json()["data"]
    return {m["id"]: m for m in listed}


def test_who_may_administer(start, static, tmp_path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("tok_user # user\ntok_admin admin # boss\n")
    server = start("-m", static, "--keys-file", str(keys))
    assert server.get("/admin/status", authorization="Bearer tok_user").status_code == 403
    assert server.get("/admin/status", authorization="Bearer tok_admin").status_code == 200
    assert server.get("/admin/status").status_code == 401
    free = start("-m", static)
    assert free.get("/admin/status").status_code == 200
    assert free.get("/admin/status", **{"x-forwarded-for": "192.0.2.7"}).status_code == 403
    here = free.url.removeprefix("http://")
    for headers, status in (
        ({"origin": "http://evil.test"}, 403),  # a page that this machine's browser shows
        ({"origin": "null"}, 403),
        ({"host": "evil.test"}, 403),  # a name that leads here
        ({"host": "evil.test", "origin": "http://evil.test"}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": free.url}, 200),
        ({"host": here.replace("127.0.0.1", "localhost")}, 200),
    ):
        assert free.get("/admin/status", **headers).status_code == status, headers


def test_config_show_check_and_schema(tmp_path) -> None:
    file = tmp_path / "hilbert.yaml"
    file.write_text("models: [{id: a, name: one}]\napi_key: s3cret\n")
    shown = hilbert("config", "show", "--config", str(file), "--port", "9", HILBERT_HOST="::1")
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["port", "9", "--port"] in rows and ["host", "::1", "HILBERT_HOST"] in rows
    assert "s3cret" not in shown.stdout and "********" in shown.stdout
    checked = hilbert("config", "check", "--config", str(file))
    assert checked.stdout == "good: one\n" and "not on this machine yet" in checked.stderr
    file.write_text(f"models: [{{id: {tmp_path}/none}}]\nkeys_file: {tmp_path}/nowhere.txt\n")
    wrong = hilbert("config", "check", "--config", str(file))
    assert (
        wrong.returncode == 2 and "models[0].id" in wrong.stderr and "keys_file (--keys-file)" in wrong.stderr
    )
    file.write_text("port: nine")
    for argv in (("config", "check"), ("config", "show"), ("serve",)):
        wrong = hilbert(*argv, "--config", str(file))
        assert wrong.returncode == 2 and "port 'nine'" in wrong.stderr and "Traceback" not in wrong.stderr
    assert '"models"' in hilbert("config", "schema").stdout


def test_config_check_asks_the_models_own_files(tmp_path, capsys) -> None:
    file = tmp_path / "hilbert.yaml"
    own = tiny_model("static", tmp_path / "own", prompts={"query": "q: "})

    def check(*words: str) -> str:
        assert main(["config", "check", *words]) == 2
        return capsys.readouterr().err

    for entry, words in (
        ("default_prompt_name: nope", "/own): "),
        ("default_prompt_name: nope", "has no prompt 'nope' for --default-prompt-name; it has: query"),
        ("pooling: cls", "--pooling cls cannot be used"),
        ("task: classify", "it can for: embed, rerank"),
        (f"name: a}}, {{id: {own}, aliases: [a]", "two models have the name 'a'"),
        ("prefix: /v1", "the server's own routes are at /v1"),
    ):
        file.write_text(f"models: [{{id: {own}, {entry}}}]")
        assert words in check("--config", str(file))
    assert "folder '~nobody-of-this-name/model', which is not there" in check(
        "-m", "~nobody-of-this-name/model"
    )
    assert "keys_file (--keys-file) names the file '~/a'" in check("-m", str(own), "--keys-file", "~/a")
    assert "--max-body-bytes" in (said := check("--max-body-bytes", "20")) and "1000" in said
    file.write_text(f"models: [{{id: {own}, default_prompt_name: query}}]")
    assert main(["config", "check", "--config", str(file)]) == 0
    assert capsys.readouterr() == (f"good: {tmp_path.name}/own\n", "")
