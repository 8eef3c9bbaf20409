"""What is printed when the server is ready."""

from __future__ import annotations

import dataclasses

import pytest

from hilbert.cli.banner import banner
from hilbert.config import ServerSettings

URL = "http://127.0.0.1:7997"


@pytest.mark.parametrize(
    ("given", "environment", "variable", "hint"),
    [
        ({}, {}, None, None),
        ({"api_key": "sesame"}, {"HILBERT_API_KEY": "sesame"}, "HILBERT_API_KEY", None),
        ({"api_key": "sesame"}, {"INFINITY_API_KEY": "sesame"}, "INFINITY_API_KEY", None),
        ({"api_key": "sesame"}, {}, "HILBERT_API_KEY", "a key of --api-key"),
        ({"keys_file": "keys.txt"}, {}, "HILBERT_API_KEY", "a key of keys.txt"),
    ],
)
def test_the_curl_line_says_where_its_key_comes_from(given, environment, variable, hint, monkeypatch) -> None:
    for name in ("HILBERT_API_KEY", "INFINITY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = banner(dataclasses.replace(ServerSettings(), **given), URL)
    assert "sesame" not in shown
    assert (f"Bearer ${variable}" in shown) if variable else "Bearer" not in shown
    assert (hint in shown) if hint else "export" not in shown
