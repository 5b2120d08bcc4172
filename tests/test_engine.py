"""The engine: every request gets what it would get alone, whoever runs beside it."""

from __future__ import annotations

import random

import pytest
from engines import KINDS, Watch, alone, ask, blanks, decoders, engine, legal, model
from models import MASK

from unveil.serve.messages import Cancel, Row, Submit

CACHES = {"full": ["recompute", "dual", "prefix", "delayed", "features(rho=0.5)", "dual(refresh=2)"]}
CACHES |= {"shifted": CACHES["full"], "block": ["causal", "recompute", "causal(sub=2)"]}
CACHES |= {"leader": ["causal", "recompute"], "block shifted": ["causal", "recompute"]}
GUIDES = [None, None, None, "unconditional", "contrast", "eos"]


def wish(numbers: random.Random, kind: str, name: str) -> Submit:
    """A request that the library takes, of many sizes and options."""
    while True:
        length, count = numbers.randint(1, 14), numbers.randint(1, 14)
        row = blanks(length, count, numbers.randrange(1000))
        if numbers.random() < 0.2 and count > 3:
            row[length + 1] = numbers.randrange(MASK)  # a token given between blanks
        rows = [row] * numbers.choice([1, 1, 2, 3])
        found = ask(
            name,
            *rows,
            seed=numbers.randrange(100),
            decoder=numbers.choice(decoders()),
            cache=numbers.choice([None, None, *CACHES[kind]]),
            block=numbers.choice([None, None, 4, 8]),
            steps=numbers.choice([None, None, None, 3]),
            guide=numbers.choice(GUIDES),
            full=kind == "leader" and numbers.random() < 0.2,
            top=numbers.choice([0, 0, 3]),
            ends=False,
        )
        if legal(kind, found):
            return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(int(__import__("os").environ.get("SEEDS", 3))))
def test_a_request_gets_in_a_crowd_what_it_gets_alone(kind, seed):
    numbers = random.Random(f"{kind} {seed}")
    watch, network = Watch(engine(kind)), model(kind)
    common = wish(numbers, kind, "common")
    orders = [wish(numbers, kind, f"r{n}") for n in range(12)]
    for n in range(6):  # these share every option and differ in length: they share canvases
        size = sum(token == MASK for token in common.rows[0].tokens)
        row = Row(blanks(numbers.randint(1, 14), size, n), n)
        orders.append(Submit(f"c{n}", [row], common.decoder, common.cache, common.block, common.steps, common.guide))
    numbers.shuffle(orders)
    cancelled = {order.id: numbers.randint(0, 9) for order in orders if numbers.random() < 0.2}
    begun: dict[str, int] = {}
    waiting = list(orders)
    while waiting or not watch.engine.idle:
        for _ in range(numbers.choice([0, 0, 1, 5])):
            if waiting:
                order = waiting.pop()
                begun[order.id] = watch.rounds
                watch.submit(order)
        watch.step()
        for name, after in list(cancelled.items()):
            if name in begun and watch.rounds >= begun[name] + after:
                watch.engine.cancel(Cancel(name, numbers.choice([None, 0])))
                del cancelled[name]
    watch.finish()
    compared = 0
    for order in orders:
        if order.id in watch.refused:
            assert not legal(kind, order)
            continue
        for number in range(len(order.rows)):
            if watch.reason(order.id, number) == "length":
                assert watch.tokens(order.id, number) == alone(network, order, number), order
                compared += 1
            else:
                assert watch.reason(order.id, number) == "cancelled", (order, watch.lines[order.id, number].done)
    assert compared > 8
