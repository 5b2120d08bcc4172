"""Caches that compute scattered positions: dKV-Cache and dLLM-Cache against no cache and against plain code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import CLASSIC, MASK, MIXED, TINY, prompts, tiny

from unveil import spec
from unveil.caches.delayed import Delayed
from unveil.caches.features import Features
from unveil.canvas import Canvas
from unveil.context import Context, Store, Window
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Transformer
from unveil.rules import within
from unveil.sample import denoise, fill, generate, prepare
from unveil.together import together

DECODERS = ["confidence", "threshold(tau=0.3)", "margin"]
ALWAYS = ["delayed(refresh=1)", "features(prompt=1, response=1)", "features(prompt=1, response=90, rho=1.0)"]
CACHES = ["delayed", "delayed(refresh=3)", "features", "features(prompt=5, response=3, rho=0.4)"]
MODELS = ["plain", "shifted", "classic", "classic shifted", "sliding shifted", "mixed shifted"]


def network(kind: str, seed: int = 0):
    """A model of full attention: Llama-like, deeper, GPT-2-like or with sliding attention in layers; shifted or not."""
    if kind in ("plain", "shifted"):
        return tiny(shifted="shifted" in kind, seed=seed)
    torch.manual_seed(seed)
    shape = replace(TINY, layers=3) if "deep" in kind else replace(TINY, sliding=5)
    if "mixed" in kind:
        shape = replace(TINY, **MIXED)
    if "classic" in kind:
        biases = frozenset({"qkv", "out", "mlp"})
        shape = replace(TINY, **CLASSIC, qk_norm=None, kv_heads=4, biases=biases, context=64)
    model = Transformer(shape).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10) if p.dim() > 1 else p.add_(torch.randn_like(p) / 10)
    wrapped = Shifted(model) if "shifted" in kind else model
    wrapped.bos_id = 0
    return wrapped.eval()


def watched(model):
    """Logits of every pass and the number of positions of a row that each layer computed in it."""
    said, counts = [], []
    bare = model.model if model.shifted else model
    forward = model.forward

    def listen(tokens, ctx):
        counts.append([])
        said.append(forward(tokens, ctx).clone())
        return said[-1].clone()

    model.forward = listen
    for block in bare.blocks:
        block.attention.q.register_forward_hook(lambda _, __, q: counts[-1].append(q.shape[1]))
    return said, counts


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("cache", ALWAYS)
def test_refreshed_every_step_it_is_no_cache(kind, decoder, cache):
    model = network(kind)
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5)]
    said, _ = watched(model)
    plain = generate(model, given, 10, decoder, block=5, seed=3)
    expected = list(said)
    said.clear()
    assert torch.equal(generate(model, given, 10, decoder, cache=cache, block=5, seed=3), plain)
    assert len(said) == len(expected)
    for one, other in zip(said, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def layer(block, x, at, k, v):
    """One layer of a Llama for one row, plainly: attention and feed-forward output of `x` (n, E) at positions `at`."""
    a, h = block.attention, block.norm_1(x)
    k[at], v[at] = turned(a.k_norm(a.k(h).view(-1, 2, 8)), at), a.v(h).view(-1, 2, 8)
    q = turned(a.q_norm(a.q(h).view(-1, 4, 8)), at)
    p = (torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(2, 1)) / 8**0.5).softmax(-1)
    attention = a.out(torch.einsum("hqk,khd->qhd", p, v.repeat_interleave(2, 1)).reshape(len(at), -1))
    return attention, block.mlp(block.norm_2(x + attention))


def turned(x, at):
    angle = (at[:, None] * 1e4 ** (-torch.arange(0, 8, 2) / 8))[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def surest(logits, x):
    """Commit the surest blank, as LLaDA does with one token a step."""
    logits[:, MASK] = -torch.inf
    p, token = logits.softmax(-1).max(-1)
    at = p.masked_fill(x != MASK, -1).argmax()
    x[at] = token[at]


def plain_delayed(model, prompt, length, refresh):
    """dKV-Cache-Decode as published: what is reused was written before the step before."""
    x = torch.cat([prompt, torch.full((length,), MASK)])
    memory = [(torch.zeros(len(x), 2, 8), torch.zeros(len(x), 2, 8)) for _ in model.blocks]
    before, now = x != x, x != x
    for step in range(length):
        at = (~before).nonzero()[:, 0] if step % refresh and step > 1 else torch.arange(len(x))
        h = model.embed(x[at])
        for block, (k, v) in zip(model.blocks, memory, strict=True):
            attention, mlp = layer(block, h, at, k, v)
            h = h + attention + mlp
        logits = torch.full((len(x), 16), -torch.inf)
        logits[at] = model.head(model.norm(h))
        surest(logits, x)
        before, now = now, x != MASK
    return x


def plain_features(model, prompt, length, every, often, rho):
    """dLLM-Cache as published, the answer begun one position earlier; attention and feed-forward kept apart."""
    x = torch.cat([prompt, torch.full((length,), MASK)])
    size, first = len(x), len(prompt) - 1
    asked, answer = torch.arange(first), torch.arange(first, size)
    memory = [(torch.zeros(size, 2, 8), torch.zeros(size, 2, 8)) for _ in model.blocks]
    outputs = [(torch.zeros(size, 32), torch.zeros(size, 32)) for _ in model.blocks]
    for step in range(length):
        h = model.embed(x)
        for number, (block, (k, v)) in enumerate(zip(model.blocks, memory, strict=True)):
            if step % often == 0 or number == 0:
                chosen = answer
            else:
                value = block.attention.v(block.norm_1(h[answer])).view(-1, 2, 8)
                alike = F.cosine_similarity(value.flatten(1).double(), v[answer].flatten(1).double(), dim=-1)
                v[answer] = value
                chosen = answer[alike.topk(int(len(answer) * rho), largest=False).indices]
            at = torch.cat([asked, chosen]) if step % every == 0 else chosen
            attention, mlp = outputs[number]
            attention[at], mlp[at] = layer(block, h[at], at, k, v)
            h = h + attention + mlp
        surest(model.head(model.norm(h)), x)
    return x


@pytest.mark.parametrize("refresh", [2, 3, 8])
@torch.no_grad()
def test_delayed_equals_dkv_cache_written_plainly(refresh):
    differs = 0
    for seed in range(3):
        model, given = network("deep", seed), prompts(1, 5, seed=seed)
        found = generate(model, given, 12, cache=Delayed(refresh=refresh))
        assert torch.equal(found[0], plain_delayed(model, given[0], 12, refresh))
        differs += int((found != generate(model, given, 12)).any())
    assert differs, "the approximation never changed a token: the test proves nothing"


@pytest.mark.parametrize(("every", "often", "rho"), [(50, 6, 0.25), (4, 3, 0.5), (3, 5, 0.3)])
@torch.no_grad()
def test_features_equals_dllm_cache_written_plainly(every, often, rho):
    differs = 0
    for seed in range(3):
        model, given = network("deep", seed), prompts(1, 5, seed=seed)
        found = generate(model, given, 12, cache=Features(prompt=every, response=often, rho=rho))
        assert torch.equal(found[0], plain_features(model, given[0], 12, every, often, rho))
        differs += int((found != generate(model, given, 12)).any())
    assert differs, "the approximation never changed a token: the test proves nothing"


@pytest.mark.parametrize("kind", ["plain", "classic shifted", "sliding shifted", "mixed shifted"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("decoder", [*DECODERS, "saber", "edit(post=2)", "random"])
def test_a_batch_of_unequal_rows_writes_what_each_row_writes_alone(kind, cache, decoder):
    model = network(kind)
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5)]
    batch = generate(model, given, 11, decoder, cache=cache, block=6, seed=3)
    assert (batch != MASK).all()
    for row, prompt in enumerate(given):
        alone = generate(model, [prompt], 11, decoder, cache=cache, block=6, seed=3 + row)[0]
        assert torch.equal(batch[row, : len(alone)], alone), row


@pytest.mark.parametrize("cache", CACHES)
def test_rows_with_unequal_rests_are_filled_as_alone(cache):
    model = network("shifted")
    rows = [prompts(1, n, seed=n)[0] for n in (9, 12, 15)]
    for n, row in enumerate(rows):
        row[3 + n : 5 + 3 * n] = MASK
        row[-1] = MASK
    batch = fill(model, rows, cache=cache, block=5, seed=4)
    for row, found in zip(rows, batch, strict=True):
        assert torch.equal(found, fill(model, [row], cache=cache, block=5)[0])
        assert torch.equal(found[row != MASK], row[row != MASK])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", ["plain", "classic shifted"])
def test_together_writes_what_each_canvas_writes_alone(kind, cache):
    model = network(kind)
    wishes = [("confidence", 5, 8, 2), ("threshold(tau=0.3)", 4, 9, 1), ("random", 4, 9, 1), ("margin", 6, 6, 2)]
    canvases = [
        [Canvas.answering(prompts(rows, n, n), m, MASK, torch.arange(rows)) for _, n, m, rows in wishes] for _ in "ab"
    ]
    for canvas, (decoder, *_) in zip(canvases[0], wishes, strict=True):
        list(denoise(model, canvas, decoder, cache=cache))
    counts = []
    (model.model if model.shifted else model).norm.register_forward_hook(lambda *_: counts.append(1))
    jobs = [(c, prepare(model, c, decoder, cache=cache)) for c, (decoder, *_) in zip(canvases[1], wishes, strict=True)]
    list(together(model, jobs))
    for one, other in zip(*canvases, strict=True):
        assert torch.equal(one.tokens, other.tokens)
    merged = len(counts) < sum(canvas.forwards for canvas in canvases[1])
    assert merged == ("delayed" in cache)  # what layers did is not merged


def test_delayed_computes_blanks_and_what_was_just_written():
    model = network("plain")
    _, counts = watched(model)
    generate(model, prompts(2, 6), 12, cache="delayed")
    expected = [18 if step < 2 or step % 8 == 0 else 13 - step for step in range(12)]
    assert counts == [[n, n] for n in expected]  # recompute: 18 each time
    counts.clear()
    generate(model, prompts(2, 6), 12, "saber", cache="delayed")
    assert all(max(each) <= 18 for each in counts)


def test_shifted_models_also_compute_what_a_prediction_is_read_from():
    model = network("shifted")
    _, counts = watched(model)
    canvas = Canvas.answering(prompts(1, 6), 12, MASK)
    states = [canvas.tokens.clone(), *(c.tokens.clone() for c in denoise(model, canvas, cache="delayed"))]
    for step in (2, 3, 7, 9, 11):
        blank = states[step] == MASK
        needed = blank | (states[step] != states[step - 1]) | F.pad(blank, (0, 1))[:, 1:]
        assert counts[step] == [int(needed.sum())] * 2


def test_features_computes_a_share_of_the_answer():
    model = network("plain")
    _, counts = watched(model)
    generate(model, prompts(2, 6), 12, cache="features(prompt=8)")  # the answer is 13 positions with the token before
    expected = {0: [18, 18], 6: [13, 13], 8: [18, 8]}
    assert counts == [expected.get(step, [13, 3]) for step in range(12)]


@pytest.mark.parametrize("cache", [Delayed(), Features()])
def test_memory_is_allocated_once(cache):
    model, places = network("plain"), []
    for _ in denoise(model, Canvas.answering(prompts(2, 6), 12, MASK), cache=cache, block=6):
        kept = [t for pair in cache.store.kept.values() for t in pair]
        places.append([t.data_ptr() for t in kept + list(getattr(cache.store, "added", {}).values())])
    assert len(places[0]) == (4 if isinstance(cache, Delayed) else 6)
    assert all(each == places[0] for each in places)


@pytest.mark.parametrize("cache", ["delayed", "features"])
@pytest.mark.parametrize("kind", ["leader", "block", "causal"])
def test_models_whose_blocks_can_be_kept_exactly_are_refused(kind, cache):
    with pytest.raises(ValueError, match=f"{cache} cache approximates full attention.*{kind} attention.*use causal"):
        generate(tiny(kind, 4, shifted=kind == "leader"), prompts(), 8, cache=cache)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("delayed(refresh=-1)", "refresh is -1"),
        ("features(prompt=0)", "prompt is 0"),
        ("features(response=0)", "response is 0"),
        ("features(rho=0)", "rho is 0"),
        ("features(rho=1.5)", "rho is 1.5"),
    ],
)
def test_options_out_of_range_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        spec.build("caches", text)


def test_scattered_windows_take_and_put():
    wanted = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]]).bool()
    window = Window.scattered(wanted)
    assert (window.width, window.stop) == (3, 6)
    assert window.positions(wanted.device).tolist() == [[1, 3, 4], [0, 1, 2]]
    assert window.fresh is not None
    assert window.fresh.tolist() == [[True] * 3, [False, False, True]]
    x = torch.arange(24).view(2, 6, 2)
    assert torch.equal(window.take(x)[0], x[0, [1, 3, 4]])
    window.put(x, torch.full((2, 3, 2), -1))
    assert (x[..., 0] == -1).tolist() == wanted.tolist()
    assert window.rows(torch.tensor([1])).positions(x.device).tolist() == [[0, 1, 2]]
    assert Window.scattered(torch.ones(2, 4).bool()) == Window(0, 4)
    assert Window.scattered(wanted[:1]).fresh is None


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_a_scattered_pass_is_the_whole_pass_where_it_looks(kind):
    model, tokens = network(kind), prompts(3, 12)
    rule, store = within(torch.tensor([12, 9, 10])), Store(12)
    whole = model(tokens, Context(Window(0, 12), rule, store=store))
    stale = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    read = torch.tensor([3, 5, 14, 20, 25, 31, 33])
    part = model(tokens, Context(Window(0, 12), rule, store=store, stale=stale, read=read))
    torch.testing.assert_close(part, whole.flatten(0, 1)[read], atol=1e-4, rtol=1e-4)
