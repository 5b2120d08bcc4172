"""What happens to the end of a trajectory when part of what is written is masked again in the middle of it.

Shapes: N windows, L positions, P masked positions, T perturbed steps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...attention import Attention
from ...canvas import Canvas
from ...denoiser import Denoiser
from ...noise import uniform
from ...sample import denoise
from .record import attention, ordered
from .recording import Recording, fetch, store

AGAIN = 13  # keys the noise that chooses what is masked again
RULES = {
    "none": "masked for good and counted as wrong",
    "same": "filled again within the steps that are left",
    "more": "filled again with a fixed number of further steps",
}
NAMES = ("steps", "position", "hit", "before", "after", "changed")


@dataclass(frozen=True)
class Perturbation:
    """Ends of perturbed runs beside the undisturbed one, by one budget rule."""

    steps: NDArray[np.int16]  # (T,) the step at which it happened
    position: NDArray[np.int32]  # (P,) of the recording
    hit: NDArray[np.bool_]  # (P, T) masked again?
    before: NDArray[np.bool_]  # (P,) right at the end of the undisturbed run
    after: NDArray[np.bool_]  # (P, T) and of the perturbed one
    changed: NDArray[np.bool_]  # (P, T) is the token at the end another one?

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """All of the file or none of it."""
        store(path, {name: getattr(self, name) for name in NAMES}, about)

    @property
    def lost(self) -> NDArray[np.int8]:
        """(P, T) 1 where a right token is no longer so, -1 where a wrong one became right."""
        return self.before[:, None].astype(np.int8) - self.after.astype(np.int8)


def load(path: Path) -> Perturbation:
    """A saved one. ValueError where the file is damaged or another."""
    return Perturbation(**fetch(path, NAMES)[0])


def disturb(
    model: Denoiser,
    recording: Recording,
    steps: NDArray[np.integer],
    rule: str,
    *,
    share: float = 0.15,
    more: int = 8,
    windows: int | None = None,
    batch: int = 32,
) -> Perturbation:
    """At each of `steps`, mask a share of what is written again and go on to the end with the same sampler.

    The state is that of the recording before that step, so S - step predictions are left; with the rule "more", `more`
    more. What is masked again is drawn by the recording's seed, the step and the position, and is the same for all
    rules. `windows`: only so many of them. At step 0 nothing is written, so nothing can be masked again.
    """
    if rule not in RULES:
        raise ValueError(f"no budget rule called {rule!r}; there are: {', '.join(RULES)}")
    look = attention(model)
    if look.kind != "full":
        raise ValueError(f"a model with {look.kind} attention writes block by block: there is no middle to perturb")
    seed, order = int(recording.about["seed"]), str(recording.about["order"])
    count = len(recording.tokens) if windows is None else min(windows, len(recording.tokens))
    position = np.flatnonzero(recording.row < count)
    row, place = recording.row[position], recording.place[position]
    final = recording.predicted[position, -1]
    truth = recording.truth[position]
    hits, ends = [], []
    for step in steps.tolist():
        hit = chosen(recording, position, step, share, seed)
        ends.append(ended(model, recording, step, hit, row, place, order, rule, more, count, batch, look))
        hits.append(hit)
    end = np.stack(ends, 1)
    return Perturbation(
        steps=steps.astype(np.int16),
        position=position.astype(np.int32),
        hit=np.stack(hits, 1),
        before=final == truth,
        after=end == truth[:, None],
        changed=end != final[:, None],
    )


def chosen(
    recording: Recording, position: NDArray[np.integer], step: int, share: float, seed: int
) -> NDArray[np.bool_]:
    """(P,) of each window this share, rounded, of the positions that are revealed before this step; at least one."""
    row = recording.row[position]
    written = recording.revealed[position] < step
    source = torch.from_numpy(recording.source[row].astype(np.int64))
    level = uniform(seed, AGAIN, step, source, torch.from_numpy(recording.place[position].astype(np.int64))).numpy()
    hit = np.zeros(len(position), bool)
    for each in np.unique(row[written]):
        mine = np.flatnonzero(written & (row == each))
        hit[mine[np.argsort(level[mine])[: max(round(share * len(mine)), 1)]]] = True
    return hit


def ended(
    model: Denoiser,
    recording: Recording,
    step: int,
    hit: NDArray[np.bool_],
    row: NDArray[np.integer],
    place: NDArray[np.integer],
    order: str,
    rule: str,
    more: int,
    count: int,
    batch: int,
    look: Attention,
) -> NDArray[np.int64]:
    """(P,) the tokens at the end of the perturbed run; the mask where none was written."""
    device = next(model.parameters()).device
    state = recording.canvas(step, model.mask_id)[:count].astype(np.int64)
    closed = np.zeros(state.shape, bool)
    closed[row[hit], place[hit]] = True
    state[closed] = model.mask_id
    seeds = torch.from_numpy(recording.source[:count].astype(np.int64)) * 1_000_003 + int(recording.about["seed"])
    left = recording.steps - step + (more if rule == "more" else 0)
    for start in range(0, count, batch):
        here = np.arange(start, min(start + batch, count))
        here = here[(state[here] == model.mask_id).any(1)]  # a window may be finished already
        if not len(here):
            continue
        canvas = Canvas.filling(torch.from_numpy(state[here]).to(device), model.mask_id, seeds[here], look)
        if rule == "none":
            canvas.given[:, : state.shape[1]] |= torch.from_numpy(closed[here]).to(device)
        deque(denoise(model, canvas, ordered(order), cache="recompute", steps=left), maxlen=0)
        state[here] = canvas.tokens[:, : state.shape[1]].cpu().numpy()
    return state[row, place]
