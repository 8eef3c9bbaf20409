"""The configuration page, made from the table.

``python -m hilbert.config.docs docs/configuration.md`` writes it; a test says when it is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hilbert.config import tei
from hilbert.config.infinity import HIDDEN
from hilbert.config.load import MODEL_OPTIONS, SERVER_OPTIONS
from hilbert.config.option import Option

_HEAD = """\
# Configuration

Every setting of `hilbert serve` is a flag, an environment variable and a key of the settings file
([many-models.md](many-models.md)). A flag wins over the environment, the environment over the file, the file
over `--preset`, that over the default. This page is made from the code (`make docs`).

- A switch is `--flag` or `--no-flag`; in the environment `true` or `false`.
- An empty variable counts as not set.
- The settings of the first table are per model: repeat the flag, or divide the variable's values by
  `;`. One value counts for all models; otherwise there must be one for each.
- `INFINITY_*` variables of the same meaning are read too; `HILBERT_*` wins over them.
- Keys and tokens belong in the environment, where a list of processes does not show them.
"""

_INFINITY = """\
## Coming from Infinity

`hilbert v2 …` (and `v1`) takes Infinity's command line. The flags above keep their names; `--host` is
`0.0.0.0` by default there, as in Infinity. Different on purpose: `--trust-remote-code` is off unless
given. These flags (and their `INFINITY_*` variables) are
accepted, have no effect here and say so once: {flags}. `--device-id 1` together with `--device cuda`
means `cuda:1`. With `--embedding-dtype` a request may still name another `output_dtype`.
"""


_TEI = """\
## Coming from text-embeddings-inference

`hilbert tei …` takes TEI's command line and its environment variables, which have no prefix
({variables}).
It listens on `0.0.0.0:3000` by default, answers `GET /` with its health, shows metrics under TEI's names,
too, and lets pages of any origin call unless `--cors-allow-origin` names some. Limits that only refuse
keep the wider defaults of Hilbert.
`--default-prompt TEXT` is put before inputs of requests that name no prompt; `--pooling splade` means
`--task sparse_embed`. `--dense-path` is refused: every Dense module that the model names is applied.
These flags are accepted, have no effect here and say so once: {flags}.
"""


def configuration_page() -> str:
    """The page as Markdown."""
    silent = [option.flag for option in HIDDEN if option.name != "device_id"]
    return "\n".join(
        [
            _HEAD,
            "## Models",
            "",
            _table(MODEL_OPTIONS),
            "",
            "## Server",
            "",
            _table(SERVER_OPTIONS),
            "",
            _INFINITY.format(flags=", ".join(f"`{flag}`" for flag in silent)),
            _TEI.format(
                variables=", ".join(f"`{name}`" for name in tei.VARIABLES),
                flags=", ".join(f"`--{name.replace('_', '-')}`" for name in tei.MEANINGLESS),
            ),
        ]
    )


def _table(options: Sequence[Option]) -> str:
    rows = ["| flag | environment | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| {', '.join(f'`{flag}`' for flag in option.flags)} | {_names(option)} | {_default(option)} "
        f"| {_meaning(option)} |"
        for option in options
    ]
    return "\n".join(rows)


def _names(option: Option) -> str:
    return ", ".join(f"`{name}`" for name in option.envs)


def _default(option: Option) -> str:
    if option.default_note:
        return option.default_note
    return f"`{str(option.default).lower() if option.kind is bool else option.default}`"


def _meaning(option: Option) -> str:
    choices = f" ({', '.join(f'`{choice}`' for choice in option.choices)})" if option.choices else ""
    others = "".join(f"; `{word}` is `{choice}`" for word, choice in option.synonyms)
    return option.help + choices + others


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(configuration_page())
