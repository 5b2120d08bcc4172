"""What the engine says and does not say: finality, chances, refusals, failures, fairness, memory, the end."""

from __future__ import annotations

import math

import pytest
import torch
from engines import END, KINDS, Watch, alone, ask, blanks, decoders, engine, legal, model, run
from models import MASK

from unveil import spec
from unveil.canvas import Canvas
from unveil.sample import denoise
from unveil.serve.messages import Cancel, line, read


@pytest.mark.parametrize("kind", ["full", "shifted", "block", "leader"])
@pytest.mark.parametrize("decoder", decoders())
def test_what_is_said_to_be_final_never_changes(kind, decoder):
    """The watch asserts it at every step; here that it is said in time."""
    order = ask("a", *[blanks(5, 13, seed) for seed in (1, 2, 3)], decoder=decoder, block=4, ends=False)
    holes = blanks(4, 12, 6)
    holes[6], holes[7], holes[11] = 2, 5, 9
    several = ask("b", holes, decoder=decoder, block=4, ends=False)
    orders = [each for each in (order, several) if legal(kind, each)]
    if not orders:
        pytest.skip("the library refuses it here")
    watch, takes_back = run(kind, *orders), spec.build("decoders", decoder).takes_back
    for watched in watch.lines.values():
        if not watched.steps:
            continue
        assert watched.done is not None
        assert watched.done.reason == "length"
        assert watched.steps[-1].final >= len(watched.tokens) - (4 if takes_back else 0)
        finals = [step.final for step in watched.steps]
        assert finals == sorted(finals)
        assert len(set(finals)) > 1
        if not takes_back:
            assert not any(step.taken_back for step in watched.steps)


@pytest.mark.parametrize("decoder", ["confidence", "confidence(temperature=1.0)", "saber", "speculative", "wino"])
def test_chances_are_those_of_the_pass_that_committed(decoder):
    kind = "leader" if decoder == "speculative" else "full"
    order = ask("a", blanks(5, 10), decoder=decoder, block=5, top=4, ends=False, seed=3)
    watch = run(kind, order)
    canvas = Canvas.answering(torch.tensor([blanks(5, 0)]), 10, MASK, torch.tensor([3]))
    before, seen = canvas.tokens.clone(), 0
    steps = denoise(model(kind), canvas, decoder, cache="causal" if kind == "leader" else "recompute", block=5)
    for _, step in zip(steps, watch.lines["a", 0].steps, strict=True):
        latest, writes = canvas.latest, {write.at: write for write in step.writes}
        changed = (canvas.tokens != before)[0].nonzero()[:, 0].tolist()
        assert sorted([*writes, *step.taken_back]) == changed
        logp = latest.logits.log_softmax(-1)
        for at, write in writes.items():
            n = int((latest.places[1] == at).nonzero())
            assert write.token == int(canvas.tokens[0, at])
            assert write.logp == pytest.approx(float(logp[n, write.token]), abs=1e-4)
            best = logp[n].topk(4)
            assert [token for token, _ in write.top] == best.indices.tolist()
            torch.testing.assert_close(torch.tensor([p for _, p in write.top]), best.values, atol=1e-4, rtol=1e-4)
            seen += 1
        assert (step.block, step.step) == (canvas.number, canvas.step)
        before = canvas.tokens.clone()
    assert seen >= 10
    assert read(line(watch.lines["a", 0].steps[0])) == watch.lines["a", 0].steps[0]


def test_chances_are_told_to_those_who_ask():
    """On one canvas, whatever the others of it ask for."""
    orders = [ask(f"r{top}", blanks(5, 12, 1), block=4, top=top) for top in (None, 0, 2)]
    watch = run("leader", *orders)
    found = {order.top: [w for step in watch.lines[order.id, 0].steps for w in step.writes] for order in orders}
    assert {(write.logp, len(write.top)) for write in found[None]} == {(None, 0)}
    assert all(write.logp is not None and not write.top for write in found[0])
    assert all(len(write.top) == 2 for write in found[2])
    assert [write.logp for write in found[0]] == [write.logp for write in found[2]]
    silent = run("leader", orders[0])
    assert silent.tokens("rNone") == watch.tokens("rNone") == watch.tokens("r0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoder", ["confidence", "threshold(tau=0.3)", "saber", "edit(post=2)"])
