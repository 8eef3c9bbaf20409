"""deploy/compose: what its files say, with every command read by Hilbert's own parser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from compose_house import BASE, COMPOSE, SERVER, compose, environment_example

from hilbert.access import BadKeyFile, parse_keys
from hilbert.config import ServerSettings, load

MODELS = {
    "bge-m3": "BAAI/bge-m3",
    "bge-reranker": "BAAI/bge-reranker-v2-m3",
    "e5-large": "intfloat/multilingual-e5-large",
}
LOCAL: dict[str, str] = {}
ON_SERVER = {"COMPOSE_SERVER_DOMAIN": "e.example"}


def settings(service: dict[str, Any]) -> ServerSettings:
    words = service["command"]
    assert words[0] == "serve"
    return load(words[1:], {})[0]


@pytest.mark.parametrize(
    ("files", "variables"), [((BASE,), LOCAL), ((BASE, SERVER), ON_SERVER)], ids=["cpu", "gpu"]
)
def test_every_service(files: tuple[str, ...], variables: dict[str, str]) -> None:
    stack = compose(*files, **variables)
    services = stack["services"]
    assert set(services) == {*MODELS, "prepare", "authz", "nginx"}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
        assert set(service["networks"]) <= set(stack["networks"])
        assert name == "prepare" or service["healthcheck"]["test"][0] == "CMD"
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (COMPOSE / source).exists(), source
    for name, model_id in MODELS.items():
        service = services[name]
        given = settings(service)
        assert given.models[0].model_id == model_id
        assert given.models[0].name == model_id.split("/")[1]
        assert not service.get("ports")  # nginx is the only way in
        assert service["volumes"] == services["prepare"]["volumes"]
        assert service["depends_on"]["prepare"]["condition"] == "service_completed_successfully"
    assert stack["networks"]["frontend"] == {"external": True}
    assert services["nginx"]["networks"] == ["app", "frontend"]


def test_cpu_and_gpu() -> None:
    cpu = compose(BASE)["services"]
    gpu = compose(BASE, SERVER, **ON_SERVER)["services"]
    batches = {"bge-m3": 16, "bge-reranker": 8, "e5-large": 32}
    for name, batch in batches.items():
        on_cpu, on_gpu = settings(cpu[name]).models[0], settings(gpu[name]).models[0]
        assert (on_cpu.dtype, on_cpu.device, on_cpu.max_batch_requests) == ("float32", "cpu", 8)
        assert (on_gpu.dtype, on_gpu.device, on_gpu.max_batch_requests) == ("float16", "cuda", batch)
        assert cpu[name]["image"] == "hilbert:latest" and gpu[name]["image"] == "hilbert:latest-cuda"
        assert (cpu[name]["build"]["target"], gpu[name]["build"]["target"]) == ("cpu", "cuda")
        assert "deploy" not in cpu[name]
        [device] = gpu[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert cpu["nginx"]["ports"] == ["8080"] and gpu["nginx"]["ports"] is None


@pytest.mark.parametrize(
    ("variable", "service"),
    [("BGE_M3", "bge-m3"), ("BGE_RERANKER", "bge-reranker"), ("E5_LARGE", "e5-large")],
)
def test_variables(variable: str, service: str) -> None:
    given = {f"{variable}_BATCH_SIZE": "3", f"{variable}_GPU": "2", "HF_CACHE": "/big/cache"}
    for files in ((BASE,), (BASE, SERVER)):
        services = compose(*files, **ON_SERVER, **given)["services"]
        assert settings(services[service]).models[0].max_batch_requests == 3
        assert services[service]["volumes"] == ["/big/cache:/hf-cache"]
    [device] = services[service]["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["2"]
    assert sum("2" in str(other.get("deploy")) for other in services.values()) == 1


def test_versions_and_domains() -> None:
    def image(**variables: str) -> str:
        return str(compose(BASE, **variables)["services"]["bge-m3"]["image"])

    assert image(HILBERT_IMAGE_VERSION="1.2", INFINITY_IMAGE_VERSION="0.0.77") == "hilbert:1.2"
    assert image(INFINITY_IMAGE_VERSION="0.0.77") == "hilbert:0.0.77"
    labels = compose(BASE, COMPOSE_DOMAIN="a.test")["services"]["nginx"]["labels"]
    assert labels["traefik.http.routers.hilbert.rule"] == "Host(`a.test`)"
    labels = compose(BASE, SERVER, **ON_SERVER)["services"]["nginx"]["labels"]
    assert labels["traefik.http.routers.hilbert.rule"] == "Host(`e.example`)"
    assert labels["traefik.http.routers.hilbert.entrypoints"] == "websecure"
    assert labels["traefik.http.routers.hilbert-http.middlewares"] == "hilbert-https"
    assert labels["traefik.http.middlewares.hilbert-https.redirectscheme.scheme"] == "https"
    with pytest.raises(KeyError, match="COMPOSE_SERVER_DOMAIN"):
        compose(BASE, SERVER)


def test_the_example_names_every_variable_and_no_other() -> None:
    text = "".join((COMPOSE / file).read_text() for file in (BASE, SERVER))
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    example = (COMPOSE / ".env.example").read_text()
    assert {name for name in used if name not in example} == set()
    assert set(environment_example()) <= used
    compose(BASE, SERVER, **environment_example())


def test_the_example_of_keys_lets_nobody_in_and_is_not_shipped_with_keys() -> None:
    with pytest.raises(BadKeyFile, match="no key"):
        parse_keys((COMPOSE / "keys/api_keys.txt.example").read_bytes())
    assert "api_keys.txt" in (COMPOSE / "keys/.gitignore").read_text()
    authz = compose(BASE)["services"]["authz"]
    assert authz["volumes"] == ["./keys:/keys:ro"]  # the folder: a mounted file would not follow a rename
    assert authz["command"][0] == "authz" and "--keys-file=/keys/api_keys.txt" in authz["command"]


def test_nginx_has_what_its_template_asks_for() -> None:
    nginx = compose(BASE)["services"]["nginx"]
    template = Path(COMPOSE / nginx["volumes"][0].split(":")[0])
    assert set(re.findall(r"\$\{(\w+)\}", template.read_text())) == set(nginx["environment"])
    hosts = {value.split(":")[0] for value in nginx["environment"].values() if re.search("[a-z]", value)}
    assert hosts == {*MODELS, "authz"}
    assert "unprivileged" in nginx["image"]


def test_one_process_for_all_models() -> None:
    (name, service), *others = compose("docker-compose.single.yml")["services"].items()
    assert name == "hilbert" and not others
    assert service["command"] == ["serve", "--config=/config/hilbert.yaml"]
    for volume in service["volumes"]:
        assert (COMPOSE / volume.split(":")[0]).exists(), volume
    given = load(["--config", str(COMPOSE / "config" / "hilbert.yaml")], {"HILBERT_GB": "3"})[0]
    assert {m.model_id: m.prefix for m in given.models} == {
        "BAAI/bge-m3": "/bge",
        "BAAI/bge-reranker-v2-m3": "/reranker",
        "intfloat/multilingual-e5-large": "/",
    }
    assert given.keys_file == "/keys/api_keys.txt" and given.memory == "3GB"
