"""How blanks are written in a text: `[[8]]` eight tokens, `[[2-12]]` as many as fit best, `[[]]` the default number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

BLANK = re.compile(r"\[\[\s*(?:(\d+)\s*)?(?:-\s*(\d+)\s*)?\]\]")  # reads white space in one way alone
MOST = 64  # combinations of lengths that a search tries


@dataclass(frozen=True)
class Template:
    """Tokens between blanks, one list more than there are blanks, and the lengths each blank may have."""

    pieces: list[list[int]]
    lengths: list[range]

    def rows(self, mask_id: int) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """Every choice of lengths with its tokens, blanks as `mask_id`."""
        for chosen in product(*thinned(self.lengths)):
            row = list(self.pieces[0])
            for length, piece in zip(chosen, self.pieces[1:], strict=True):
                row += [mask_id] * length + piece
            yield chosen, row


class Encode(Protocol):
    """Gives tokens of a text; `begins` says that nothing stands before it."""

    def __call__(self, text: str, /, *, begins: bool) -> list[int]: ...


def parse(text: str, encode: Encode, start: int | None, default: int) -> Template:
    """Read the blanks of a text. `start` is put in front of its tokens when it is not None."""
    pieces, lengths, end = [], [], 0
    for match in BLANK.finditer(text):
        low, high = match[1], match[2]
        if not low and high:
            raise ValueError(f"{match[0]} has no lower bound; expected [[n]], [[low-high]] or [[]]")
        least = int(low) if low else default
        most = int(high) if high else least
        if not 0 < least <= most:
            raise ValueError(f"{match[0]} asks for {least} to {most} tokens; expected at least 1, and low <= high")
        pieces.append(encode(text[end : match.start()], begins=not lengths))
        lengths.append(range(least, most + 1))
        end = match.end()
    if not lengths:
        raise ValueError("the text has no blank; mark one by [[n]] (n tokens), [[low-high]] or [[]]")
    pieces.append(encode(text[end:], begins=False))
    if start is not None:
        pieces[0] = [start, *pieces[0]]
    return Template(pieces, lengths)


def thinned(lengths: Sequence[range]) -> list[range]:
    """The same ranges, with larger strides while their combinations are too many to try."""
    stride = 1
    while True:
        found = [range(r.start, r.stop, stride) for r in lengths]
        count = 1
        for each in found:
            count *= len(each)
        if count <= MOST:
            return found
        stride += 1