def test_a_row_is_done_when_everything_before_its_first_end_is_final(kind, decoder):
    ended = 0
    for seed in range(3):
        rows = [blanks(5, 16, 3 * seed + n) for n in range(3)]
        chosen = decoder.removesuffix(")") + (", " if "(" in decoder else "(") + "temperature=1.0)"
        order = ask("a", *rows, decoder=chosen, block=4, seed=seed)
        watch = run(kind, order, end=END)
        for number in range(3):
            full, found = alone(model(kind, end=END), order, number)[5:], watch.tokens("a", number)[5:]
            if watch.reason("a", number) == "end":
                ended += 1
                stop = full.index(END) + 1
                assert found[:stop] == full[:stop]
                # An edit decoder rests when a step changes nothing, and of such steps nothing is said.
                assert watch.lines["a", number].steps[-1].final >= 5 + stop or "edit" in decoder
            else:
                assert END not in full
                assert found == full
    assert ended or "edit" in decoder


def test_prompts_may_hold_the_end():
    row = [END, 2, END, *blanks(3, 5)]
    watch = run("leader", ask("a", row, ends=False), ask("b", row), end=END)
    assert watch.reason("a") == "length"
    assert watch.tokens("a") == alone(model("leader", end=END), ask("a", row))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder": "psychic"}, "no decoder called 'psychic'"),
        ({"decoder": "threshold(theta=1)"}, "no option 'theta'"),
        ({"decoder": "threshold(0.9)"}, "expected name"),
        ({"decoder": "confidence(temperature=-1)"}, "temperature is -1"),
        ({"decoder": "confidence(temperature='hot')"}, "cannot build"),
        ({"decoder": "ahd"}, "reads predictions beyond the block"),
        ({"decoder": "wino"}, "looks at everything afresh"),
        ({"decoder": "focore(table='/nowhere/at/all')"}, "No such file"),
        ({"cache": "dual"}, "this model has leader attention.*use causal"),
        ({"cache": "bottomless"}, "no cache called"),
        ({"cache": "causal(sub=2)"}, "sub-blocks"),
        ({"guide": "star"}, "no guide called"),
        ({"guide": "unconditional"}, "needs full or block attention"),
        ({"guide": "eos"}, "which token ends a text"),
        ({"block": 0}, "block is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"top": -1}, "top is -1"),
        ({"top": 17}, "top is 17"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": 1 << 63}, "the seed is"),
        ({"rows": []}, "no row"),
        ({"rows": [[1, 2]]}, "nothing to write"),
        ({"rows": [[]]}, "nothing to write"),
        ({"rows": [[MASK, 1]]}, "begins with a blank"),
        ({"rows": [[1, 16, MASK]]}, "16 is no token"),
        ({"rows": [[-1, MASK]]}, "-1 is no token"),
        ({"rows": [[1, MASK], [1, 2]]}, "nothing to write"),
        ({"rows": [[1] * 60 + [MASK] * 5]}, "65 positions together; the model's context holds 64"),
        ({"schema": {"type": "object"}}, "tokenizer"),
    ],
)
def test_what_is_wrong_is_refused_in_one_sentence(options, words):
    watch = Watch(engine("leader"))
    watch.engine.model.context_length = 64
    rows = options.pop("rows", [blanks(4, 4)])
    fine = ask("fine", blanks(4, 4))
    watch.submit(fine)
    watch.submit(ask("wrong", *rows, **options))
    assert not watch.engine.idle
    watch.finish()
    assert "\n" not in watch.refused["wrong"]
    assert "/nowhere" not in watch.refused["wrong"]
    assert __import__("re").search(words, watch.refused["wrong"])
    assert watch.tokens("fine") == alone(model("leader"), fine)


