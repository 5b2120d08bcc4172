"""Rows that began at different times come together where blocks begin, and each is written as if it were alone."""

from __future__ import annotations

import pytest
from engines import Watch, alone, ask, blanks, engine, model

from unveil.serve.cohort import PATIENCE, SHARE
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


@pytest.mark.parametrize(("blanked", "together"), [(24, False), (72, True)])
def test_who_has_long_to_go_waits_longer(blanked, together):
    """The second comes four rounds before the first finishes its block: more than three, and no more than an eighth."""
    orders = [ask(f"r{n}", blanks(5, blanked, n), block=8, seed=n) for n in range(2)]
    calm, watch, canvases = Watch(engine("leader")), Watch(engine("leader")), []
    calm.submit(orders[1])
    calm.finish()
    watch.submit(orders[0])
    for _ in range(4):
        watch.step()
    watch.submit(orders[1])
    while not watch.engine.idle:
        watch.step()
        canvases.append(len(watch.engine.cohorts))
    assert max(canvases) == (1 if together else 2)
    assert watch.rounds - 4 <= calm.rounds + max(PATIENCE, blanked // SHARE)
    for order in orders:
        assert watch.tokens(order.id) == alone(model("leader"), order)


def test_whoever_has_the_shorter_wait_waits():
    """Rows that come a round after another begin at once, however patient: it waits a round for them later."""
    watch, first = Watch(engine("leader")), ask("first", blanks(5, 72), block=8)
    late = [ask(f"late{n}", blanks(5, 72, 1 + n), block=8) for n in range(3)]
    watch.submit(first)
    watch.step()
    for order in late:
        watch.submit(order)
    watch.step()
    assert all(watch.lines[order.id, 0].steps for order in late)
    assert len(watch.engine.cohorts) == 2
    for _ in range(8):
        watch.step()
    assert [cohort.living for cohort in watch.engine.cohorts] == [4]
    watch.finish()
    for order in (first, *late):
        assert watch.tokens(order.id) == alone(model("leader"), order)


def test_rows_of_one_canvas_stay_on_it_when_others_come():
    """Too far on to share a canvas with a row that begins, and not to be cut up for it."""
    watch = Watch(engine("leader"))
    old = [ask(f"old{n}", blanks(5, 200, n), block=1, seed=n) for n in range(3)]
    for order in old:
        watch.submit(order)
    for _ in range(150):
        watch.step()
    (cohort,) = watch.engine.cohorts
    for number in range(2):
        watch.submit(ask(f"new{number}", blanks(5, 200, 7 + number), block=1))
        watch.step()
        watch.step()
        assert cohort in watch.engine.cohorts
        assert cohort.living == 3
    watch.finish()
    for order in old:
        assert watch.tokens(order.id) == alone(model("leader"), order)


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
