"""Trajectories of one run as arrays, and as a file without pickle.

Shapes: N windows, L positions, P masked positions of all windows together, S steps, Q positions and R steps of which
states are kept, layers, E width.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1


@dataclass(frozen=True)
class Recording:
    """What a model said of each masked position at each step, before it wrote at that step.

    At step s the model has seen what was written at the steps before s. A position is *revealed* at the step that
    writes it; from the next step on its prediction is the token that stands there.
    """

    tokens: NDArray[np.int32]  # (N, L) the text
    fine: NDArray[np.int16]  # (N, L) the class of each token
    source: NDArray[np.int32]  # (N,) which window of the text it is
    row: NDArray[np.int32]  # (P,) window
    place: NDArray[np.int32]  # (P,) position in it
    predicted: NDArray[np.int32]  # (P, S) the likeliest token, or the revealed one
    probability: NDArray[np.float32]  # (P, S) what the model gives `predicted` at this step
    entropy: NDArray[np.float32]  # (P, S) nats of what it says there at this step
    revealed: NDArray[np.int16]  # (P,) step
    stated: NDArray[np.int32]  # (Q,) positions of which states are kept, as indices into P
    stated_steps: NDArray[np.int16]  # (R,)
    states: NDArray[np.float16]  # (Q, R, layers, E) after each block, where the token is predicted
    about: dict[str, Any] = field(default_factory=dict)  # how it was made

    @property
    def steps(self) -> int:
        return self.predicted.shape[1]

    @cached_property
    def truth(self) -> NDArray[np.int32]:
        """(P,) the token that stood there."""
        return self.tokens[self.row, self.place]

    @cached_property
    def kind(self) -> NDArray[np.int16]:
        """(P,) its class."""
        return self.fine[self.row, self.place]

    @cached_property
    def sequence(self) -> NDArray[np.int32]:
        """(P,) the window of the text: what the sample consists of."""
        return self.source[self.row]

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(P, S) is the prediction the token that stood there?"""
        return self.predicted == self.truth[:, None]

    def kept(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, S) the same until a position is revealed, and from then on what it was at that step."""
        step = np.minimum(np.arange(self.steps)[None], self.revealed[:, None])
        return np.take_along_axis(values, step, axis=1)

    def canvas(self, step: int, mask_id: int) -> NDArray[np.int32]:
        """(N, L) the text as the model sees it at this step, S being the end."""
        found = self.tokens.copy()
        shown = np.where(self.revealed < step, self.predicted[:, -1], mask_id)
        found[self.row, self.place] = shown
        return found

    def save(self, path: Path) -> None:
        """All of the file or none of it."""
        store(path, {**{name: getattr(self, name) for name in NAMES}}, self.about)


NAMES = tuple(each.name for each in fields(Recording) if each.name != "about")


def store(path: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Arrays and a line of JSON as one .npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, about=np.array(json.dumps({"format": FORMAT, **about})))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def fetch(path: Path, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `store` wrote. ValueError where the file is damaged or another."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            missing = [name for name in (*names, "about") if name not in found]
            if missing:
                raise ValueError(f"{path} is no recording of this kind: it lacks {missing[0]}")
            arrays, about = {name: found[name] for name in names}, json.loads(str(found["about"]))
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is recorded again") from error
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path} is no .npz file of arrays") from error
    if about.pop("format", None) != FORMAT:
        raise ValueError(f"{path} was written in another format: delete it, and it is recorded again")
    return arrays, about


def load(path: Path) -> Recording:
    """A saved recording. ValueError where the file is damaged or another."""
    arrays, about = fetch(path, NAMES)
    return Recording(**arrays, about=about)


def joined(many: list[Recording]) -> Recording:
    """Several runs of the same kind as one; windows of the same text keep their number."""
    first = many[0]
    rows = np.cumsum([0, *(len(each.tokens) for each in many)])
    places = np.cumsum([0, *(len(each.row) for each in many)])
    arrays = {name: np.concatenate([getattr(each, name) for each in many]) for name in NAMES if name != "stated_steps"}
    arrays["row"] = np.concatenate([each.row + first_row for each, first_row in zip(many, rows, strict=False)])
    arrays["stated"] = np.concatenate([each.stated + start for each, start in zip(many, places, strict=False)])
    return Recording(**arrays, stated_steps=first.stated_steps, about=first.about)
