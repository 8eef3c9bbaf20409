"""Which prompt stands before an input.

Decides between a request's `prompt`, `prompt_name`, `input_type` and the model's default, in this order.
Knows no tokenizer.
"""

from __future__ import annotations

from hilbert.core import EmbedRequest, ModelSpec
from hilbert.errors import InvalidInput

# The names under which repositories keep their prompts, first match wins, letters of either case. For queries
# and documents sentence-transformers' own encode_query and encode_document come first. (Its encode_document
# never gets past "document", as it gives every model an empty prompt of that name; the prompts here are the
# repository's own, so that a model with "passage" alone gets what its author meant.) The others are those of
# nomic-embed-text, jina-embeddings-v3 and EmbeddingGemma.
_NAMES_BY_INPUT_TYPE: dict[str, tuple[str, ...]] = {
    "query": ("query", "retrieval.query", "retrieval-query", "search_query"),
    "document": (
        "document", "passage", "corpus", "retrieval.passage", "retrieval-document", "search_document",
    ),
    "classification": ("classification",),
    "clustering": ("clustering", "separation"),
    "similarity": ("similarity", "text-matching", "sts"),
}  # fmt: skip


def resolve_prompt(spec: ModelSpec, request: EmbedRequest) -> str:
    """The text to put before every input of this request; ``""`` for none.

    An `input_type` that the model has no prompt for means no prompt at all, never the default one,
    as in sentence-transformers.

    Raises:
        InvalidInput: `prompt_name` or `input_type` is unknown; the message lists what is known.
    """
    if request.prompt is not None:
        return request.prompt
    if request.prompt_name is not None:
        return _named(spec, request.prompt_name)
    if request.input_type is not None:
        return _by_input_type(spec, request.input_type)
    if spec.multivector is not None:  # late interaction has two sides, and nothing between them
        return _by_input_type(spec, "document")
    if spec.default_prompt_name is not None:
        return spec.prompts.get(spec.default_prompt_name) or ""
    return ""


def _named(spec: ModelSpec, name: str) -> str:
    if name == "":
        return ""
    prompt = spec.prompts.get(name)
    if prompt is not None:
        return prompt
    known = ", ".join(sorted(spec.prompts)) or "none"
    raise InvalidInput(
        f"prompt_name {name!r} is unknown; this model's prompts: {known}.", param="prompt_name"
    )


def _by_input_type(spec: ModelSpec, input_type: str) -> str:
    names = _NAMES_BY_INPUT_TYPE.get(input_type)
    if names is None:
        raise InvalidInput(
            f"input_type {input_type!r} is unknown; use {', '.join(_NAMES_BY_INPUT_TYPE)}.",
            param="input_type",
        )
    prompts = {name.lower(): prompt or "" for name, prompt in spec.prompts.items()}
    return next((prompts[name] for name in names if name in prompts), "")
