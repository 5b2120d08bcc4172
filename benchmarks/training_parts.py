"""What two parts of a training step take, forward and backward, beside PyTorch's own: attention, and the loss."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import RESULTS, Report, interleaved, spread, threads
from torch import Tensor

from unveil import rules
from unveil.context import Attend, dense
from unveil.nn import reading
from unveil.nn.strips import Strips

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS, PLAIN = "unveil", "torch"
Work = Callable[[], object]


def attention(rows: int, heads: int, length: int, size: int, goal: str, dtype: torch.dtype) -> dict[str, Work]:
    """One layer's attention: next-token prediction, everything, or the leader layout's two copies in blocks of 5."""
    width = 2 * length if goal == "leader" else length
    q, k, v = (torch.randn(rows, width, heads, size, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3))
    here = torch.arange(width)
    mask = None
    if goal == "leader":
        mask = rules.teacher_forcing(length, 5, token_causal=True)(here[None, :, None], here[None, None])[:, None]

    def step(attend: Attend) -> None:
        attend(q, k, v, mask, goal == "next token", 0).sum().backward()

    return {OURS: partial(step, Strips()), PLAIN: partial(step, dense)}


def loss(count: int, vocab: int, dtype: torch.dtype) -> dict[str, Work]:
    """Cross-entropy of `count` tokens from logits."""
    logits, answers = torch.randn(count, vocab).to(dtype).requires_grad_(), torch.randint(vocab, (count,))

    def plain(logits: Tensor, answers: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), answers, reduction="none")

    def step(surprise: Callable[[Tensor, Tensor], Tensor]) -> None:
        surprise(logits, answers).sum().backward()

    return {OURS: partial(step, reading.surprise), PLAIN: partial(step, plain)}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of the loss")
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 126_464])
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    threads(given.threads)
    report = Report("training_parts", given.results)
    found, rows = [], []
    for name in given.dtype:
        made = {
            f"attention, {goal}": attention(given.rows, given.heads, given.length, given.head_size, goal, DTYPES[name])
            for goal in ("next token", "full", "leader")
        }
        made |= {f"loss, {vocab:,} tokens": loss(given.tokens, vocab, DTYPES[name]) for vocab in given.vocab}
        for part, arms in made.items():
            seconds = {arm: spread(each) for arm, each in interleaved(arms, given.repeats).items()}
            ratio = seconds[PLAIN]["median"] / seconds[OURS]["median"]
            found.append({"part": part, "dtype": name, "seconds": seconds, "ratio": ratio})
            rows.append((part, name, *(1e3 * seconds[arm]["median"] for arm in (OURS, PLAIN)), ratio))
    size = f"{given.rows} x {given.length}, {given.heads} heads of {given.head_size}; {given.tokens:,} tokens of loss"
    columns = ("part", "type", "unveil, ms", "torch, ms", "times as fast")
    report.table(f"forward and backward: {size}, {torch.get_num_threads()} threads", columns, rows)
    report.write({"shape": size, "threads": torch.get_num_threads(), "parts": found})


if __name__ == "__main__":
    main()
