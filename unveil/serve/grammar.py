"""What may come next in a document of a JSON schema, token by token: the grammar, without any tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ..codecs.text import Text

ANY_OBJECT: dict[str, Any] = {"type": "object"}  # what `response_format` json_object asks for


def check(schema: Mapping[str, Any], text: Text) -> None:
    """ValueError, one sentence, when documents of this schema cannot be written with this tokenizer."""
    if text.eos_id is None:
        raise ValueError("a JSON schema needs a token that ends a text, and this model's tokenizer names none")
    document = Document(compiled(schema), vocabulary(text), text.eos_id)
    document.take(int(document.allowed(text.vocab).argmax()))
    document.forced()


class Document:
    """What one row has written so far, and what may come next."""

    def __init__(self, grammar: str, spelling: LLTokenizer, end: int):
        self.matcher = LLMatcher(spelling, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        self.end, self.ends, self.size = end, spelling.eos_tokens, spelling.vocab_size
        self.ended = False  # nothing but the end of the text can follow, or follows already
        self.sound()

    def allowed(self, size: int, mask_id: int = -1) -> np.ndarray:
        """(size,) bool: the tokens that may come next. ValueError when there is none."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        self.sound()
        listed = np.unpackbits(bits, bitorder="little")[:size].astype(bool)
        found = np.zeros(size, dtype=bool)
        found[: len(listed)] = listed
        found[[token for token in self.ends if token < size]] = False
        found[self.end] = self.matcher.is_accepting()
        if 0 <= mask_id < size:
            found[mask_id] = False
        if not found.any():
            raise ValueError("the tokenizer cannot spell what this JSON schema asks for next")
        return found

    def forced(self) -> list[int]:
        """Tokens of the characters that must come next, as far as it is settled how they are spelled."""
        found = [] if self.ended else self.matcher.compute_ff_tokens()
        self.sound()
        return found

    def followed(self, tokens: Sequence[int]) -> list[int]:
        """Commit tokens as far as they may come next; those committed."""
        return list(takewhile(self.take, tokens))

    def take(self, token: int) -> bool:
        """Commit a token if it may come next."""
        if token == self.end or token in self.ends:
            self.ended = self.ended or (token == self.end and self.matcher.is_accepting())
            return self.ended
        if self.ended or not 0 <= token < self.size or self.matcher.try_consume_tokens([token]) != 1:
            self.sound()
            return False
        self.sound()
        self.ended = self.matcher.is_stopped()
        return True

    def sound(self) -> None:
        """ValueError when the schema asks for more than is worked out in reasonable time, or for what never ends."""
        if self.matcher.is_error():
            reason = " ".join(self.matcher.get_error().replace("<non-verbose/>", "").split())
            raise ValueError(f"this JSON schema cannot be followed token by token: {reason}")


def compiled(schema: Mapping[str, Any]) -> str:
    """The grammar of a schema. ValueError when it is not one, or uses what has no grammar."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"a JSON schema is an object, not a {type(schema).__name__}")
    try:
        return LLMatcher.grammar_from_json_schema(
            json.dumps(schema, allow_nan=False),
            # One line, as json.dumps writes it: no model can lose itself in white space, and most of what stands
            # between values is forced, so it costs no pass.
            overrides={
                "whitespace_flexible": False,
                "item_separator": ", ",
                "key_separator": ": ",
                "lenient": False,
                "coerce_one_of": False,
            },
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"this JSON schema cannot be read: {' '.join(str(error).split())}") from None


@lru_cache(maxsize=2)
def vocabulary(text: Text) -> LLTokenizer:
    """The bytes of every token. Takes a second for a large tokenizer, so it is kept. ValueError if it has none."""
    try:
        return LLTokenizer(
            text.tokenizer.to_str(), n_vocab=text.vocab, eos_token=text.eos_id, slices=LLTokenizer.json_slices()
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"a JSON schema needs a tokenizer whose tokens are bytes, and this one is not: {reason}"
        ) from None