def test_a_name_that_is_taken_is_refused():
    watch = Watch(engine())
    watch.engine.submit(ask("a", blanks(4, 4)))
    watch.engine.submit(ask("a", blanks(4, 4)))
    assert any("running already" in getattr(event, "message", "") for event in watch.engine.step())


def test_a_failure_takes_nobody_else_down():
    others = [ask(f"r{n}", blanks(5, 12, n), decoder="threshold(tau=0.3)", seed=n) for n in range(4)]
    wrong = ask("wrong", blanks(5, 12), decoder="credit(tau='x')")  # found out when it first writes
    watch = run("leader", *others[:2], wrong, *others[2:])
    assert watch.reason("wrong") == "failed"
    assert "TypeError" in watch.lines["wrong", 0].done.message
    for order in others:
        assert watch.tokens(order.id) == alone(model("leader"), order)


def test_a_pass_that_fails_is_the_failure_of_its_own_request():
    watch = Watch(engine("full"))
    watch.engine.model.register_forward_pre_hook(refuse_thirteen)
    others = [ask(f"r{n}", [1 + n, 2, 3, *[MASK] * 9], decoder="random", seed=n) for n in range(3)]
    watch.submit(ask("wrong", [13, 2, *[MASK] * 8]))
    for order in others:
        watch.submit(order)
    watch.finish()
    assert watch.reason("wrong") == "failed"
    assert watch.lines["wrong", 0].done.message == "RuntimeError: thirteen"
    for order in others:
        if 13 not in watch.tokens(order.id):
            assert watch.tokens(order.id) == alone(model("full"), order)
    assert any(watch.reason(order.id) == "length" for order in others)


def refuse_thirteen(_, given):
    if bool((given[0] == 13).any()):
        raise RuntimeError("thirteen")


@pytest.mark.parametrize("long", [(20, 1000), (1000, 20), (1000, 1000)])
@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("prompt", [10, 150])
def test_a_short_request_is_not_held_up_by_long_ones(long, many, prompt):
    short = ask("short", blanks(prompt, 16))
    calm = run("leader", short).rounds
    watch = Watch(engine("leader"))
    for number in range(many):
        watch.submit(ask(f"long{number}", blanks(*long, number)))
    for _ in range(2):
        watch.step()
    watch.submit(short)
    begun = watch.rounds
    while watch.lines["short", 0].done is None:
        watch.step()
    assert watch.rounds - begun <= calm + 3
    assert watch.lines["long0", 0].done is None or long[1] < 100
    for number in range(many):
        watch.engine.cancel(Cancel(f"long{number}"))
    watch.finish()


def test_requests_are_admitted_in_order_as_memory_allows():
    size = run("leader", ask("a", blanks(5, 8))).loads
    assert size[-1].memory == 0
    probe = Watch(engine("leader"))
    probe.submit(ask("a", blanks(5, 8)))
    probe.step()
    one = probe.engine.used
    watch = Watch(engine("leader", memory=int(one * 2.5)))
    for name in "abcd":
        watch.submit(ask(name, blanks(5, 8), decoder="confidence" if name != "b" else "random"))
    watch.submit(ask("two", blanks(5, 8), blanks(5, 8)))
    watch.submit(ask("small", blanks(2, 2)))
    watch.submit(ask("huge", *[blanks(5, 8)] * 3))
    watch.step()
    assert set(watch.admitted) == {"a", "b"}
    assert "huge" in watch.refused
    assert "bytes" in watch.refused["huge"]
    watch.finish()
    order = ["a", "b", "c", "d", "two", "small"]
    assert sorted(watch.admitted, key=lambda name: (watch.admitted[name], order.index(name))) == order
    assert watch.admitted["two"] <= watch.admitted["small"]
    assert max(load.memory for load in watch.loads) <= watch.engine.memory


