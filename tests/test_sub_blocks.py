"""Sub-blocks inside the causal cache (Fast-dLLM v2): against plain code, in company and alone, and what is refused."""

from __future__ import annotations

import pytest
import torch
from models import MASK, prompts, tiny

from unveil import rules
from unveil.caches.causal import Causal
from unveil.canvas import Canvas
from unveil.context import EVERYTHING, Context, Store, Window
from unveil.sample import generate, prepare
from unveil.together import together

DECODERS = ["threshold(tau=0.3)", "confidence", "random", "threshold(tau=0.2, temperature=0.7)"]


def by_hand(model, prompt, length, block, sub, tau):
    """One row, written plainly: the answer, and where each pass began and ended."""
    x = torch.cat([prompt, torch.full((length,), MASK)])[None]
    store, passes, kept = Store(x.shape[1]), [], 0
    for start in range(len(prompt) // block * block, x.shape[1], block):
        stop, at = min(start + block, x.shape[1]), None
        while (x[0, start:stop] == MASK).any():
            part = int((x[0, start:stop] == MASK).int().argmax()) // sub
            first, last = start + part * sub, min(start + part * sub + sub, stop)
            begin, end = (first, last) if part == at else (start if at is not None else kept, stop)
            at = part
            passes.append((begin, end))
            rule = rules.not_later(block)
            logits = model(x, Context(Window(begin, end - begin), rule, store=store))[0, first - begin : last - begin]
            logits[:, MASK] = -torch.inf
            p, token = logits.softmax(-1).max(-1)
            p[x[0, first:last] != MASK] = -1
            chosen = (p >= tau).index_fill(0, p.argmax(), True)
            x[0, first:last] = torch.where(chosen, token, x[0, first:last])
        kept = start
    return x[0], passes


@pytest.mark.parametrize("sub", [2, 3, 4])
def test_sub_blocks_equal_plain_code(sub):
    for seed in range(4):
        model, seen = tiny("block", 8, seed=seed), []
        prompt = prompts(1, 3 + 4 * seed, seed)[0]
        expected, passes = by_hand(model, prompt, 19, 8, sub, 0.6)
        run = model.forward

        def watched(tokens, ctx=EVERYTHING, run=run, seen=seen):
            seen.append(ctx.over(tokens.shape[1]))
            return run(tokens, ctx)

        model.forward = watched
        out = generate(model, [prompt], 19, "threshold(tau=0.6)", cache=Causal(sub=sub))[0]
        assert torch.equal(out, expected)
        stops = [(window.stop - window.width, window.stop) for window in seen]
        assert len(stops) == len(passes)
        # A last sub-block that is shorter than the others is computed in a window of their width.
        assert all(a <= x and y <= b and b - a <= max(y - x, sub) for (a, b), (x, y) in zip(stops, passes, strict=True))


def test_sub_blocks_as_long_as_the_block_change_nothing():
    for decoder in DECODERS:
        for steps in (None, 2):
            model, given = tiny("block", 4), [prompts(1, n, n)[0] for n in (3, 5)]
            plain = generate(model, given, 11, decoder, cache="causal", steps=steps, seed=1)
            for sub in (4, 9):
                out = generate(model, given, 11, decoder, cache=Causal(sub=sub), steps=steps, seed=1)
                assert torch.equal(out, plain), (decoder, steps, sub)


def test_sub_blocks_are_an_approximation_and_write_from_the_left():
    differs = 0
    for seed in range(6):
        model, given = tiny("block", 8, seed=seed), prompts(1, 8, seed)
        exact = generate(model, given, 16, "threshold(tau=0.5, sub=2)", cache="causal")
        out = generate(model, given, 16, "threshold(tau=0.5, sub=2)", cache=Causal(sub=2))
        plain = generate(model, given, 16, "threshold(tau=0.5)", cache=Causal(sub=2))
        assert torch.equal(out, plain), "the cache alone keeps to the leftmost sub-block"
        differs += int((out != exact).any())
    assert differs, "the approximation never changed a token: the test proves nothing"


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("shifted", [False, True])
def test_rows_at_different_sub_blocks_write_what_each_writes_alone(decoder, steps, shifted):
    model = tiny("block", 6, shifted=shifted, seed=2)
    given = [prompts(1, n, seed=n)[0] for n in (2, 9, 5, 6)]
    batch = generate(model, given, 14, decoder, cache=Causal(sub=2), steps=steps, seed=3)
    assert (batch != MASK).all()
    for row, prompt in enumerate(given):
        alone = generate(model, [prompt], 14, decoder, cache=Causal(sub=2), steps=steps, seed=3 + row)[0]
        assert torch.equal(batch[row, : len(alone)], alone), row


def test_together_writes_the_same():
    model = tiny("block", 4)
    alone = [generate(model, prompts(1, n, n), 9, "threshold(tau=0.3)", cache=Causal(sub=2)) for n in (4, 6)]
    canvases = [Canvas.answering(prompts(1, n, n), 9, MASK) for n in (4, 6)]
    jobs = [(canvas, prepare(model, canvas, "threshold(tau=0.3)", cache="causal(sub=2)")) for canvas in canvases]
    assert list(together(model, jobs))[-1] == []
    for canvas, expected in zip(canvases, alone, strict=True):
        assert torch.equal(canvas.tokens, expected)


def test_what_sub_blocks_refuse():
    with pytest.raises(ValueError, match="sub is -1; expected 0"):
        Causal(sub=-1)
    with pytest.raises(ValueError, match="sub is 2, and sub-blocks are parts.*leader attention"):
        generate(tiny("leader", 4, shifted=True), prompts(), 8, cache=Causal(sub=2))
