"""How many threads of the processor a round of passes is computed with."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..context import Ask

LIGHT = 4e9  # operations of a round that one thread does as soon as several, which have to meet after every layer


class Threads:
    """One thread for small rounds, which leaves the other cores to whoever hands answers on; all for large ones."""

    def __init__(self, parameters: int, most: int):
        self.parameters, self.most = parameters, most

    def suit(self, asks: Iterable[Ask]) -> None:
        """Set the number for these passes."""
        positions = sum(len(ask.tokens) * ask.context.over(ask.tokens.shape[1]).width for ask in asks)
        wanted = 1 if 2.0 * self.parameters * positions < LIGHT else self.most
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
