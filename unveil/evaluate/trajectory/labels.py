"""What kind of word each token belongs to: classes, coarse classes, and how tokens get those of their words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int, str]
"""First character, the one behind the last, and the class."""


@dataclass(frozen=True)
class Labels:
    """A way to label text.

    classes  each class with the coarse class it belongs to, in the order of their numbers
    spans    from a text to the words in it, in order; characters that no word covers are space
    whole    does it need the whole document, or does a window with a few words around it do?
    space    the class of tokens that hold space alone
    early    a coarse class of which the publication says that it settles before `late`
    """

    name: str
    about: str
    classes: Mapping[str, str]
    spans: Callable[[str], list[Span]] = field(repr=False)
    whole: bool
    space: str
    early: str
    late: str

    @property
    def fine(self) -> list[str]:
        """Names of the classes."""
        return list(self.classes)

    @property
    def coarse(self) -> list[str]:
        """Names of the coarse classes."""
        return list(dict.fromkeys(self.classes.values()))

    @property
    def above(self) -> NDArray[np.int16]:
        """(classes,) the number of each one's coarse class."""
        return np.array([self.coarse.index(name) for name in self.classes.values()], dtype=np.int16)

    def of(self, pieces: Sequence[str]) -> NDArray[np.int16]:
        """(tokens,) the class of each token, from the text that each adds.

        A token belongs to the word of its first character that is no space. One without any, in the middle of a
        character, belongs to what comes next.
        """
        text, numbers = "".join(pieces), {name: i for i, name in enumerate(self.classes)}
        at = np.full(len(text) + 1, numbers[self.space], dtype=np.int16)
        for first, stop, name in self.spans(text):
            at[first:stop] = numbers[name]
        found, start = np.empty(len(pieces), dtype=np.int16), 0
        for i, piece in enumerate(pieces):
            inside = len(piece) - len(piece.lstrip())
            blank = bool(piece) and inside == len(piece)
            found[i] = numbers[self.space] if blank else at[start + inside]
            start += len(piece)
        return found
