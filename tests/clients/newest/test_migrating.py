"""The snippets of docs/migrate/from-cohere.md, as they stand there, against a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from clients_house import World, library

for needed in ("cohere", "voyageai", "requests", "openai"):
    library(needed)
PAGE = Path(__file__).parents[3] / "docs/migrate/from-cohere.md"
SNIPPETS = {
    title: code
    for title, code in re.findall(r"^## (\w+)$.*?^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
}


@pytest.mark.row("Cohere, Jina, Voyage, OpenAI", "every snippet of docs/migrate/from-cohere.md")
@pytest.mark.parametrize("maker", ["Cohere", "Jina", "Voyage", "OpenAI"])
def test_the_snippet_after_moving(maker: str, world: World) -> None:
    code = SNIPPETS[maker].replace("http://127.0.0.1:7997", world.open).replace("all-MiniLM-L6-v2", "minilm")
    left: dict[str, Any] = {}
    exec(compile(code, f"{PAGE.name}: {maker}", "exec"), left)
    assert [len(vector) for vector in left["vectors"]] == [256 if maker == "OpenAI" else 384] * 2
    assert left.get("best", 0) == 0
    if maker == "Voyage":
        assert len(left["chunks"]) == 2
