"""What a setting is: a dataclass field that also carries its flag, its help and its limits.

`option()` makes such a field, `options_of()` reads them back. The type comes from the annotation, so
one line in `settings.py` is all that a new setting needs: flag, environment name, parser, help and
documentation follow from it. Knows neither which settings exist nor where their values come from.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Check = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Option:
    """One setting, apart from its value.

    Attributes:
        name: the field's name; the flag is ``--name-with-dashes``, the environment ``HILBERT_NAME``.
        kind: ``str``, ``int``, ``float``, ``bool``, ``list`` (of texts) or ``dict`` (pairs of texts).
        default: the value when no source gives one; None where the machine or the model decides.
        default_note: what None means, for readers.
        help: one sentence without a full stop.
        metavar: what stands for the value in the help.
        short: a one-letter flag, or ``""``.
        aliases: further flags of the same meaning.
        choices: the only values allowed, or empty.
        synonyms: other words for choices, and the choice that each stands for.
        minimum: smallest value allowed.
        maximum: largest value allowed.
        check: returns what is wrong with a text, or None.
        infinity: the name after ``INFINITY_`` under which Infinity has this setting, or ``""``.
        plain_env: a variable without prefix that a peer reads for this setting, or ``""``.
        infinity_default: the default under ``hilbert v2`` where it differs.
        per_model: may be given once for all models or once per model.
        secret: never shown.
    """

    name: str
    kind: type
    default: Any
    help: str
    default_note: str = ""
    metavar: str = ""
    short: str = ""
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    synonyms: tuple[tuple[str, str], ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    check: Check | None = None
    infinity: str = ""
    plain_env: str = ""
    infinity_default: Any = None
    per_model: bool = False
    secret: bool = False

    @property
    def flag(self) -> str:
        """The long flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def flags(self) -> tuple[str, ...]:
        """Every spelling that sets it; for booleans those that set it true."""
        return (self.flag, *((self.short,) if self.short else ()), *self.aliases)

    @property
    def env(self) -> str:
        """The environment variable."""
        return "HILBERT_" + self.name.upper()

    @property
    def infinity_env(self) -> str:
        """Infinity's environment variable of the same meaning, or ``""``."""
        return "INFINITY_" + self.infinity if self.infinity else ""

    @property
    def envs(self) -> tuple[str, ...]:
        """Every environment variable that sets it, the strongest first."""
        return tuple(name for name in (self.env, self.infinity_env, self.plain_env) if name)


def option(default: Any, help: str, **details: Any) -> Any:
    """Declare a setting as a dataclass field; `details` are the attributes of `Option`."""
    shown = not details.get("secret", False)
    return dataclasses.field(
        default=default, repr=shown, metadata={"option": {"default": default, "help": help, **details}}
    )


def options_of(settings: type) -> tuple[Option, ...]:
    """The settings that a dataclass declares, in its order."""
    hints = typing.get_type_hints(settings)
    found = []
    for field in dataclasses.fields(settings):
        if "option" in field.metadata:
            kind, choices = _kind(hints[field.name])
            found.append(Option(name=field.name, kind=kind, choices=choices, **field.metadata["option"]))
    return tuple(found)


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:
    """The type to parse to, and the choices of a Literal. ``X | None`` parses as X."""
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return str, typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return dict if typing.get_origin(typing.get_args(hint)[0]) is tuple else list, ()
    return hint, ()
