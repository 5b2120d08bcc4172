"""How surprised an autoregressive model is by texts that others wrote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...codecs.text import Text
from ...denoiser import Denoiser
from ...objectives import Batch
from ..likelihood import score
from .measures import Ratio

ROWS = 16  # texts a pass, of about the same length


def surprise(scorer: Denoiser, text: Text, texts: Sequence[str]) -> Ratio:
    """Nats of each text, and its tokens, in the scorer's own tokens and after its beginning-of-text token.

    Texts beyond the scorer's context are cut. ValueError for a scorer that predicts no next token.
    """
    front = [] if text.start_id is None else [text.start_id]
    return surprise_of(scorer, [[*front, *ids] for ids in text.encode_many(list(texts))])


def surprise_of(scorer: Denoiser, rows: Sequence[Sequence[int]], given: int = 1) -> Ratio:
    """Likewise of rows of tokens, of which the first `given` are not counted."""
    if not scorer.attention.leads:
        raise ValueError(
            f"the scorer has {scorer.attention.kind} attention; expected a model that predicts the next token: an "
            "autoregressive one, or a leader model"
        )
    device = next(scorer.parameters()).device
    rows = [list(row[: scorer.context_length]) for row in rows]
    order = sorted((i for i in range(len(rows)) if len(rows[i]) > max(given, 1)), key=lambda i: len(rows[i]))
    nats, counts = np.zeros(len(rows)), np.zeros(len(rows))
    batches = []
    for start in range(0, len(order), ROWS):
        some = [torch.tensor(rows[i]) for i in order[start : start + ROWS]]
        tokens = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(device)
        ends, here = (
            torch.tensor([len(row) for row in some], device=device),
            torch.arange(tokens.shape[1], device=device),
        )
        batches.append(Batch(tokens, (here < ends[:, None]) & (here >= given)))
    if batches:
        found = score(scorer, batches, mode="exact", rows=ROWS)
        nats[order], counts[order] = found.totals.numpy(), found.counts.numpy()
    return Ratio(nats, counts)
