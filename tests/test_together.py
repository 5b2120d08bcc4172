"""Passes laid end to end in one call: each gets the logits that it gets alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import CLASSIC, MIXED, TINY, prompts

from unveil.context import EVERYTHING, Ask, Context, Store, Window
from unveil.denoiser import Denoiser
from unveil.nn.moe import Mixture
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Gains, Transformer
from unveil.rules import causal, leading, within
from unveil.together import MOST, answers, taking_part

SHAPES = {
    "plain": TINY,
    "classic": replace(TINY, **CLASSIC, qk_norm=None, kv_heads=4, biases=frozenset({"qkv", "out", "mlp"})),
    "sliding": replace(TINY, sliding=5),
    "mixed": replace(TINY, **MIXED),
    "parallel": replace(TINY, order="parallel", turned=4, unturned=frozenset({1}), gains=Gains(2.0, 0.6, 1.5, 0.7)),
    "mixture": replace(TINY, mixture=Mixture(experts=4, active=2, hidden=32)),
}


def network(name: str, shifted: bool):
    torch.manual_seed(0)
    model = Transformer(SHAPES[name]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8) if p.dim() > 1 else p.add_(torch.randn_like(p) / 10)
    return Shifted(model).eval() if shifted else model


def some(count: int, seed: int) -> torch.Tensor:
    """(N,) indices to read, in order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[: max(count // 3, 1)].sort().values


def asks(model) -> list[Ask]:
    """Passes of every sort: whole and windowed, with and without a store, of one row and several, ragged, stale."""
    found = []
    for number, (rows, length) in enumerate([(1, 9), (3, 14), (2, 6), (1, 3), (4, 11)]):
        tokens = prompts(rows, length, number)
        rule = [None, within(torch.arange(rows) + length - rows), causal, leading(1, 4), leading(torch.arange(rows), 5)]
        found.append(Ask(tokens, Context(Window(0, length), rule[number], read=some(rows * length, number))))
        store = Store(length)
        model(tokens, Context(Window(0, length), causal, store=store, exact=True))
        starts = torch.arange(rows) % 3 + 1
        for window in (Window.of(starts, length // 2), Window(length // 2, length - length // 2)):
            context = Context(window, causal, store=store, exact=True, read=some(rows * window.width, number + 1))
            found.append(Ask(tokens, context))
        stale = torch.rand(rows, length, generator=torch.Generator().manual_seed(number)) < 0.5
        whole = Store(length)
        model(tokens, Context(Window(0, length), store=whole))
        context = Context(Window(0, length), store=whole, stale=stale, read=some(rows * length, number + 2))
        found.append(Ask(tokens, context))
    return found


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_each_pass_gets_the_logits_that_it_gets_alone(name, shifted):
    model = network(name, shifted)
    alone = [model(ask.tokens, ask.context) for ask in asks(model)]
    together, calls = answers(model, asks(model))
    assert calls == 1
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
@torch.no_grad()
def test_rows_that_wait_take_no_part_and_lose_nothing(shifted):
    model = network("plain", shifted)
    tokens, starts = prompts(4, 12), torch.tensor([3, 5, 4, 6])
    stores = [Store(12), Store(12)]
    for store in stores:
        model(tokens, Context(Window(0, 12), causal, store=store))
    rule = leading(starts, 4)
    read = torch.tensor([4, 6, 12, 15])  # of rows 1 and 3
    ask = Ask(tokens, Context(Window.of(starts, 4), rule, store=stores[0], read=read, exact=True))
    expected = model(tokens, replace(ask.context, store=stores[1]))
    narrow = taking_part(ask)
    assert len(narrow.tokens) == 2
    torch.testing.assert_close(answers(model, [ask])[0][0], expected, atol=1e-4, rtol=1e-4)
    for layer in (0, 1):
        for mine, theirs in zip(stores[0].kept[layer], stores[1].kept[layer], strict=True):
            torch.testing.assert_close(mine[[1, 3]], theirs[[1, 3]], atol=1e-4, rtol=1e-4)
    gone = torch.tensor([True, False, False, False])
    stores[0].drop(gone)
    stores[0].drop(torch.tensor([False, False, True, False]))
    assert len(stores[0].kept[0][0]) == 2
    torch.testing.assert_close(answers(model, [ask])[0][0], expected, atol=1e-4, rtol=1e-4)
    lasting = replace(ask.context, store=Store(12), lasting=~gone, window=Window(0, 12), rule=causal, read=read[3:])
    assert len(taking_part(Ask(tokens, lasting)).tokens) == 3
    nothing = replace(ask.context, read=read[:0])
    assert answers(model, [Ask(tokens, nothing)])[0][0].shape == (0, 16)


@torch.no_grad()
def test_long_passes_are_computed_in_several_calls():
    model = network("plain", False)
    tokens = prompts(1, MOST // 4)
    context = Context(Window(0, MOST // 4), causal, read=torch.tensor([5]))
    found, calls = answers(model, [Ask(tokens, context)] * 9)
    assert calls == 3
    assert all(torch.allclose(one, found[0], atol=1e-4) for one in found)


def test_a_network_of_another_kind_is_asked_pass_by_pass():
    class Plain(Denoiser):
        def forward(self, tokens, ctx=EVERYTHING):
            assert ctx.read is not None
            return torch.nn.functional.one_hot(tokens.reshape(-1)[ctx.read], 16).float()

    tokens = prompts(2, 4)
    ask = Ask(tokens, Context(Window(0, 4), read=torch.arange(8)))
    found, calls = answers(Plain(), [ask, ask])
    assert calls == 2
    assert (found[1].argmax(-1) == tokens.reshape(-1)).all()


@pytest.mark.parametrize("starts", [torch.tensor([4, 4, 4]), torch.tensor([3, 6, 5])])
@torch.no_grad()
def test_a_causal_pass_computes_nothing_for_the_position_it_predicts(starts):
    """What is predicted there comes from the position before, and nobody else looks at it."""
    model, tokens, width = network("plain", shifted=True), prompts(3, 12), 4
    widths: list[int] = []
    model.model.blocks[0].register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))

    def asked(read: torch.Tensor, rule=causal, **options) -> tuple[torch.Tensor, Store]:
        store = Store(12)
        model(tokens, Context(Window(0, 6), causal, store=store))
        store.length = 6
        context = Context(Window.of(starts, width), rule, store=store, exact=True, read=read, **options)
        return model(tokens, context), store

    last = torch.arange(3) * width + width - 1
    found, store = asked(last)
    assert widths.pop() == width - 1
    position = (starts + width - 1)[:, None]
    alone = model(tokens, Context(Window(0, 12), causal)).gather(1, position[..., None].expand(-1, -1, 16))[:, 0]
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
    for layer, pair in store.kept.items():
        whole = Store(12)
        model(tokens, Context(Window(0, 12), causal, store=whole))
        for mine, theirs in zip(pair, whole.kept[layer], strict=True):
            for row, stop in enumerate(position[:, 0].tolist()):
                torch.testing.assert_close(mine[row, :, :stop], theirs[row, :, :stop], atol=1e-4, rtol=1e-4)
    # Where more is read, a row is not read, or others may look there, everything is computed.
    for read, rule in ((last - 1, causal), (last[1:], causal), (last, leading(starts, width))):
        asked(read, rule)
        assert widths.pop() == width
