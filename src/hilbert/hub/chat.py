"""Chat templates: which one a repository has, and how sentence-transformers calls it.

Reads files only; rendering is the processors' work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hilbert.core import ChatSpec
from hilbert.errors import ModelUnavailable
from hilbert.hub.chain import Unsupported
from hilbert.hub.files import MAX_JSON_BYTES, read_object

TEMPLATE_FILE = "chat_template.jinja"
# The roles that sentence-transformers gives to the two texts of a pair.
PAIR_ROLES = ("query", "document")
# Families whose templates look structured to the test below and are not.
FLAT_FAMILIES = frozenset({"apertus", "deepseek_v3", "gpt_oss", "seed_oss"})
STRUCTURED_SIGNS = ("content[0]", ".type", "'type'", '"type"', "message.content[")
# What a chat template's arguments may hold beside values for the template itself.
TOKENIZER_ARGUMENTS = frozenset({"padding", "truncation", "max_length", "return_tensors"})


# What transformers' processors put around a query: a token by name before it, its prefix, what follows it ten
# times, the end, and whether the tokenizer adds its special tokens.
_QUERY_FRAMES = {
    "colpali": ("bos_token", "Question: ", "pad_token", "\n", False),
    "colqwen2": ("", "Query: ", "pad_token", "\n", False),
    "colmodernvbert": ("", "", "<end_of_utterance>", "", True),
}
_QUERY_TEMPLATE = "{{ start }}{{ prefix }}{{ messages[-1].content }}{{ thought * 10 }}{{ end }}"


def frame_of_queries(folder: Path, family: str) -> ChatSpec:
    """What a visual retriever's processor makes of a text: a query, with tokens to think behind it.

    Source: `ColPaliProcessor`, `ColQwen2Processor`, `ColModernVBertProcessor`.

    Raises:
        ModelUnavailable: the family is not known, or its tokenizer names no padding.
    """
    if family not in _QUERY_FRAMES:
        known = ", ".join(_QUERY_FRAMES)
        raise ModelUnavailable(
            f"{folder}: visual retrievers of the type {family!r} are not served; {known} are"
        )
    start, prefix, thought, end, is_framed = _QUERY_FRAMES[family]
    tokens = _special_tokens(folder)
    if thought.endswith("_token") and thought not in tokens:
        raise ModelUnavailable(f"{folder / 'tokenizer_config.json'} names no {thought}")
    own = read_object(folder / "processor_config.json").get("query_prefix")
    prefix = own if isinstance(own, str) and own else prefix
    words = {"start": tokens.get(start, ""), "prefix": prefix, "thought": tokens.get(thought, thought)}
    variables = {**tokens, **words, "end": end}
    return ChatSpec(_QUERY_TEMPLATE, False, variables, restores_suffix=False, is_framed=is_framed)


def read_template(folder: Path) -> str | None:
    """The source of a repository's chat template, or None where it has none.

    Raises:
        ModelUnavailable: the file cannot be read.
    """
    file = folder / TEMPLATE_FILE
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ModelUnavailable(f"{file} has {file.stat().st_size} bytes; is it a template?")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnavailable(f"{file} cannot be read: {error}.") from error
    value = read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(value, list):
        named = [entry for entry in value if isinstance(entry, dict)]
        value = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    return value if isinstance(value, str) and value else None


def names_pair_roles(template: str) -> bool:
    """Whether a template speaks of a query and a document by role: only a reranker's does."""
    return all(f"'{role}'" in template or f'"{role}"' in template for role in PAIR_ROLES)


def read_chat(
    folder: Path, config: dict[str, Any], message: dict[str, Any] | None, processing: dict[str, Any]
) -> ChatSpec:
    """How the repository's texts go through its template.

    Args:
        folder: of the Transformer module.
        config: its config.json.
        message: what `modality_config` says of messages; None where it is left to sentence-transformers.
        processing: `processing_kwargs` of the Transformer module.
    Raises:
        Unsupported: the template is called with arguments for the tokenizer.
        ModelUnavailable: there is no template.
    """
    template = read_template(folder)
    if template is None:
        raise ModelUnavailable(
            f"{folder} wants its texts to go through a chat template and holds none; add {TEMPLATE_FILE}."
        )
    arguments = processing.get("chat_template")
    arguments = dict(arguments) if isinstance(arguments, dict) else {}
    if found := sorted(TOKENIZER_ARGUMENTS & arguments.keys()):
        raise Unsupported(f"its chat template is called with {found[0]!r}")
    restores_suffix = bool(arguments.pop("restore_suffix", True))
    wanted = (message or {}).get("format", "auto")
    is_structured = _is_structured(template, config) if wanted == "auto" else wanted == "structured"
    return ChatSpec(template, is_structured, _special_tokens(folder) | arguments, restores_suffix)


def _is_structured(template: str, config: dict[str, Any]) -> bool:
    """Source: the message format that sentence-transformers' InputFormatter infers."""
    if config.get("model_type") in FLAT_FAMILIES:
        return False
    return any(sign in template for sign in STRUCTURED_SIGNS)


def _special_tokens(folder: Path) -> dict[str, Any]:
    """Special tokens by name, as transformers hands them to a template."""
    tokens = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_object(folder / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return tokens
