"""Texts and labels to `Sequence`, for models that find spans (GLiNER).

Decides what of a text such a model reads: whole words, as many as it takes beside the labels. gliner, which
tokenizes again in the worker, is given no more than that, and so cuts nothing itself. Knows no device.
"""

from __future__ import annotations

import re
from itertools import islice

from hilbert.core import NO_IDS, ExtractRequest, ModelSpec, Sequence, SpanQuery, as_features
from hilbert.errors import InputTooLong, InvalidInput
from hilbert.processors.text import TextProcessor, check_chars

# In one request. Each costs every text two tokens or more, and a score for each span.
MAX_LABELS = 256
MAX_LABEL_CHARS = 256
# Of the labels of one request, counted with each of its texts, as each carries them to the model.
MAX_CARRIED_CHARS = 16_000_000
# Of a text with its labels, where the model has no limit but one of words, however long these are.
MAX_TOKENS = 4096

# What gliner takes for a word: letters, digits and underscores, joined by hyphens; else each sign alone.
_WORD = re.compile(r"\w+(?:-\w+)*|\S")


class SpanProcessor:
    """Turns texts and labels into sequences for one model; immutable, for any number of threads."""

    def __init__(self, processor: TextProcessor) -> None:
        assert processor.spec.extractor is not None
        self._processor = processor.cutting("right")
        self._spec: ModelSpec = processor.spec
        self._reading = processor.spec.extractor

    def check(self, request: ExtractRequest) -> None:
        """Refuse what no text can be asked, before anything is tokenized.

        Raises:
            InvalidInput: there is no label or there are too many, one is empty, too long or holds a mark that
                the model puts between labels; they are too much for so many texts; or the threshold is no
                probability.
        """
        if not request.labels:
            raise InvalidInput(
                "`labels` is missing: the model finds what they name, such as `person`.", param="labels"
            )
        if len(request.labels) > MAX_LABELS:
            raise InvalidInput(
                f"`labels` has {len(request.labels)} labels; one request may have {MAX_LABELS}.",
                param="labels",
            )
        for index, label in enumerate(request.labels):
            if not label.strip() or len(label) > MAX_LABEL_CHARS:
                raise InvalidInput(
                    f"labels[{index}] has {len(label.strip())} characters; a label has 1 to "
                    f"{MAX_LABEL_CHARS}.",
                    param="labels",
                )
            for mark in (self._reading.entity_token, self._reading.separator_token):
                if mark in label:
                    raise InvalidInput(
                        f"labels[{index}] holds {mark!r}, which the model takes for the end of a label.",
                        param="labels",
                    )
        num_chars = sum(map(len, set(request.labels)))
        if num_chars * len(request.texts) > MAX_CARRIED_CHARS:
            raise InvalidInput(
                f"`labels` has {num_chars:,} characters, which go with each of the {len(request.texts):,} "
                f"texts; together they may have {MAX_CARRIED_CHARS:,}. Send fewer texts at once, or shorter "
                "labels.",
                param="labels",
            )
        if not 0 <= request.threshold <= 1:
            raise InvalidInput(
                f"threshold is {request.threshold:g}; it is a probability, from 0 to 1.", param="threshold"
            )

    def estimate_tokens(self, request: ExtractRequest) -> int:
        """A guess, from lengths alone."""
        most = self._spec.max_model_len or MAX_TOKENS
        num_prompt = sum(2 + len(label) // 4 for label in request.labels)
        return sum(
            min(most, num_prompt + min(len(text) // 4, 2 * self._reading.max_words) + 2)
            for text in request.texts
        )

    def encode(self, request: ExtractRequest, request_id: int) -> tuple[Sequence, ...]:
        """The sequences of a request, in order; one without any word has no tokens. May take long.

        Raises:
            InvalidInput: the labels leave no room for a text.
            InputTooLong: a text is too long and `truncate` is false, or has more tokens than any may have.
        """
        check_chars(request.texts)
        labels = tuple(dict.fromkeys(request.labels))
        num_prompt = self._num_prompt_tokens(labels)
        return tuple(
            self._encode(text, labels, num_prompt, request, request_id, index)
            for index, text in enumerate(request.texts)
        )

    def _num_prompt_tokens(self, labels: tuple[str, ...]) -> int:
        """Tokens before each text, the special one at its beginning and at its end included."""
        words = [word for label in labels for word in (self._reading.entity_token, label)]
        tokenizer = self._processor.tokenizer
        prompt = [[*words, self._reading.separator_token]]
        (encoding,) = tokenizer.encode_batch_fast(prompt, is_pretokenized=True, add_special_tokens=False)
        num_tokens = len(encoding) + sum(map(len, encoding.overflowing))
        num_tokens += tokenizer.num_special_tokens_to_add(False)
        limit = self._spec.max_model_len or MAX_TOKENS
        if num_tokens >= limit:
            raise InvalidInput(
                f"`labels` takes {num_tokens} tokens; the model takes {limit} with the text. Send fewer "
                "labels or shorter ones.",
                param="labels",
            )
        return num_tokens

    def _encode(
        self,
        text: str,
        labels: tuple[str, ...],
        num_prompt: int,
        request: ExtractRequest,
        request_id: int,
        index: int,
    ) -> Sequence:
        most = self._reading.max_words
        words = list(islice(_WORD.finditer(text), most + 1))
        num_words, num_tokens = self._fitting(words[:most], num_prompt, index)
        if num_words < len(words) and request.truncate is False:
            raise InputTooLong(
                f"input[{index}] is longer than the {num_words} words that the model takes of it beside "
                "these labels. Shorten it.",
                param="input",
                index=index,
            )
        if not num_words:
            return Sequence(request_id, index, NO_IDS)
        query = SpanQuery(
            text[: words[num_words - 1].end()],
            labels,
            request.threshold,
            request.is_flat,
            request.is_multi_label,
        )
        return Sequence(
            request_id, index, NO_IDS, features=as_features(query), num_feature_tokens=num_prompt + num_tokens
        )

    def _fitting(self, words: list[re.Match[str]], num_prompt: int, index: int) -> tuple[int, int]:
        """How many of the words the model takes beside the labels, and their tokens."""
        if not words:
            return 0, 0
        tokenizer, limit = self._processor.tokenizer, self._spec.max_model_len
        texts = [[word.group() for word in words]]
        room = (limit or MAX_TOKENS) - num_prompt
        (counted,) = tokenizer.encode_batch_fast(texts, is_pretokenized=True, add_special_tokens=False)
        if len(counted) <= room and not counted.overflowing:
            return len(words), len(counted)
        if limit is None:
            raise InputTooLong(
                f"input[{index}]: its first {len(words)} words and the labels have "
                f"{len(counted) + num_prompt:,} tokens; at most {MAX_TOKENS:,} are taken. Split it.",
                param="input",
                index=index,
            )
        (encoding,) = tokenizer.encode_batch(texts, is_pretokenized=True, add_special_tokens=False)
        word_of_token: list[int] = [word for word in encoding.word_ids if word is not None]
        num_words = word_of_token[room]  # the first that has no room, or not enough
        return num_words, word_of_token.index(num_words)
