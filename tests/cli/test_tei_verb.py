"""``hilbert tei`` on a real server, as its users start it and call it."""

from __future__ import annotations

import httpx2
import numpy as np

from hilbert.testing.models import tiny_model


def test_hilbert_tei(start, tmp_path) -> None:
    folder = str(tiny_model("static", tmp_path / "tiny" / "static"))
    flags = (
        "--model-id",
        folder,
        "--auto-truncate",
        "--tokenization-workers",
        "2",
        "--default-prompt",
        "q: ",
    )
    server = start(
        *flags, "--max-client-batch-size", "3", verb="tei", API_KEY="sesame", SERVED_MODEL_NAME="m"
    )
    key = {"authorization": "Bearer sesame"}

    def post(path: str, inputs: object) -> httpx2.Response:
        return httpx2.post(server.url + path, json={"inputs": inputs}, headers=key, timeout=30)

    assert (server.get("/").status_code, server.get("/").text) == (200, "")
    assert server.get("/health").status_code == server.get("/ping").status_code == 200
    info = server.get("/info", **key).json()
    assert (info["served_model_name"], info["max_client_batch_size"]) == ("m", 3)
    vectors = np.array(post("/embed", ["a room", "one more guest"]).json(), np.float32)
    np.testing.assert_array_equal(
        np.array(post("/", ["a room", "one more guest"]).json(), np.float32), vectors
    )
    prompted = httpx2.post(
        server.url + "/v1/embeddings", json={"input": "q: a room", "prompt": ""}, headers=key, timeout=30
    ).json()["data"][0]["embedding"]
    np.testing.assert_allclose(prompted, vectors[0], atol=1e-6)
    assert post("/embed", ["a"] * 4).json()["error_type"] == "Validation"
    assert server.get("/info").status_code == 401
    page = httpx2.options(
        server.url + "/embed",
        headers={"origin": "http://x", "access-control-request-method": "POST"},
    )
    assert page.headers["access-control-allow-origin"] in ("*", "http://x")
    assert server.stop() == 0
    assert [line for line in server.errors if "no meaning" in line] == [
        "hilbert tei: --tokenization-workers has no meaning here: texts are tokenized where they arrive, "
        "long ones in threads\n"
    ]
