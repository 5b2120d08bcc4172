"""Kept prefixes: with reuse the same is written as without, and what is kept stays within its room."""

from __future__ import annotations

import random

import pytest
import torch
from engines import END, Watch, alone, ask, blanks, engine, model, run
from models import MASK, prompts

from unveil.context import Store
from unveil.serve.messages import Cancel, Submit
from unveil.serve.prefixes import Prefixes

KINDS = ["leader", "block", "block shifted"]


def listened(network) -> list[torch.Tensor]:
    """The logits of every pass in which something is read, as the network says them."""
    said: list[torch.Tensor] = []

    def listen(_, __, logits: torch.Tensor) -> None:
        if len(logits):
            said.append(logits.clone())

    (network.model if network.shifted else network).register_forward_hook(listen)
    return said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [3, 8, 41, 90])
@pytest.mark.parametrize("more", [0, 1, 6, 50])
def test_the_next_turn_reuses_what_was_kept(kind, size, more):
    """Prompts of all lengths, in step with the blocks and out of it, and with long rests."""
    watch = Watch(engine(kind))
    first = ask("first", blanks(size, 10), decoder="threshold(tau=0.3)")
    watch.submit(first)
    watch.finish()
    turn = watch.tokens("first") + prompts(1, more, 5)[0].tolist() + [MASK] * 9
    second = ask("second", turn, decoder="threshold(tau=0.3)")
    said = listened(watch.engine.model)
    watch.submit(second)
    watch.finish()
    with_reuse, fresh = list(said), Watch(engine(kind))
    del said[:]
    plain = listened(fresh.engine.model)
    fresh.submit(second)
    fresh.finish()
    assert fresh.reused["second"] == [0]
    reused, grain = watch.reused["second"][0], 1 if kind == "leader" else 4
    assert reused % grain == 0
    kept = size + 10 - 1 - (size + 9) % 4 if kind != "leader" else size + 8  # where the last block begins
    assert reused == min(kept, len(turn) - 10 if kind == "leader" else (len(turn) - 9) // 4 * 4)
    assert watch.engine.load().reused == reused
    assert watch.tokens("second") == fresh.tokens("second") == alone(model(kind), second)
    assert len(with_reuse) == len(plain)
    for one, other in zip(with_reuse, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    done = watch.lines["second", 0].done, fresh.lines["second", 0].done
    assert done[0].forwards <= done[1].forwards


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_part_ways_share_what_they_have_in_common(kind):
    numbers, watch, network = random.Random(kind), Watch(engine(kind)), model(kind)
    told = prompts(1, 60, 3)[0].tolist()
    orders = []
    for n in range(14):
        same = numbers.randint(0, 60)
        prompt = told[:same] + prompts(1, numbers.randint(1, 40), 10 + n)[0].tolist()
        decoder = numbers.choice(["confidence", "threshold(tau=0.3)", "random"])
        orders.append(ask(f"r{n}", *[prompt + [MASK] * 7] * numbers.choice([1, 3]), seed=n, decoder=decoder))
    for order in orders:
        watch.submit(order)
        for _ in range(numbers.choice([0, 1, 9])):
            watch.step()
    watch.finish()
    for order in orders:
        for number in range(len(order.rows)):
            assert watch.tokens(order.id, number) == alone(network, order, number)
    assert watch.engine.load().reused > 100


def test_answers_to_one_prompt_share_its_computation():
    watch = Watch(engine("leader"))
    computed: list[int] = []
    bare = watch.engine.model.model
    bare.blocks[0].attention.q.register_forward_hook(lambda _, __, q: computed.append(q.shape[0] * q.shape[1]))
    order = ask("n", *[blanks(81, 5)] * 4, decoder="random")
    watch.submit(order)
    watch.step()
    assert computed == [80]
    watch.finish()
    assert computed[1] == 4  # the prompt's last token of each row; what it predicts is not computed yet
    assert len({tuple(watch.tokens("n", row)) for row in range(4)}) > 1
    assert [watch.tokens("n", row) for row in range(4)] == [alone(model("leader"), order, row) for row in range(4)]


def test_a_block_in_which_the_text_ended_is_not_kept():
    network, found = model("block"), None
    for seed in range(200):  # a request whose text ends within a block that is not finished
        order = ask("a", blanks(7, 16, seed), decoder="confidence")
        text = alone(network, order)[7:]
        if END in text[:11]:
            found = seed
            break
    assert found is not None
    watch = Watch(engine("block", end=END))
    watch.submit(order)
    watch.finish()
    assert watch.reason("a") == "end"
    end = 7 + watch.tokens("a")[7:].index(END)
    assert watch.engine.prefixes.bytes <= end // 4 * 4 * watch.engine.network.position
    turn = ask("b", watch.tokens("a")[: end + 1] + blanks(5, 6, 9), ends=False)
    watch.submit(turn)
    watch.finish()
    assert watch.reused["b"][0] <= end // 4 * 4
    assert watch.tokens("b") == alone(network, turn)


@pytest.mark.parametrize("options", [{"full": True}, {"cache": "recompute"}])
def test_nothing_is_kept_where_it_would_not_be_exact(options):
    watch = run("leader", ask("a", blanks(50, 6), **options))
    assert watch.engine.prefixes.bytes == 0
    watch.submit(ask("b", blanks(50, 6), **options))
    watch.finish()
    assert watch.reused["b"] == [0]


def test_kept_prefixes_make_room_for_requests():
    position = engine("leader").network.position
    watch = Watch(engine("leader", memory=400 * position))
    for n in range(12):
        watch.submit(ask(f"r{n}", blanks(60, 4, n)))
        watch.finish()
        assert watch.engine.prefixes.bytes <= watch.engine.memory
    assert watch.engine.prefixes.bytes > 200 * position
    watch.submit(ask("large", blanks(220, 4, 77)))
    watch.step()
    assert watch.engine.used + watch.engine.prefixes.bytes <= watch.engine.memory
    watch.submit(ask("again", blanks(60, 4, 11)))
    watch.finish()
    assert watch.tokens("large") == alone(model("leader"), ask("large", blanks(220, 4, 77)))


def test_a_cancelled_row_leaves_its_company_the_prompt():
    watch = Watch(engine("leader"))
    order = ask("n", *[blanks(81, 5)] * 3, decoder="random")
    watch.submit(order)
    watch.step()
    watch.engine.cancel(Cancel("n", 0))
    watch.finish()
    assert watch.reason("n", 0) == "cancelled"
    assert [watch.tokens("n", row) for row in (1, 2)] == [alone(model("leader"), order, row) for row in (1, 2)]


@pytest.mark.parametrize("grain", [1, 4])
def test_the_tree_keeps_what_a_list_would_keep(grain):
    """Keys that say which token they belong to, against a plain search through everything that was kept."""
    numbers, kept = random.Random(grain), []
    tree = Prefixes(grain, 10)
    for turn in range(300):
        length = numbers.randint(0, 30)
        tokens = [numbers.randint(0, 1) for _ in range(length)]
        store, found = tree.begin(tokens, 40)
        common = [
            next((i for i, (a, b) in enumerate(zip(tokens, t, strict=False)) if a != b), min(len(tokens), len(t)))
            for t in kept
        ]
        assert found == max((same // grain * grain for same in common), default=0)
        if found:
            assert store.kept[0][0][0, 0, :found, 0].tolist() == tokens[:found]
            assert store.length == found
        full = Store(length)
        full.kept[0] = tuple(torch.tensor(tokens).float().view(1, 1, length, 1) for _ in "kv")
        if length:
            tree.keep(tokens, full, 0)
            kept.append(tokens[: length // grain * grain])
        if turn % 50 == 49:
            ends = {tuple(t[:stop]) for t in kept for stop in range(grain, len(t) + 1, grain)}
            assert tree.bytes == 10 * grain * len(ends)
    tree.shrink(500)
    assert 400 < tree.bytes <= 500
    last = kept[-1]
    assert tree.begin(last, 40)[1] == len(last), "what was needed last goes last"
    tree.shrink(0)
    assert tree.bytes == 0
    assert tree.begin(last, 40)[1] == 0


def test_a_submit_is_plain_data():
    assert Submit("a", []).cache is None
