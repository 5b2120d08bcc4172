"""Compiled passes of fixed width: the same text as without, and nothing is compiled twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import CLASSIC, MIXED, TINY, prompts, tiny

from unveil.canvas import Canvas
from unveil.nn.fixed import SHAPES, fix
from unveil.nn.following import Following
from unveil.nn.grow import bare
from unveil.nn.moe import Mixture
from unveil.nn.transformer import Transformer
from unveil.sample import denoise, generate

# What torch says when it loads its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

WAYS = {
    "leader": ("leader", 4, {"decoder": "threshold(tau=0.3)", "cache": "causal", "block": 4}),
    "leader, token by token": ("leader", 4, {"decoder": "confidence", "cache": "causal", "block": 1}),
    "block": ("block", 4, {"decoder": "threshold(tau=0.3)", "cache": "causal", "block": 4}),
    "dual": ("full", None, {"decoder": "confidence", "cache": "dual(refresh=3)", "block": 4}),
    "prefix": ("full", None, {"decoder": "confidence", "cache": "prefix", "block": 4}),
}


class Counting:
    """A backend that runs what was traced, and counts how often it is asked to compile."""

    def __init__(self):
        self.compiled = self.run = 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def forward(*given):
            self.run += 1
            return graph.forward(*given)

        return forward


@pytest.fixture(autouse=True)
def forgotten():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("way", WAYS)
def test_the_text_is_that_of_plain_passes_and_nothing_is_compiled_twice(way):
    kind, block, options = WAYS[way]
    model = tiny(kind, block, shifted=kind != "block")
    asked = [generate(model, prompts(3, length), 12, seed=1, **options) for length in (9, 11, 9)]
    count = Counting()
    fix(model, count)
    fixed = bare(model).fixed
    assert torch.equal(generate(model, prompts(3, 9), 12, seed=1, **options), asked[0])
    first, run = count.compiled, count.run
    assert first == len(fixed.shapes) > 0
    assert run > first  # graphs are used again within one text
    for length, plain in zip((11, 9), asked[1:], strict=True):
        assert torch.equal(generate(model, prompts(3, length), 12, seed=1, **options), plain)
    assert count.compiled == len(fixed.shapes)
    assert count.run > run


def test_logits_are_those_of_plain_passes():
    """To float32 rounding: keys that nobody may look at count nothing, though they are there."""
    for model in (tiny("leader", 4, shifted=True), Following(classic())):
        canvases = [Canvas.answering(list(prompts(2, 7)), 9, model.mask_id, torch.tensor([1, 2])) for _ in range(2)]
        look = model.attention.block
        seen: list[list[torch.Tensor]] = []
        for canvas in canvases:
            if canvas is canvases[1]:
                fix(model, Counting())
            run = denoise(model, canvas, "confidence", cache="causal", block=look)
            seen.append([each.latest.logits.clone() for each in run])
        assert len(bare(model).fixed.shapes) > 0
        for plain, fixed in zip(*seen, strict=True):
            torch.testing.assert_close(fixed, plain, rtol=1e-4, atol=1e-4)


def classic() -> Transformer:
    """GPT-2's kind: learned positions, and no mask token."""
    torch.manual_seed(0)
    biases = frozenset({"qkv", "out", "mlp"})
    shape = replace(TINY, **CLASSIC, qk_norm=None, kv_heads=4, biases=biases, context=64, mask_id=-1)
    return Transformer(shape).eval()


def test_buffers_belong_to_one_run_at_a_time():
    """The newest: an older one that goes on has a copy and is computed as usual."""
    model = tiny("leader", 4, shifted=True)
    options = {"cache": "causal", "block": 4}
    plain = generate(model, prompts(2, 6), 8, seed=3, **options)
    count = Counting()
    fix(model, count)
    canvases = [Canvas.answering(list(prompts(2, 6)), 8, model.mask_id, torch.tensor([3, 4])) for _ in range(2)]
    runs = [denoise(model, canvas, "confidence", **options) for canvas in canvases]
    for _ in zip(*runs, strict=True):  # step by step in turns
        pass
    assert all(torch.equal(canvas.tokens, plain) for canvas in canvases)
    run = count.run
    assert run > 0
    assert torch.equal(generate(model, prompts(2, 6), 8, seed=3, **options), plain)
    assert count.run > run


def test_too_many_shapes_are_computed_as_usual():
    model = tiny("leader", 4, shifted=True)
    count = Counting()
    fix(model, count)
    for rows in range(1, SHAPES + 3):
        generate(model, prompts(rows, 6), 4, seed=0, cache="causal", block=1)
    assert count.compiled == len(bare(model).fixed.shapes) == SHAPES


def test_training_goes_its_usual_way():
    model = tiny("leader", 4, shifted=True)
    count = Counting()
    fix(model, count)
    model(prompts(2, 6)).sum().backward()
    assert count.compiled == 0
    assert bare(model).embed.weight.grad is not None
    assert not [name for name in model.state_dict() if "fixed" in name or "keys" in name]


def test_a_mixture_of_experts_is_refused():
    shape = replace(TINY, mixture=Mixture(experts=4, active=2, hidden=16))
    with pytest.raises(ValueError, match="no fixed sizes"):
        fix(Transformer(shape))


def test_layers_that_see_less_far_are_refused():
    with pytest.raises(ValueError, match="one mask for all"):
        fix(Transformer(replace(TINY, **MIXED)))
