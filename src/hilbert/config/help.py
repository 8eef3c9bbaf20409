"""The text of ``hilbert serve --help``, from the table. Plain text, so it costs no import."""

from __future__ import annotations

import dataclasses
import textwrap

from hilbert.config import tei
from hilbert.config.load import MODEL_OPTIONS, SERVER_OPTIONS
from hilbert.config.option import Option

_COLUMN = 34
_PURPOSE = {
    "runpod": (
        "Take jobs of RunPod's serverless platform. MODEL_NAMES, BATCH_SIZES, DTYPES, BACKEND,",
        "INFINITY_QUEUE_SIZE, RUNPOD_MAX_CONCURRENCY and HTTP_CLIENT_* count as in its own worker; the",
        "SDK's flags (--rp_serve_api, --test_input, ...) are passed on to it.",
    )
}


def help_text(verb: str = "serve") -> str:
    """Usage, and one paragraph per setting."""
    lines = [
        f"Usage: hilbert {verb} [--model-id ID] [FLAGS]",
        "",
        *_PURPOSE.get(verb, ("Serve models over HTTP.",)),
        "",
        "Every flag can be set in the environment as HILBERT_<NAME>",
        "(HILBERT_MAX_BATCH_TOKENS=2048); a flag wins over the environment. Lists for several models",
        "are divided by ';' there.",
        "",
        "Models (one value for all models, or one for each):",
    ]
    names = tei.named if verb == "tei" else tuple
    lines += [line for option in names(MODEL_OPTIONS) for line in _paragraph(option, verb)]
    lines += ["", "Server:"]
    lines += [line for option in names(SERVER_OPTIONS) for line in _paragraph(option, verb)]
    return "\n".join([*lines, f"  {'--help, -h':<{_COLUMN - 2}}show this", ""])


def _default(option: Option, verb: str) -> str:
    if verb == "tei" and option.name in tei.DEFAULTS:
        option = dataclasses.replace(option, default=tei.DEFAULTS[option.name], default_note="")
    if option.default_note:
        return option.default_note.replace("`", "")
    if option.kind is bool:
        return "on" if option.default else "off"
    is_other = verb == "v2" and option.infinity_default is not None
    return str(option.infinity_default if is_other else option.default)


def _paragraph(option: Option, verb: str) -> list[str]:
    if option.kind is bool:
        head = f"{option.flag} / --no-{option.flag[2:]}"
    else:
        value = option.metavar or ("|".join(option.choices) if option.choices else "N")
        head = ", ".join(option.flags) + " " + value
    text = textwrap.wrap(f"{option.help} [{_default(option, verb)}]", 100 - _COLUMN)
    if len(head) + 4 > _COLUMN:
        return [f"  {head}", *(" " * _COLUMN + line for line in text)]
    return [f"  {head:<{_COLUMN - 2}}{text[0]}", *(" " * _COLUMN + line for line in text[1:])]
