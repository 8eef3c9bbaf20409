"""Small real tokenizers, built in code from one word list: WordPiece, two kinds of BPE, Unigram.

Each has the normaliser, the splitting, the special tokens and the post-processor of the families that use
it. Every text tokenizes: words of the list to one or two tokens, letters to one each, and what is left to
bytes or the unknown token. Nothing is trained, so the ids are the same on every machine.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORD_LIST = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an "
    "they which one you were all her she there would their we him been has when who will no more if out so "
    "up said what its about than into them can only other time new some could these two may first then do "
    "any like my now over such our man me even most made after also did many off before must well back "
    "through years much where your way down should because long each just state people those too mr how "
    "little good world make very year still see work life between never under last might us while house "
    "another day own water room light night search query document vector space angle music river mountain "
    "hotel guest model token sentence embedding science history machine language paper summer winter garden"
)
WORDS = WORD_LIST.split()
LETTERS = string.ascii_letters + string.digits + string.punctuation
FOREIGN_LETTERS = "äöüßéèçñøåαβγδпривет日本語שלום"
SPACE = "▁"


def word_piece(cls: str, sep: str, pad: str, unk: str, mask: str) -> Tokenizer:
    """As BERT has it: lower-cased, accents stripped, split at punctuation, continued with ``##``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = sorted(set(LETTERS.lower() + FOREIGN_LETTERS))
    pieces = [pad, unk, cls, sep, mask, *letters, *(f"##{c}" for c in letters), *WORDS]
    pieces += ["##s", "##ing", "##ed", "##er", "##ly"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    tokenizer.add_special_tokens([pad, unk, cls, sep, mask])
    return tokenizer


def _prefixes(space: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Every prefix of every word (with its leading space) and the merges that build it letter by letter."""
    pieces: dict[str, None] = {}
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        for text in (space + word, word):
            for end in range(1, len(text)):
                merges[(text[:end], text[end])] = None
                pieces[text[: end + 1]] = None
            if len(pieces) > 700:
                return list(pieces), list(merges)
    return list(pieces), list(merges)


def byte_level_bpe(
    specials: Sequence[str], before: Sequence[str], after: Sequence[str], *, nfc: bool = False
) -> Tokenizer:
    """As GPT-2 and its heirs have it: bytes as letters, so that nothing is unknown.

    Args:
        specials: special tokens, in the order of their ids from 0.
        before: special tokens put in front of every text.
        after: special tokens appended to every text.
        nfc: normalise to NFC first, as Qwen does.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces, merges = _prefixes("Ġ")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys([*specials, *alphabet, *pieces]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_template(tokenizer, specials, before, after)


def byte_fallback_bpe(specials: Sequence[str], before: Sequence[str], after: Sequence[str]) -> Tokenizer:
    """As Mistral and Gemma have it: spaces become ``▁``, unknown letters fall back to ``<0x..>`` bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces, merges = _prefixes(SPACE)
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [SPACE, *LETTERS]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys([*specials, *raw, *letters, *pieces]))}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _with_template(tokenizer, specials, before, after)


def unigram(specials: Sequence[str], before: Sequence[str], after: Sequence[str], unk: str) -> Tokenizer:
    """As SentencePiece models have it: whole words are likelier than letters, what is neither is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    scores: dict[str, float] = dict.fromkeys(specials, 0.0)
    for rank, word in enumerate(WORDS):
        scores.setdefault(SPACE + word, -3.0 - rank / 100)
        scores.setdefault(word, -5.0 - rank / 100)
    for rank, letter in enumerate([SPACE, *LETTERS, *dict.fromkeys(FOREIGN_LETTERS)]):
        scores.setdefault(letter, -8.0 - rank / 100)
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=list(scores).index(unk)))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    return _with_template(tokenizer, specials, before, after)


def _with_template(
    tokenizer: Tokenizer, specials: Sequence[str], before: Sequence[str], after: Sequence[str]
) -> Tokenizer:
    from tokenizers import processors

    tokenizer.add_special_tokens(list(specials))
    single = " ".join([*before, "$A", *after])
    pair = " ".join([*before, "$A", *after, *before, "$B", *after])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*before, *after])],
    )
    return tokenizer


Builder = Callable[[], "Tokenizer"]
