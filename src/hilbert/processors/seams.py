"""Where a text may be cut so that its parts, tokenized apart, have the tokens of the whole.

A template writes the same words around every document, and the query with them. What all pairs of a request
share at their beginnings and at their ends is tokenized once, as far as a seam. A seam is a place that every
step of the tokenizer keeps apart, whatever stands further left and right:

* No added token reaches over it: none holds the two characters at the seam beside each other, and none of
  the tokenizer's takes in spaces or looks at its neighbours.
* And an added token begins there. The library takes these out first and treats what lies between them apart.
* Or, in byte-level tokenizers that split as GPT-2, GPT-4, Llama 3 or Qwen do, and normalise to NFC or not at
  all: an ASCII letter stands before it and an ASCII punctuation mark behind. No alternative of their patterns
  takes the two together, none looks back, the only one that looks ahead takes spaces alone; and an ASCII
  character composes with nothing before it.

Where there is no seam, texts are tokenized whole. tests/processors/test_seams.py compares both ways.
"""

from __future__ import annotations

import json
import string
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The splitting of GPT-4 and its heirs; they differ in how many digits a token may have.
_SPLITTINGS = frozenset(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")
)
_LETTERS = frozenset(string.ascii_letters)
_MARKS = frozenset(string.punctuation)
# How far a seam is looked for: behind it, what is gained is small beside what is looked through.
_REACH = 4_000


@dataclass(frozen=True, slots=True)
class Seams:
    """The seams of one tokenizer.

    Attributes:
        tokens: the added tokens that are taken out of the text itself, by their first character.
        bridged: the pairs of characters that some added token holds.
        splits_words: a letter and a punctuation mark behind it are always kept apart.
    """

    tokens: dict[str, tuple[str, ...]]
    bridged: frozenset[str]
    splits_words: bool

    @staticmethod
    def of(tokenizer: Tokenizer) -> Seams:
        """What is certain of a tokenizer; of one that is not known, only its added tokens."""
        added = [token for token in tokenizer.get_added_tokens_decoder().values() if token.content]
        if any(token.lstrip or token.rstrip or token.single_word for token in added):
            return Seams({}, frozenset(), False)
        tokens: dict[str, tuple[str, ...]] = {}
        bridged: set[str] = set()
        for token in added:
            for spelt in (token.content, unicodedata.normalize("NFC", token.content)):
                bridged.update(spelt[i : i + 2] for i in range(len(spelt) - 1))
            if not token.normalized:
                start = token.content[0]
                tokens[start] = (*tokens.get(start, ()), token.content)
        return Seams(tokens, frozenset(bridged), _splits_words(tokenizer))

    def shared(self, texts: AbstractSequence[str]) -> tuple[int, int]:
        """How much of several texts may be tokenized once for all of them.

        Args:
            texts: one or more.
        Returns:
            Characters at the beginning and at the end that all texts share, each as far as a seam; 0 for
            none. Together they are no more than the shortest text has.
        """
        if len(texts) < 2:
            return 0, 0
        first = texts[0]
        head = self._last(first, _num_shared(texts))
        room = min(map(len, texts)) - head
        ends = [text[len(text) - room :][::-1] for text in texts]
        return head, self._first(first, len(first) - _num_shared(ends))

    def holds(self, text: str, place: int, end: int | None = None) -> bool:
        """Whether there is a seam before the character at this place.

        Args:
            text: any text.
            place: from 1 to the text's length less 1.
            end: what follows from here on is not known.
        """
        before, behind = text[place - 1], text[place]
        if before + behind in self.bridged:
            return False
        if self.splits_words and before in _LETTERS and behind in _MARKS:
            return True
        return any(text.startswith(token, place, end) for token in self.tokens.get(behind, ()))

    def _last(self, text: str, end: int) -> int:
        """The last seam before `end`, as far as the text up to there tells; 0 for none."""
        places = range(end - 1, max(0, end - _REACH), -1)
        return next((place for place in places if self.holds(text, place, end)), 0)

    def _first(self, text: str, start: int) -> int:
        """How many characters follow the first seam behind `start`; 0 where there is none."""
        places = range(start + 1, min(len(text), start + _REACH))
        return next((len(text) - place for place in places if self.holds(text, place)), 0)


def _num_shared(texts: AbstractSequence[str]) -> int:
    """Characters at the beginning that all texts share; those of the first and the last in order decide."""
    low, high = min(texts), max(texts)
    return bisect_left(range(len(low)), True, key=lambda place: low[: place + 1] != high[: place + 1])


def _splits_words(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer normalises and splits as the argument above has it."""
    if tokenizer.pre_tokenizer is None or _state(tokenizer.normalizer) not in (None, {"type": "NFC"}):
        return False
    splitting = _state(tokenizer.pre_tokenizer)
    steps = splitting.get("pretokenizers", [splitting])
    *before, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last["use_regex"]:
        return not before
    return len(before) == 1 and _is_known(before[0])


def _is_known(split: dict[str, Any]) -> bool:
    return (
        split["type"] == "Split"
        and split["pattern"].get("Regex") in _SPLITTINGS
        and split["behavior"] == "Isolated"
        and not split["invert"]
    )


def _state(step: Any) -> Any:
    """A step of a tokenizer as tokenizer.json has it."""
    return None if step is None else json.loads(step.__getstate__())
