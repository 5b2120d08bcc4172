"""What is measured on an adapted model: likelihood, its autoregressive mode, infilling, and the text it writes.

Shapes: N rows, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from unveil.attention import FULL
from unveil.codecs.text import Text
from unveil.data import Packed
from unveil.denoiser import Denoiser
from unveil.evaluate.likelihood import pieces, score
from unveil.evaluate.problems import Setting
from unveil.evaluate.samples import appraise, per_block, write
from unveil.nn.grow import bare
from unveil.objectives import Batch, autoregressive
from unveil.sample import fill

from .passes import Autoregressive, Task

ROWS = 32  # rows a pass


class Sampled(Protocol):
    """The part of a plan that says how much text is written."""

    @property
    def length(self) -> int: ...

    @property
    def samples(self) -> int: ...

    @property
    def sample_steps(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Truth:
    """Real texts: the first L tokens of documents that have as many."""

    rows: Tensor  # (N, L)

    @classmethod
    def of(cls, source: Packed, length: int, limit: int) -> Truth:
        """ValueError when no document is long enough."""
        long = [i for i in range(len(source)) if source.lengths[i] >= length][:limit]
        if not long:
            raise ValueError(f"no document of the evaluation text has {length} tokens: shorten --length")
        return cls(torch.stack([torch.from_numpy(source.document(i)[:length]) for i in long]))


def likelihood(model: Denoiser, batch: Batch, draws: int, *, exact: bool, block: int | None = None) -> dict:
    """Nats per token with what kind of number it is: exact, or the bound in the model's own blocks or in `block`."""
    found = score(model, batch, mode="exact" if exact else "bound", block=block, draws=draws, rows=ROWS)
    kind = {"kind": found.kind, "layout": found.layout, "tokens": found.tokens}
    return {"nats": found.nats, "stderr": found.stderr, "noise": found.noise, **kind}


@torch.inference_mode()
def autoregression(model: Denoiser, batch: Batch, eos: int | None) -> float:
    """Nats per token when read causally as a next-token network, whatever it was trained to be.

    Ends of documents do not count: a parent need not have learnt them.
    """
    if eos is not None:
        batch = replace(batch, answer=batch.answer & (batch.tokens != eos))
    sums = [(autoregressive.nats(model, part).sum(), part.targets.sum()) for part in pieces(batch, ROWS, 0)]
    return float(sum(total for total, _ in sums) / sum(count for _, count in sums))


def infilling(model: Denoiser, truth: Truth, blank: int, control: bool, full: bool) -> dict[str, object]:
    """Greedy filling of one blank in the middle of real texts: share of tokens, and of whole blanks, that are right.

    Models trained under full attention see both sides; others see what their own blocks show them; an autoregressive
    control sees what stands before.
    """
    rows, at = truth.rows, truth.rows.shape[1] // 2
    right = []
    for part in rows.split(ROWS):
        if control:
            task = Task(part[:, :at], blank, 1, 1)
            guess, seen = Autoregressive(bare(model), task).run()[:, at:], "what stands before"
        else:
            look = FULL if full else model.attention
            open_ = part.clone()
            open_[:, at : at + blank] = model.mask_id
            guess = torch.stack(fill(model, open_, "confidence", block=look.block, seed=0, attention=look))
            guess = guess[:, at : at + blank]
            seen = "both sides" if full else f"what stands before and in blocks of {look.block}"
        right.append(guess == part[:, at : at + blank])
    hits = torch.cat(right).float()
    return {"tokens": float(hits.mean()), "whole": float(hits.all(1).float().mean()), "blanks": len(hits), "sees": seen}


def sampling(
    model: Denoiser, parent: Denoiser, text: Text, plan: Sampled, temperature: float, seed: int, control: bool
) -> Iterator[dict]:
    """Texts written from the beginning-of-text token: perplexity under the untouched parent, entropy, forwards."""
    begin = text.start_id
    if begin is None:
        raise ValueError("the tokenizer has no beginning-of-text token to write from")
    start = torch.full((plan.samples, 1), begin)
    for steps in plan.sample_steps:
        if control:
            if steps != max(plan.sample_steps):
                continue
            task = Task(start, plan.length - 1, 1, 1)
            rows = Autoregressive(bare(model), task, temperature=temperature, seed=seed).run()
            forwards = plan.length - 1
        else:
            each = per_block(model, 1, plan.length - 1, steps)
            if each < 1:
                continue
            look = model.attention
            way = Setting(f"random(temperature={temperature})", look.cache, block=look.block, steps=each)
            rows, forwards = write(model, start, plan.length - 1, way, seed=seed, rows=plan.samples)
        yield {
            "temperature": temperature,
            "steps": steps,
            "forwards": forwards,
            **appraise(parent, rows, text.eos_id, begin),
        }
