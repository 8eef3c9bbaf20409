"""BERT's tokenizer, word by word, where that provably gives the same tokens.

BERT's normaliser works character by character and its pre-tokenizer splits at every space, so in that
pipeline the tokens of a text are those of its space-separated words, one after the other. Two things
follow, and both are used only after `splits_at_spaces` has checked that the pipeline is this one:

* The tokens of a word can be remembered. Common words make up most of any text, so a text of 98 tokens
  costs 12 µs when all its words are known, about 60 when it is source code never seen before, and 130
  through the tokenizer. A word that is not known is taken apart at its ASCII punctuation, which the
  pre-tokenizer isolates as well (unless an added token such as ``[MASK]``, which the tokenizer looks for
  first, may be in it); only pieces that are new go through the tokenizer.
* Of a text that will be truncated, only a prefix need be looked at: 100,000 characters cost the
  tokenizer 40 ms for the first 256 tokens. Each word with an ASCII letter or digit yields at least one
  token, so a prefix with as many such words as tokens are wanted holds all of them.

Other whitespace than the space is left inside words: it is the tokenizer's to interpret.
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING

import numpy as np

from hilbert.core.request import IntArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# One match per space-separated word that holds an ASCII letter or digit; the match ends at a space.
_COUNTED_WORD = re.compile(r"[A-Za-z0-9][^ ]*")
# Below this many characters per wanted token the search costs more than it saves.
_MIN_CHARS_PER_TOKEN = 8

# One ASCII punctuation character, or a run of anything else.
_PIECE = re.compile(r"[!-/:-@\[-`{-~]|[^!-/:-@\[-`{-~]+")

# Words are tokenized together with this between them. A batch call would use threads, which cost more than
# a handful of words.
_SEPARATOR = " . "
_MAX_JOINED = 16

# About 6 MB; beyond it the table starts anew, so that a stream of new words cannot fill the memory.
_MAX_WORDS = 32_768
# Longer ones are rarely seen again, whole words with punctuation in them least of all.
_MAX_PIECE_CHARS = 48
_MAX_WORD_CHARS = 12

_BYTES_PER_ID = 4


def splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether this tokenizer's pipeline is the one that the argument above holds for."""
    from tokenizers import models, normalizers, pre_tokenizers

    return (
        isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.model, models.WordPiece)
        and not any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values())
    )


def cut(text: str, num_tokens: int) -> str:
    """A prefix of `text` with the same first `num_tokens` tokens; often `text` itself."""
    if len(text) < num_tokens * _MIN_CHARS_PER_TOKEN:
        return text
    for count, word in enumerate(_COUNTED_WORD.finditer(text), start=1):
        if count == num_tokens:
            return text[: word.end()]
    return text


class WordTable:
    """Remembers the tokens of words. Any number of threads may use it at once.

    A full table is replaced, never emptied, so a thread that holds the old one is not disturbed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer for which `splits_at_spaces` holds."""
        self._tokenizer = tokenizer
        self._table: dict[str, bytes] = {}
        added = tokenizer.get_added_tokens_decoder().values()
        # Those that are looked for in the normalised text cannot be told from the text itself.
        self._can_take_apart = not any(token.normalized for token in added)
        self._added_tokens = tuple(token.content for token in added)
        truncation = tokenizer.truncation
        self._truncates_at = truncation["max_length"] if truncation else float("inf")
        self._separator_id = self._ids(_SEPARATOR)[0]
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        framed = tokenizer.encode("a").ids
        at = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        self._prefix = array("i", framed[:at]).tobytes()
        self._suffix = array("i", framed[at + len(bare) :]).tobytes()

    def encode(self, text: str, max_len: int | None) -> IntArray:
        """The tokens of a text with the special tokens around them.

        Args:
            text: any text.
            max_len: cut from the right to so many tokens, special tokens included; None does not cut.
        Returns:
            ``[n]`` int32, read-only.

        Raises:
            TypeError: the text is not valid Unicode.
        """
        content = self._content(text)
        if max_len is not None:
            content = content[: max_len * _BYTES_PER_ID - len(self._prefix) - len(self._suffix)]
        return np.frombuffer(self._prefix + content + self._suffix, dtype=np.int32)

    def content(self, text: str) -> IntArray:
        """The tokens of a text alone, ``[n]`` int32, read-only.

        Raises:
            TypeError: the text is not valid Unicode.
        """
        return np.frombuffer(self._content(text), dtype=np.int32)

    def _content(self, text: str) -> bytes:
        words = text.replace("\n", " ").split(" ")
        ids = list(map(self._table.get, words))
        return b"".join(self._learn(words, ids) if None in ids else ids)  # type: ignore[arg-type]  # no None

    def _learn(self, words: list[str], ids: list[bytes | None]) -> list[bytes]:
        """Fill in the tokens that are missing; those of words that may be seen again are remembered."""
        known = self._table
        apart = {word: self._pieces(word) for word, found in zip(words, ids, strict=True) if found is None}
        new = dict.fromkeys(piece for pieces in apart.values() for piece in pieces if piece not in known)
        found = dict(zip(new, self._tokens_of(list(new)), strict=True)) if new else {}
        joined = {
            word: b"".join([found[piece] if piece in found else known[piece] for piece in pieces])
            for word, pieces in apart.items()
        }
        if len(known) + len(found) + len(joined) > _MAX_WORDS:
            self._table = {}
        self._table.update((p, i) for p, i in found.items() if len(p) <= _MAX_PIECE_CHARS)
        self._table.update((w, i) for w, i in joined.items() if len(w) <= _MAX_WORD_CHARS)
        return [joined[word] if i is None else i for word, i in zip(words, ids, strict=True)]

    def _tokens_of(self, pieces: list[str]) -> list[bytes]:
        """The tokens of each piece. A call costs as much as three words, so short lists go in one."""
        if 1 < len(pieces) <= _MAX_JOINED:
            together = self._ids(_SEPARATOR.join(pieces))
            parts: list[list[int]] = [[]]
            for token_id in together:
                if token_id == self._separator_id:
                    parts.append([])
                else:
                    parts[-1].append(token_id)
            # Else a piece holds the separator, or the tokenizer's own truncation may have cut the end off.
            if len(parts) == len(pieces) and len(together) < self._truncates_at:
                return [array("i", part).tobytes() for part in parts]
        if len(pieces) <= _MAX_JOINED:
            return [array("i", self._ids(piece)).tobytes() for piece in pieces]
        encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        return [array("i", encoding.ids).tobytes() for encoding in encodings]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _pieces(self, word: str) -> list[str]:
        """Parts of a word whose tokens, put together, are the word's own."""
        if not self._can_take_apart or any(token in word for token in self._added_tokens):
            return [word]
        return _PIECE.findall(word)
