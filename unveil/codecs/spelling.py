"""Tokens to text while they come: whole characters only, and in the end what decoding everything at once gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from .text import Text

KEPT = 8  # tokens that a window begins anew with
CONTEXT = 64  # tokens before a stretch that decide how it begins: with a space, in the middle of a character
UNSURE = "\ufffd"  # what decoding puts where bytes are no character, or not yet


class Spelling:
    """What single tokens of a vocabulary are: their own text and bytes."""

    def __init__(self, text: Text):
        self.text = text
        self.known: dict[int, str] = {}  # what `alone` found

    @cached_property
    def bytes(self) -> dict[int, int]:
        """Of tokens that are one byte each and are joined to characters only in company, that byte (SentencePiece)."""
        decoder, tokenizer = self.text.tokenizer.decoder, self.text.tokenizer
        if decoder is None or decoder.decode(["<0x41>"]) != "A":
            return {}
        ids = {tokenizer.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        return {token: byte for token, byte in ids.items() if token is not None}

    @cached_property
    def special(self) -> frozenset[int]:
        """Tokens that a text leaves out."""
        added = self.text.tokenizer.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    @cached_property
    def loose(self) -> frozenset[int]:
        """Tokens that a run of single bytes consists of, and those that do not end it."""
        return self.special | self.bytes.keys() if self.bytes else frozenset()

    @cached_property
    def alphabet(self) -> dict[str, int]:
        """Of byte-level vocabularies, the byte that each character of a token's name stands for; of others nothing.

        Source: GPT-2. Bytes that print are themselves, the rest are numbered from 256 on.
        """
        decoder = self.text.tokenizer.decoder
        if decoder is None or decoder.decode(["\u0120"]) != " ":
            return {}
        printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printed]
        return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}

    @cached_property
    def anchor(self) -> list[int]:
        """A token to put before another, so that it keeps the space it begins with."""
        found = (self.text.encode(letter) for letter in "aeo.1")
        return next((ids for ids in found if self.text.decode(ids) and not self.loose.intersection(ids)), [])

    def alone(self, token: int) -> str:
        """The text of one token as it stands within a text; special tokens by their names."""
        if token not in self.known:
            if token in self.bytes:
                self.known[token] = bytes([self.bytes[token]]).decode("utf-8", "replace")
            else:
                before = self.text.decode(self.anchor)
                self.known[token] = self.text.decode([*self.anchor, token], keep_special=True).removeprefix(before)
        return self.known[token]

    def raw(self, token: int) -> list[int] | None:
        """The bytes of one token, which need not be whole characters; None where the vocabulary has none for it."""
        if token in self.bytes:
            return [self.bytes[token]]
        name = self.text.tokenizer.id_to_token(token)
        if name is None:
            return None
        if self.alphabet and token not in self.added and all(letter in self.alphabet for letter in name):
            return [self.alphabet[letter] for letter in name]
        return list(self.alone(token).encode())

    @cached_property
    def added(self) -> frozenset[int]:
        """Tokens that are spelled as they are named."""
        return frozenset(self.text.tokenizer.get_added_tokens_decoder())

    def between(self, row: Sequence[int], start: int, stop: int) -> str:
        """The text of the tokens from `start` to `stop`, as it follows what stands before them in the row."""
        speller = self.after(row[max(0, start - CONTEXT) : start])
        return "".join(map(speller.add, row[start:stop])) + speller.close()

    def behind(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of tokens, as it follows those before them."""
        return self.between([*before, *tokens], len(before), len(before) + len(tokens))

    def after(self, context: Sequence[int] = ()) -> Speller:
        """Spells what follows `context`, of which it says nothing."""
        return Speller(self, context)


class Speller:
    """The text of a growing list of tokens, special ones left out.

    What it gave out is never wrong: a character of which bytes are missing is held back, and so is a run of single
    bytes (SentencePiece), whose characters depend on all of them. Joined, everything it gives out is what decoding
    context and tokens at once adds to the context.
    """

    def __init__(self, spelling: Spelling, context: Sequence[int] = ()):
        self.spelling, self.ids, self.holds = spelling, list(context), False
        whole = spelling.text.decode(self.ids)
        # Whole characters at the end of the context are there already, whatever single bytes may follow them.
        self.shown = len(self.sure()) if whole.endswith(UNSURE) else len(whole)
        self.shorten()

    def add(self, token: int) -> str:
        """The text that has become certain."""
        self.ids.append(token)
        sure = self.sure()
        new, self.shown = sure[self.shown :], max(self.shown, len(sure))
        if len(self.ids) > 2 * KEPT:
            self.shorten()
        return new

    def close(self) -> str:
        """The rest: bytes that make no character."""
        whole = self.spelling.text.decode(self.ids)
        new, self.shown = whole[self.shown :], len(whole)
        return new

    def sure(self) -> str:
        """The text of the window that no further token can change."""
        end = self.settled
        now = self.spelling.text.decode(self.ids[:end])
        # The last of these signs may be a character whose bytes have not all come; others before it stay.
        unsure = end == len(self.ids) and now.endswith(UNSURE)
        self.holds = unsure or end < len(self.ids)
        return now[:-1] if unsure else now

    @property
    def settled(self) -> int:
        """Where the run of single bytes at the end begins."""
        end = len(self.ids)
        while end and self.ids[end - 1] in self.spelling.loose:
            end -= 1
        return end

    def shorten(self) -> None:
        """Forget tokens that the text to come does not depend on."""
        start = len(self.ids) - KEPT
        while start > 0 and self.ids[start] in self.spelling.loose:
            start -= 1
        if start <= 0 or self.settled < len(self.ids):
            return
        decode = self.spelling.text.decode
        window = decode(self.ids[start:])
        # Without a character in the window, the next token would look like the first of a text.
        if window.strip() and not window.endswith(UNSURE) and not decode(self.ids).endswith(UNSURE):
            self.ids = self.ids[start:]
            self.shown = len(window)
