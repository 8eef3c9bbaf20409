"""The snippets of docs/migrate/from-tei.md and from-sie.md, as they stand there, against a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients_house import World, library

for needed in ("huggingface_hub", "requests", "sie_sdk"):
    library(needed)
PAGES = Path(__file__).parents[3] / "docs/migrate"


def run_all(page: str, world: World) -> list[dict[str, Any]]:
    """What each snippet of a page leaves behind."""
    found = []
    for code in re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(), re.M | re.S):
        left: dict[str, Any] = {}
        exec(compile(code.replace("http://127.0.0.1:7997", world.open), page, "exec"), left)
        found.append(left)
    return found


@pytest.mark.row("huggingface_hub, requests", "every snippet of docs/migrate/from-tei.md")
def test_moving_from_tei(world: World) -> None:
    hub, plain, envelope = run_all("from-tei.md", world)
    assert hub["vectors"].shape == (2, 384) and len(hub["near"]) == 1
    assert np.shape(plain["vectors"]) == np.shape(envelope["vectors"]) == (1, 384)
    assert np.allclose(plain["vectors"], hub["vectors"][:1], atol=1e-6)
    assert {rank["index"] for rank in plain["ranks"]} == {0, 1} and plain["tokens"][0][1]["text"] == "There"
    assert plain["about"]["served_model_name"] == "minilm"


@pytest.mark.row("sie_sdk", "every snippet of docs/migrate/from-sie.md")
def test_moving_from_sie(world: World) -> None:
    (left,) = run_all("from-sie.md", world)
    assert [item["dense"].shape for item in left["vectors"]] == [(384,)] * 2
    assert left["ranking"]["scores"][0]["item_id"] == "a" and len(left["classes"]["classifications"]) == 3
    assert "minilm" in left["served"]
