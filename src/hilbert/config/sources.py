"""Where settings come from: the command line and the environment, both as plain text.

Every source yields the same thing, ``{name: Given}``; `load.py` decides which one wins. (A settings
file will be one more function here.) Values are not interpreted yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hilbert.config.option import Option


class BadSetting(Exception):
    """A setting cannot be used. The message names the flag, the value and the remedy.

    Attributes:
        exit_code: what the process should end with.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Given:
    """What one source says about one setting.

    Attributes:
        origin: how the user wrote it (``--port`` or ``HILBERT_PORT``), for messages.
        texts: the values in order; several only for settings that are per model.
    """

    origin: str
    texts: tuple[str, ...]


Source = Mapping[str, Given]


def from_flags(argv: Sequence[str], options: Sequence[Option]) -> Source:
    """Read a command line: ``--name value``, ``--name=value``, ``-m value``, ``--yes`` / ``--no-yes``.

    A repeated flag adds a value to a per-model setting and replaces the value of any other.

    Raises:
        BadSetting: an unknown flag, a flag without its value, or a word that belongs to no flag.
    """
    by_flag = {flag: option for option in options for flag in option.flags}
    negative = {"--no-" + option.flag[2:]: option for option in options if option.kind is bool}
    given: dict[str, Given] = {}
    words = iter(argv)
    for word in words:
        flag, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
        if flag in negative and not equals:
            option, text = negative[flag], "false"
        elif flag in by_flag:
            option = by_flag[flag]
            if not equals:
                text = "true" if option.kind is bool else _value_after(flag, words)
        else:
            raise BadSetting(_unknown(word, flag, [*by_flag, *negative]))
        before = given[option.name].texts if option.per_model and option.name in given else ()
        given[option.name] = Given(flag, (*before, text))
    return given


def from_environment(environ: Mapping[str, str], options: Sequence[Option]) -> Source:
    """Read ``HILBERT_*`` and the names that peers have for the same setting; ours wins.

    Per-model settings are lists divided by ``;`` of which one trailing ``;`` is dropped. An empty
    variable counts as not set.
    """
    given = {}
    for option in options:
        for name in option.envs:
            text = environ.get(name, "")
            if text:
                texts = tuple(text.removesuffix(";").split(";")) if option.per_model else (text,)
                given[option.name] = Given(name, texts)
                break
    return given


def _value_after(flag: str, words: Iterator[str]) -> str:
    text = next(words, None)
    if text is None:
        raise BadSetting(f"{flag} needs a value after it")
    return text


def _unknown(word: str, flag: str, known: list[str]) -> str:
    import difflib  # only when something is wrong already

    if not flag.startswith("-"):
        return f"unexpected word {word!r}; if it is the model, write --model-id {word}"
    near = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "--help lists them all"
    return f"unknown flag {flag}; {hint}"
