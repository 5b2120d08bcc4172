"""A few recorded trajectories, with the text of every prediction, for pages and pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..codecs.text import Text
from ..evaluate.trajectory.commitment import commitment
from ..evaluate.trajectory.labels import Labels
from ..evaluate.trajectory.recording import Recording

MOST = 3  # of a cell


@dataclass(frozen=True)
class Scene:
    """One window: P masked positions, S steps."""

    cell: str
    number: int
    pieces: list[str]  # the text of each token of the window
    places: list[int]  # (P,) where in the window
    truth: list[str]  # (P,) what stood there
    kinds: list[str]  # (P,) classes
    words: list[str]  # all tokens that are predicted anywhere
    predicted: NDArray[np.integer]  # (P, S) indices into words
    probability: NDArray[np.floating]  # (P, S)
    entropy: NDArray[np.floating]  # (P, S) nats
    right: NDArray[np.bool_]  # (P, S)
    committed: list[int]  # (P,) steps
    revealed: list[int]  # (P,) steps

    def plain(self) -> dict:
        """For the page's script: shares in thousandths, to keep it small."""
        return {
            "cell": self.cell,
            "number": self.number,
            "pieces": self.pieces,
            "places": self.places,
            "truth": self.truth,
            "kinds": self.kinds,
            "words": self.words,
            "predicted": self.predicted.tolist(),
            "probability": np.rint(self.probability * 1000).astype(int).tolist(),
            "entropy": np.rint(self.entropy * 100).astype(int).tolist(),
            "right": self.right.astype(int).tolist(),
            "committed": self.committed,
            "revealed": self.revealed,
        }


def scenes(cell: str, run: Recording, labels: Labels, text: Text, most: int = MOST) -> list[Scene]:
    """The first windows of a recording."""
    moment = commitment(run.predicted)
    found = []
    for row in range(min(most, len(run.tokens))):
        here = run.row == row
        ids = np.unique(run.predicted[here])
        found.append(
            Scene(
                cell=cell,
                number=row + 1,
                pieces=text.pieces(run.tokens[row]),
                places=run.place[here].tolist(),
                truth=[text.decode([token]) for token in run.truth[here]],
                kinds=[labels.fine[kind] for kind in run.kind[here]],
                words=[text.decode([token]) for token in ids],
                predicted=np.searchsorted(ids, run.predicted[here]),
                probability=run.probability[here],
                entropy=run.entropy[here],
                right=run.right[here],
                committed=moment[here].tolist(),
                revealed=run.revealed[here].tolist(),
            )
        )
    return found
