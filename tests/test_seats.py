"""Rows that began at different times come together where blocks begin, and each is written as if it were alone."""

from __future__ import annotations

import pytest
from engines import Watch, alone, ask, blanks, engine, model

from unveil.serve.cohort import PATIENCE
from unveil.serve.messages import Cancel


def staggered(kind: str, count: int, every: int, **options) -> tuple[Watch, list, list[int]]:
    """Requests that come one after the other, and how many canvases there were in each round."""
    watch, canvases = Watch(engine(kind)), []
    orders = [ask(f"r{n}", blanks(5 + n % 3, 24, n), seed=n, **options) for n in range(count)]
    waiting = list(orders)
    while waiting or not watch.engine.idle:
        if waiting and watch.rounds % every == 0:
            watch.submit(waiting.pop(0))
        watch.step()
        canvases.append(len(watch.engine.cohorts))
    return watch.finish(), orders, canvases


@pytest.mark.parametrize("kind", ["leader", "block", "block shifted"])
@pytest.mark.parametrize("decoder", ["confidence", "threshold(tau=0.3, temperature=0.9)", "credit(temperature=1.0)"])
def test_rows_that_came_apart_are_written_as_alone(kind, decoder):
    watch, orders, canvases = staggered(kind, 6, 1, decoder=decoder)
    assert max(canvases[8:]) < 6
    for order in orders:
        assert watch.tokens(order.id) == alone(model(kind), order), order
        numbers = [(step.block, step.step) for step in watch.lines[order.id, 0].steps]
        assert numbers == sorted(numbers), "blocks go on being counted"
        assert numbers[-1][0] >= 24 // 4


def test_token_by_token_there_is_one_canvas():
    watch, orders, canvases = staggered("leader", 5, 2, block=1)
    # A row whose prompt is short computes it with its first prediction, and comes to the others a round later.
    assert max(canvases) <= 2
    assert canvases[-4:-1] == [1, 1, 1]
    for order in orders:
        assert watch.tokens(order.id) == alone(model("leader"), order)


@pytest.mark.parametrize("every", [1, 3])
def test_waiting_for_company_has_an_end(every):
    calm = staggered("leader", 1, 1, block=8)[0].rounds
    watch, orders, _ = staggered("leader", 8, every, block=8)
    for order in orders:
        line = watch.lines[order.id, 0]
        assert line.done is not None
        assert watch.tokens(order.id) == alone(model("leader"), order)
    assert watch.rounds <= 7 * every + calm + PATIENCE + 1


@pytest.mark.parametrize("decoder", ["klass", "saber", "speculative"])
def test_who_remembers_stays_where_he_is(decoder):
    watch, orders, canvases = staggered("leader", 3, 1, decoder=decoder)
    assert max(canvases) == 3
    for order in orders:
        assert watch.tokens(order.id) == alone(model("leader"), order)


def test_a_row_that_waits_can_be_cancelled():
    watch = Watch(engine("leader"))
    first, late = ask("first", blanks(5, 24), block=8), ask("late", blanks(40, 24, 2), block=8)
    watch.submit(first)
    for _ in range(7):
        watch.step()
    watch.submit(late)
    watch.step()
    watch.engine.cancel(Cancel("late"))
    watch.finish()
    assert watch.reason("late") == "cancelled"
    assert watch.tokens("first") == alone(model("leader"), first)
