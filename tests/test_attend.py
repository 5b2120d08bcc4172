"""Ways to attend give the numbers of the dense one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import MIXED, TINY, prompts, tiny

from unveil import rules
from unveil.context import Context
from unveil.nn import strips
from unveil.nn.attend import Flex
from unveil.nn.strips import Strips, planned
from unveil.nn.transformer import Transformer


@pytest.mark.parametrize(
    "rule",
    [None, rules.causal, rules.not_later(4), rules.documents(torch.arange(12) // torch.tensor([[3], [4], [5]]))],
    ids=["full", "causal", "blocks", "documents"],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_dense(rule):
    model, tokens = tiny(sharp=2), prompts(3, 12)
    with torch.inference_mode():
        plain = model(tokens, Context(rule=rule))
        found = model(tokens, Context(rule=rule, attend=Flex(compiled=False)))
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "rule",
    [
        None,
        rules.causal,
        rules.not_later(4),
        rules.teacher_forcing(6, 3, token_causal=True),
        rules.documents(torch.arange(12) // torch.tensor([[3], [4], [5]])),
    ],
    ids=["full", "causal", "blocks", "two copies", "documents"],
)
@pytest.mark.parametrize("size", [1, 4, 5, 64])
def test_strips_equal_dense_and_so_do_their_gradients(rule, size):
    model, tokens = tiny(sharp=2), prompts(3, 12)
    found = {}
    for name, options in (("dense", {}), ("strips", {"attend": Strips(size)})):
        model.zero_grad()
        logits = model(tokens, Context(rule=rule, **options))
        logits.square().mean().backward()
        found[name] = [logits.detach(), *(p.grad.clone() for p in model.parameters())]
    for mine, theirs in zip(found["strips"], found["dense"], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_strips_are_planned_once_for_each_kind_of_layer(monkeypatch):
    torch.manual_seed(0)
    model, tokens, masks = Transformer(replace(TINY, **MIXED)), prompts(3, 12), []
    monkeypatch.setattr(strips, "planned", lambda mask, size: masks.append(mask) or planned(mask, size))
    mine = model(tokens, Context(rule=rules.not_later(4), attend=Strips(4)))
    torch.testing.assert_close(mine, model(tokens, Context(rule=rules.not_later(4))), atol=1e-5, rtol=1e-4)
    q, k = torch.arange(12)[:, None], torch.arange(12)
    far = k // 4 <= q // 4
    assert [mask[0, 0].tolist() for mask in masks] == [(far & ((q - k).abs() < 5)).tolist(), far.tolist()]


def test_strips_leave_out_what_nobody_may_see():
    mask = rules.teacher_forcing(128, 4, token_causal=True)(
        torch.arange(256)[None, :, None], torch.arange(256)[None, None]
    )
    plan = list(planned(mask[:, None], 64))
    keys = [[(each.start, each.stop) for each in strip.keys] for strip in plan]
    assert keys == [[(0, 64), (128, 192)], [(64, 256)], [(128, 192)], [(128, 256)]]
    assert all(strip.bias is not None for strip in plan)
    (whole,) = planned(torch.ones(1, 1, 4, 8, dtype=torch.bool), 4)
    assert whole == (slice(0, 4), (slice(0, 8),), None)


def test_strips_under_autocast_are_near_full_precision():
    model, tokens = tiny(sharp=2), prompts(3, 12)
    exact = model(tokens, Context(rule=rules.causal))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens, Context(rule=rules.causal, attend=Strips(4)))
    found.float().square().mean().backward()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=0.05)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
