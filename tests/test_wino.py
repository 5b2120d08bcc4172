"""WINO against its card: what the shadow sees, what is committed and taken back, and that every step gains."""

from __future__ import annotations

import pytest
import torch
from models import CLASSIC, MASK, TINY, prompts, tiny

from unveil.canvas import Canvas
from unveil.context import Context, Window
from unveil.decoders.wino import FIRST, Shadow, Wino, chance
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Shape, Transformer
from unveil.prediction import Prediction
from unveil.sample import denoise, fill, generate, prepare
from unveil.together import together

KINDS = [("full", None, False), ("full", None, True), ("block", 4, False), ("block", 4, True), ("leader", 4, True)]


def opened(kind: str, block: int | None, shifted: bool, rows: int = 2) -> Canvas:
    """A canvas of unequal rows in the middle of a block, with some of it written."""
    given = [prompts(1, n, seed=n)[0] for n in ((5, 7) if rows == 2 else (5,))]
    canvas = Canvas.answering(given, 9, MASK, torch.arange(rows), tiny(kind, block).attention)
    canvas.shifted = shifted
    second = list(canvas.blocks(4))[1]
    canvas.tokens[:, : int(canvas.starts.max())][canvas.tokens[:, : int(canvas.starts.max())] == MASK] = 2
    canvas.enter(second, None)
    for row, start in enumerate(canvas.starts.tolist()):
        canvas.tokens[row, canvas.first[row] : start] = 7
        canvas.tokens[row, start + 1 : start + 3] = torch.tensor([4, 9])
    canvas.step = 1
    stop = canvas.tokens.shape[1] if kind == "full" else canvas.block.stop
    canvas.window = Window(0, stop)
    return canvas


def looked(canvas: Canvas) -> Context:
    return Context(canvas.window, canvas.rule, read=canvas.reads(False, False))


@pytest.mark.parametrize(("kind", "block", "shifted"), KINDS)
def test_who_sees_whom(kind, block, shifted):
    canvas = opened(kind, block, shifted)
    shadow = Shadow(canvas, looked(canvas))
    width, total = canvas.window.width, shadow.total
    seen = shadow.context.rule(torch.arange(total)[None, :, None], torch.arange(total)[None, None]).expand(2, -1, -1)
    place = shadow.context.positions
    here, base = torch.arange(width), torch.ones(2, width, width, dtype=torch.bool)
    if canvas.rule is not None:
        base = base & canvas.rule(here[None, :, None], here[None, None])
    copies = range(width, width + 4) if shifted else range(0)
    masks = range(total - 4, total)
    for row in range(2):
        assert place[row, list(masks)].tolist() == canvas.block.positions(place.device).expand(2, -1)[row].tolist()
        for q in range(total):
            at = int(place[row, q])
            hidden = {at, at + 1} if q in copies else {at} if q in masks else set()
            for k in range(total):
                there = int(place[row, k])
                if there >= width:
                    continue
                if k < width:
                    expected = bool(base[row, at, there]) and k not in hidden
                else:
                    expected = k == q if k in copies else q >= width and bool(base[row, at, there])
                assert bool(seen[row, q, k]) == (expected or (q in copies and q == k)), (row, q, k)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("kind", "block", "shifted"), KINDS)
def test_a_written_token_has_no_say_in_its_own_verification(kind, block, shifted, rows):
    """Exactly so in a network of one layer; in a deeper one other tokens have seen it, as in the publication."""
    torch.manual_seed(3)
    network = Transformer(Shape(**{**vars(TINY), "layers": 1})).eval()
    with torch.no_grad():
        for p in network.parameters():
            if p.dim() > 1:
                p.mul_(10)
    model = Shifted(network) if shifted else network
    found, changed = [], opened(kind, block, shifted, rows)
    start = int(changed.starts[0])
    for token in (4, 11):
        canvas = opened(kind, block, shifted, rows)
        canvas.tokens[0, start + 1] = token
        wino = Wino()
        wino.enter(canvas)
        asking = wino.ask(canvas, looked(canvas))
        asked = next(asking)
        logits = model(asked.tokens, asked.context).detach()
        found.append((logits[len(looked(canvas).read) :], logits[: len(looked(canvas).read)]))
    (first, real), (second, other) = found
    assert len(first) == 2 * rows
    torch.testing.assert_close(first[0], second[0])  # of the token that changed
    assert not torch.allclose(first[1], second[1])  # of its neighbour
    assert not torch.allclose(real, other)


@pytest.mark.parametrize(("kind", "block", "shifted"), KINDS)
def test_the_text_does_not_notice_its_shadow(kind, block, shifted):
    model, canvas = tiny(kind, block, shifted=shifted), opened(kind, block, shifted)
    wino = Wino()
    wino.enter(canvas)
    asking = wino.ask(canvas, looked(canvas))
    asked = next(asking)
    with torch.inference_mode():
        plain = model(canvas.tokens, looked(canvas))
        with pytest.raises(StopIteration) as stop:
            asking.send(model(asked.tokens, asked.context))
    torch.testing.assert_close(stop.value.value, plain)
    assert int(wino.back.isfinite().sum()) == 4
    assert ((wino.back >= 0) & (wino.back <= 1))[wino.back.isfinite()].all()


