"""Chat templates: messages to the one text that is tokenized, as sentence-transformers renders them.

A template is code from the repository, so it runs in jinja2's sandbox, and texts reach it as values only.
Knows no tokenizer.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from hilbert.core import ChatSpec
from hilbert.core.request import IntArray
from hilbert.errors import InvalidInput, ModelUnavailable

if TYPE_CHECKING:
    from jinja2 import Template

# Two texts that tokenize differently: what their renderings end in together is the template's own end.
FILLERS = ("0", "1 2 3 4")
# A pair, and the same with another query, and with another document.
_PROBES = (("alpha", "bravo"), ("charlie", "bravo"), ("alpha", "foxtrot"))


class ChatTemplate:
    """A compiled template. Any number of threads may render with it at once."""

    def __init__(self, chat: ChatSpec) -> None:
        """Compile the template.

        Raises:
            ModelUnavailable: it is not valid jinja2.
        """
        from jinja2 import TemplateError

        self._chat = chat
        self._error = TemplateError
        try:
            self._template = _compile(chat.template)
        except TemplateError as error:
            raise ModelUnavailable(f"its chat template cannot be compiled: {error}") from error

    @property
    def num_chars(self) -> int:
        """Characters that it adds to a text, or to a pair where it takes no text alone."""
        with suppress(InvalidInput):
            return len(self.lone(""))
        with suppress(InvalidInput):
            return len(self.pair("", ""))
        return 0

    def lone(self, text: str, prompt: str = "", side: str | None = None) -> str:
        """A text as the user's message, behind the prompt as the system's.

        Args:
            text: what the user says.
            prompt: ``""`` for no such message.
            side: ``"query"`` or ``"document"``, for templates that tell them apart.
        Raises:
            InvalidInput: the template refuses these messages.
        """
        return self._render([("user", text)], prompt, side)

    def pair(self, query: str, document: str, prompt: str = "") -> str:
        """A query and a document, each a message of its own role. Arguments and errors as in `lone`."""
        return self._render([("query", query), ("document", document)], prompt, None)

    def check_pairs(self) -> None:
        """Make sure that the template has a place for a query and for a document.

        Raises:
            ModelUnavailable: it has not; sentence-transformers refuses it as well.
        """
        try:
            base, *others = [self.pair(*probe) for probe in _PROBES]
            failure = "it leaves one of them out" if base in others else ""
        except InvalidInput as error:
            failure = error.message
        if failure:
            raise ModelUnavailable(
                "its chat template has no place for messages of the roles 'query' and 'document' "
                f"({failure}); put a chat_template.jinja that has into the repository"
            )

    def _render(self, texts: list[tuple[str, str]], prompt: str, side: str | None) -> str:
        spoken = [("system", prompt), *texts] if prompt else texts
        messages = [{"role": role, "content": self._content(text)} for role, text in spoken]
        variables = self._chat.variables if side is None else {"task": side} | self._chat.variables
        arguments: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": False}
        try:
            return self._template.render(arguments | variables, messages=messages)
        except (self._error, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InvalidInput(f"The model's chat template refuses this request: {error}.") from error

    def _content(self, text: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": text}] if self._chat.is_structured else text


def common_suffix(first: IntArray, second: IntArray) -> IntArray:
    """The longest end that two token sequences share; none where one of them is all of it."""
    size = min(len(first), len(second))
    differs = (first[len(first) - size :] != second[len(second) - size :]).nonzero()[0]
    if len(differs) == 0:
        return first[:0]
    return first[len(first) - (size - 1 - int(differs[-1])) :]


def _compile(source: str) -> Template:
    """Source: the environment of transformers' `apply_chat_template`."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)
