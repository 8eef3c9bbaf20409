"""The words that makers have for what an input is for, and core's word for each.

Voyage has two, Cohere five, Jina five, and they hardly overlap, so one table takes all of them wherever such
a word is taken. Which prompt of a model that means is the model's business.
"""

from __future__ import annotations

from hilbert.errors import InvalidInput

PURPOSES: dict[str, str] = {
    "query": "query",
    "document": "document",
    # Jina's `task`
    "retrieval.query": "query",
    "retrieval.passage": "document",
    "text-matching": "similarity",
    "classification": "classification",
    "separation": "clustering",
    # Cohere's `input_type`
    "search_query": "query",
    "search_document": "document",
    "clustering": "clustering",
    "image": "document",
}


def to_purpose(word: str | None, field: str) -> str | None:
    """Core's `input_type` for any maker's word; None for none.

    Raises:
        InvalidInput: nobody has this word.
    """
    if word is None or word in PURPOSES:
        return None if word is None else PURPOSES[word]
    raise InvalidInput(f"{field} {word!r} is unknown; use {', '.join(PURPOSES)}.", param=field)