def test_chance_is_a_softmax():
    logits, tokens = torch.randn(5, 9), torch.arange(5)
    torch.testing.assert_close(chance(logits, tokens), logits.softmax(-1)[tokens, tokens])


def judged(p: list[float], back: list[float], last: int, step: int = 1, budget: int = 40) -> list[bool | None]:
    """What a step does at each position: True committed, None taken back. Positions with a `back` stand already."""
    count = len(p)
    canvas = Canvas.filling(torch.full((1, count), MASK), MASK, torch.zeros(1, dtype=torch.long))
    canvas.window = canvas.block = Window(0, count)
    canvas.budget, canvas.step = budget, step
    canvas.tokens[0, torch.tensor(back) <= 1] = 5
    wino = Wino()
    wino.enter(canvas)
    wino.last, wino.back = torch.tensor([last]), torch.tensor([[b if b <= 1 else torch.inf for b in back]])
    rows = torch.tensor(p, dtype=torch.float64)
    logits = torch.full((count, 16), -torch.inf, dtype=torch.float64)
    logits[:, 0], logits[:, 1:11] = rows.log(), ((1 - rows) / 10).log()[:, None]
    read = canvas.reads(False, False)
    new = wino.write(canvas, Prediction(logits[read].float(), read, canvas))
    before = canvas.seen
    return [None if a == MASK != b else bool(a != b) for a, b in zip(new[0].tolist(), before[0].tolist(), strict=True)]


def test_unit_vectors():
    inf = 9.0
    assert judged([0.9, 0.7, 0.61, 0.59], [inf] * 4, FIRST) == [True, True, True, False]
    assert judged([0.59, 0.7, 0.5, 0.2], [inf] * 4, FIRST) == [False, True, False, False]
    assert judged([0.55, 0.52, 0.5, 0.2], [inf] * 4, FIRST) == [True, False, False, False]  # the best one, always
    # 12 blanks: floor(0.7 * 12) = 8; 6: max(4, 5) = 5; 40: min(28, 20) = 20
    for blanks, most in ((12, 8), (6, 5), (40, 20), (3, 3)):
        p = torch.linspace(0.99, 0.8, blanks).tolist()
        assert judged(p, [inf] * blanks, FIRST) == [True] * most + [False] * (blanks - most)
    # several committed: what is below 0.9 goes, worst first, and less than were committed before
    p, back = [0.8, 0.8, 0.8, 0.5, 0.5, 0.5, 0.5], [inf, inf, inf, 0.95, 0.1, 0.3, 0.2]
    assert judged(p, back, 4) == [True] * 3 + [False, None, None, None]
    assert judged(p, back, 3) == [True] * 3 + [False, None, False, None]
    assert judged(p, back, 1) == [True] * 3 + [False] * 4
    # one committed: nothing goes
    assert judged([0.8, 0.2, 0.2, 0.5], [inf, inf, inf, 0.1], 5) == [True, False, False, False]
    assert judged(p, back, 4, step=39) == [True] * 3 + [False] * 4  # the last step cannot make good what it takes


@pytest.mark.parametrize(("kind", "block", "shifted"), KINDS)
def test_rows_do_not_depend_on_their_company(kind, block, shifted):
    model = tiny(kind, block, shifted=shifted)
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5)]
    for decoder in ("wino(tau1=0.3, tau2=0.8)", "wino(tau1=0.2, temperature=0.7)"):
        batch = generate(model, given, 9, decoder, block=4, seed=3)
        assert torch.equal(batch, generate(model, given, 9, decoder, block=4, seed=3))
        for row, prompt in enumerate(given):
            alone = generate(model, [prompt], 9, decoder, block=4, seed=3 + row)[0]
            assert torch.equal(batch[row, : len(alone)], alone)


def reference_wino(model, prompt, length, tau1, tau2):
    """The published algorithm for one block, written plainly: one row, one long sequence, one matrix."""
    begin, text = prompt.shape[1], prompt.shape[1] + length
    x = torch.cat([prompt, torch.full((1, 2 * length), MASK)], 1)
    place = torch.cat([torch.arange(text), torch.arange(begin, text)])
    matrix = torch.ones(text + length, text + length, dtype=torch.bool)
    matrix[:text, text:] = False
    matrix[text:, begin:text] = ~torch.eye(length, dtype=torch.bool)
    last, forwards = 30, 0
    while (x[0, begin:text] == MASK).any():
        context = Context(Window(0, text + length), lambda q, k: matrix[q, k], positions=place)
        p = model(x, context)[0].double()
        p[:, MASK] = -torch.inf
        p, forwards = p.softmax(-1), forwards + 1
        blanks = (x[0, begin:text] == MASK).nonzero()[:, 0].tolist()
        most = min(max(int(len(blanks) * 0.7), 5), 20)
        sure = {at: float(p[begin + at].max()) for at in blanks}
        chosen = [at for at in blanks if sure[at] > tau1]
        chosen = sorted(chosen, key=lambda at: -sure[at])[:most] or [max(blanks, key=lambda at: sure[at])]
        back = {at: float(p[text + at, x[0, begin + at]]) for at in range(length) if at not in blanks}
        for at in chosen:
            x[0, begin + at] = p[begin + at].argmax()
        if len(chosen) > 1:
            wrong = sorted((at for at in back if back[at] < tau2), key=lambda at: back[at])
            x[0, [begin + at for at in wrong[: last - 1]]] = MASK
        last = len(chosen)
    return x[:, :text], forwards