@pytest.mark.parametrize("kind", ["full", "leader"])
def test_a_cancelled_request_is_gone_at_the_next_step(kind):
    cache = "dual" if kind == "full" else None
    watch = Watch(engine(kind))
    for name in "abc":
        watch.submit(ask(name, blanks(5, 14), cache=cache, block=4))
    for _ in range(3):
        watch.step()
    (cohort,) = watch.engine.cohorts
    assert len(cohort.cache.store.kept[0][0]) == 3
    before = watch.engine.used
    watch.engine.cancel(Cancel("b"))
    watch.engine.cancel(Cancel("nobody"))
    rows: list[int] = []
    bare = watch.engine.model.model if watch.engine.model.shifted else watch.engine.model
    bare.blocks[0].attention.q.register_forward_hook(lambda _, __, q: rows.append(len(q)))
    watch.step()
    assert watch.reason("b") == "cancelled"
    assert watch.engine.used == before / 3 * 2
    assert len(cohort.cache.store.kept[0][0]) == 2
    watch.step()
    assert rows[-1] == 2
    watch.engine.cancel(Cancel("a"))
    watch.engine.cancel(Cancel("c"))
    assert not watch.engine.cohorts
    watch.finish()


def test_a_waiting_request_can_be_cancelled():
    watch = Watch(engine("leader", memory=40000))
    for name in "abcdefgh":
        watch.submit(ask(name, blanks(5, 14), blanks(5, 14)))
    watch.step()
    assert "h" not in watch.admitted
    watch.engine.cancel(Cancel("h", 1))
    watch.engine.cancel(Cancel("g"))
    watch.finish()
    assert watch.reason("h", 0) == "length"
    assert watch.reason("h", 1) == watch.reason("g", 0) == watch.reason("g", 1) == "cancelled"
    assert "g" not in watch.admitted


def test_memory_stays_where_it_was():
    watch = Watch(engine("leader", memory=2_000_000))
    counts = []
    for number in range(200):
        watch.submit(ask(f"r{number}", blanks(2 + number % 7, 1 + number % 5, number), seed=number))
        watch.step()
        if number % 50 == 49:
            watch.finish(5000)
            counts.append(sum(len(vars(part)) for part in (watch.engine, watch.engine.prefixes)))
            assert watch.engine.prefixes.bytes <= watch.engine.memory
            assert not watch.engine.requests
            assert not watch.engine.fresh
    assert all(len(watch.lines[f"r{n}", 0].steps) for n in range(200))
    assert watch.loads[-1].memory == watch.loads[-1].running == watch.loads[-1].waiting == 0
    assert watch.loads[-1].tokens == sum(1 + number % 5 for number in range(200))


def test_a_drained_engine_finishes_and_takes_nothing_more():
    watch = Watch(engine())
    watch.submit(ask("a", blanks(5, 9)))
    watch.step()
    watch.engine.drain()
    watch.submit(ask("late", blanks(5, 9)))
    watch.finish()
    assert watch.reason("a") == "length"
    assert "about to stop" in watch.refused["late"]
    assert watch.drained == 1
    idle = Watch(engine())
    idle.engine.drain()
    idle.step()
    assert idle.drained == 1


def test_what_the_engine_says_of_itself():
    found = engine("leader", memory=5).ready()
    assert (found.attention, found.block, found.mask_id, found.vocab, found.memory) == ("leader", 4, MASK, 16, 5)
    assert found.dtype == "float32"
    assert engine("full", memory=None).ready().memory > 1 << 20
    watch = run("leader", ask("a", blanks(5, 9)))
    assert math.isclose(watch.lines["a", 0].done.forwards, watch.loads[-1].passes)
    assert watch.loads[-1].tokens == 9
    assert engine().idle
    assert engine().step() == []
