"""The dashboard and the alerts ask for what a real Hilbert tells a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from cli_house import Server

from hilbert.observability.metrics import TABLE

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/hilbert.rules.yml"
BOARD = json.loads((DEPLOY / "grafana/hilbert.json").read_text())
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="no Prometheus: apt-get install prometheus",
)
# What Prometheus and its client library add to our own.
FOREIGN = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
THRESHOLD = re.compile(r" (?:==|>|<) [\d.]+$")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def asked_by_the_board() -> list[str]:
    """Every expression as Grafana would send it with everything chosen."""
    given = {"$instance": ".*", "$model": ".*", "$__rate_interval": "1m"}
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [re.sub(r"\$\w+", lambda found: given[found[0]], expr) for expr in asked]


def alerts() -> list[dict[str, Any]]:
    return yaml.safe_load(RULES.read_text())["groups"][0]["rules"]


def asked_by_the_alerts() -> list[str]:
    """What each alert watches, without the threshold, so that a healthy server has an answer, too."""
    for rule in alerts():
        assert len(THRESHOLD.findall(rule["expr"])) == 1, rule["expr"]
    return [THRESHOLD.sub("", rule["expr"]) for rule in alerts()]


def test_every_name_is_a_metric_and_every_panel_is_whole() -> None:
    known = set(FOREIGN)
    for spec in TABLE:
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        known |= {spec.name + suffix for suffix in suffixes[spec.kind]}
    for expr in asked_by_the_board() + asked_by_the_alerts():
        named = set(re.findall(r"\b(?:hilbert_\w+|process_\w+|up\b)", expr))
        assert named and named <= known, (expr, named - known)
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids)) and all(panel["title"] for panel in panels())
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} == {
        "${datasource}"
    }
    taken = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in BOARD["panels"]]
    assert len(taken) == len(set(taken))
    used = {spec.name for spec in TABLE if any(spec.name in expr for expr in asked_by_the_board())}
    assert {spec.name for spec in TABLE} - used == set()  # nothing is told that the board does not show


@needs_prometheus
def test_the_alerts_ring_when_they_should() -> None:
    names = {rule["alert"] for rule in alerts()}
    tested = yaml.safe_load((DEPLOY / "prometheus/hilbert.rules.test.yml").read_text())["tests"]
    rung = {c["alertname"] for t in tested for c in t["alert_rule_test"] if c.get("exp_alerts")}
    assert rung == names
    folder = DEPLOY / "prometheus"
    for words in (["test", "rules", "hilbert.rules.test.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A running one."""

    def __init__(self, target: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{RULES}']\n"
            "scrape_configs:\n- job_name: hilbert\n"
            f"  static_configs: [{{targets: ['{target}']}}]\n"
        )
        flags = [f"--config.file={config}", f"--web.listen-address={address}", "--log.level=error"]
        self.url = f"http://{address}"
        self.process = subprocess.Popen(["prometheus", *flags, f"--storage.tsdb.path={folder / 'data'}"])

    def ask(self, path: str, **params: str) -> Any:
        reply = httpx2.get(f"{self.url}/api/v1/{path}", params=params, timeout=10)
        assert reply.status_code == 200, (params, reply.text)
        return reply.json()["data"]

    def values(self, expr: str) -> list[float]:
        return [float(found["value"][1]) for found in self.ask("query", query=expr)["result"]]


@pytest.fixture
def watched(start, static, tmp_path: Path) -> Iterator[tuple[Server, Prometheus]]:
    settings, keys = tmp_path / "hilbert.yaml", tmp_path / "keys.txt"
    keys.write_text("tok_1 admin # alice\ntok_2 rate=0.01 # bob\n")
    good = f'models:\n- {{id: "{static}", name: one}}\n- {{id: "{static}", name: two}}\n'
    settings.write_text(good)
    server = start("--config", str(settings), "--keys-file", str(keys))
    prometheus = Prometheus(server.url.removeprefix("http://"), tmp_path)
    ended = threading.Event()

    def traffic() -> None:
        head = {"authorization": "Bearer tok_1"}
        with httpx2.Client(base_url=server.url, headers=head, timeout=30) as client:
            while not ended.wait(0.01):
                for model in ("one", "two"):
                    client.post("/v1/embeddings", json={"model": model, "input": ["a room"] * 8})
                client.post("/rerank", json={"model": "one", "query": "a", "documents": ["b"]})
                client.post("/v1/embeddings", json={"model": "one", "input": "a", "dimensions": 0})
                client.post("/v1/embeddings", json={"input": "a"}, headers={"authorization": "Bearer tok_2"})

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        until(lambda: prometheus.values("sum(hilbert_requests_total)"), "the first scrape")
        settings.write_text(good.replace("models", "modles"))
        server.get("/healthz")
        yield server, prometheus
    finally:
        ended.set()
        thread.join()
        prometheus.process.terminate()
        prometheus.process.wait(20)


def until(is_so: Any, what: str, seconds: float = 30) -> None:
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            if is_so():
                return
        except httpx2.TransportError:
            pass
        assert time.monotonic() < give_up_at, f"waited for {what}"
        time.sleep(0.1)


@needs_prometheus
@pytest.mark.slow
def test_every_expression_has_an_answer_under_load(watched: tuple[Server, Prometheus]) -> None:
    _, prometheus = watched
    silent = asked_by_the_board() + asked_by_the_alerts()

    def all_have_answered() -> bool:  # once each: on a busy machine a scrape comes late, and gauges go stale
        silent[:] = [e for e in silent if not any(v == v for v in prometheus.values(e))]
        return not silent

    try:
        until(all_have_answered, "all answers", 40)
    finally:
        assert silent == []
    for variable in BOARD["templating"]["list"]:
        if found := re.fullmatch(r"label_values\((\w+), (\w+)\)", variable.get("definition", "")):
            until(lambda found=found: prometheus.values(f'{found[1]}{{{found[2]}!=""}}'), found[0])
    assert set(prometheus.ask("label/model/values")) >= {"one", "two"}
    assert sum(prometheus.values("rate(hilbert_tokens_total[1m])")) > 0
    (group,) = prometheus.ask("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    # The broken edit of the settings rings its alert, and nothing else does.
    until(lambda: prometheus.ask("alerts")["alerts"], "an alert")
    ringing = [a for a in prometheus.ask("alerts")["alerts"] if a["state"] == "firing"]
    assert [alert["labels"]["alertname"] for alert in ringing] == ["HilbertSettingsRefused"]