def test_it_equals_the_published_algorithm_written_plainly():
    forwards = set()
    for seed in range(8):
        model, given, tau2 = tiny(seed=seed, sharp=12), prompts(1, seed=seed), (0.02, 0.06, 0.3)[seed % 3]
        with torch.inference_mode():
            expected, steps = reference_wino(model, given, 14, 0.2, tau2)
        canvas = Canvas.answering(given, 14, MASK)
        list(denoise(model, canvas, f"wino(tau1=0.2, tau2={tau2})"))
        assert torch.equal(canvas.tokens, expected)
        assert canvas.forwards == steps
        forwards.add(steps)
    assert len(forwards) > 2, forwards


@pytest.mark.parametrize("shifted", [False, True])
def test_every_step_gains_and_some_take_back(shifted):
    taken_back = 0
    for seed in range(4):
        canvas = Canvas.answering(prompts(1, seed=seed), 16, MASK)
        left = [16]
        before = canvas.tokens.clone()
        for now in denoise(tiny(seed=seed, shifted=shifted), canvas, "wino(tau1=0.2, tau2=0.95)"):
            left.append(int((now.tokens == MASK).sum()))
            taken_back += int(((now.tokens == MASK) & (before != MASK)).sum())
            before = now.tokens.clone()
        assert left[-1] == 0
        assert all(count <= 16 - step for step, count in enumerate(left))
        assert canvas.forwards == len(left) - 1 <= 16
        assert torch.equal(canvas.tokens[:, :6], prompts(1, seed=seed))
    assert taken_back, "nothing was ever taken back: the test proves nothing"


def test_without_verification_it_is_a_threshold():
    model = tiny()
    for seed in range(3):
        given = prompts(2, seed=seed)
        plain = generate(model, given, 5, "threshold(tau=0.3)")  # blocks of 5: the cap never binds
        assert torch.equal(generate(model, given, 5, "wino(tau1=0.3, tau2=0)"), plain)
        one = generate(model, given, 9, "wino(tau1=1.1)")
        assert torch.equal(one, generate(model, given, 9))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_and_gaps_leave_no_mask(steps):
    rows = [prompts(1, n, seed=n)[0] for n in (9, 12)]
    for n, row in enumerate(rows):
        row[3 + n : 6 + n] = MASK
        row[-2:] = MASK
    for shifted in (False, True):
        out = fill(tiny(shifted=shifted), rows, "wino(tau1=0.2, tau2=0.99)", block=5, steps=steps)
        for row, filled in zip(rows, out, strict=True):
            assert (filled != MASK).all()
            assert torch.equal(filled[row != MASK], row[row != MASK])


def test_together_writes_what_each_canvas_writes_alone():
    model = tiny()
    wishes = [("wino(tau1=0.2)", 8), ("wino(tau1=0.3)", 8), ("confidence", 8), ("wino(tau1=0.2)", 5)]

    def canvases():
        return [Canvas.answering(prompts(1 + n % 2, 6, n), size, MASK) for n, (_, size) in enumerate(wishes)]

    alone, crowd = canvases(), canvases()
    for canvas, (decoder, _) in zip(alone, wishes, strict=True):
        list(denoise(model, canvas, decoder, block=4))
    jobs = [(c, prepare(model, c, d, block=4)) for c, (d, _) in zip(crowd, wishes, strict=True)]
    list(together(model, jobs))
    for one, other in zip(alone, crowd, strict=True):
        assert torch.equal(one.tokens, other.tokens)


def test_learned_positions_serve_a_shadow():
    torch.manual_seed(0)
    shape = Shape(vocab=16, width=32, layers=2, heads=4, kv_heads=4, hidden=64, head_size=8, mask_id=MASK)
    model = Transformer(Shape(**{**vars(shape), **CLASSIC, "context": 14, "biases": frozenset({"qkv"})})).eval()
    canvas = Canvas.answering(prompts(), 8, MASK)
    list(denoise(model, canvas, "wino(tau1=0.06)"))  # 14 positions and a shadow of 8 in a context of 14
    assert not (canvas.tokens == MASK).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: generate(tiny(), prompts(), 8, "wino", cache="dual", block=4), "dual cache cannot serve it"),
        (lambda: generate(tiny("block", 4), prompts(), 8, "wino", cache="causal", block=4), "cannot serve it"),
        (lambda: generate(tiny(), prompts(), 8, "wino(tau2=-1)"), "tau2 is -1; expected a probability"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
