"""What is embedded: the coherence of neighbouring sentences, and the diversity of whole texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .embedders import Embedder
from .measures import Diversity, Ratio

END = re.compile(r"(?<=[.?!\u3002\uff0e\uff1f\uff01])(?![.?!\u3002\uff0e\uff1f\uff01])")  # also the full-width forms


def sentences(text: str) -> list[str]:
    """A text split behind every run of sentence ends; what follows the last of them is a sentence too."""
    return [part for part in (piece.strip() for piece in END.split(text)) if re.search(r"\w", part)]


def coherence(texts: Sequence[str], embed: Embedder) -> Ratio:
    """The mean cosine of adjacent sentences of a text, averaged over texts of two or more (arXiv 2605.12522).

    Sentences in which the embedder knows no word have no direction; pairs with one do not count.
    """
    parts = [sentences(text) for text in texts]
    vectors = embed([each for one in parts for each in one])
    values, at = np.full(len(texts), np.nan), 0
    for i, one in enumerate(parts):
        here = vectors[at : at + len(one)]
        at += len(one)
        cosines = (here[1:] * here[:-1]).sum(1)[here[1:].any(1) & here[:-1].any(1)]
        if len(cosines):
            values[i] = cosines.mean()
    return Ratio.mean(values)


def diversity(texts: Sequence[str], embed: Embedder) -> Diversity:
    return Diversity(embed(list(texts)))
