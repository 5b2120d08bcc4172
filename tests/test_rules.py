"""Rules against masks spelled out, and when they become matrices."""

from __future__ import annotations

import pytest
import torch

from unveil import rules
from unveil.context import Context, Store, Window


def written(rule, length: int) -> torch.Tensor:
    return rule(torch.arange(length)[None, :, None], torch.arange(length)[None, None]).expand(-1, length, length)


def spelled(length: int, allowed) -> torch.Tensor:
    return torch.tensor([[[allowed(q, k) for k in range(length)] for q in range(length)]])


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        (rules.causal, lambda q, k: k <= q),
        (rules.not_later([3, 5]), lambda q, k: sum(k >= e for e in (3, 5)) <= sum(q >= e for e in (3, 5))),
        (rules.not_later(4), lambda q, k: k // 4 <= q // 4),
        (rules.leading(4, 3), lambda q, k: k <= q or (4 <= q < 7 and k < 7)),
        (rules.within(torch.tensor([5])), lambda q, k: k < 5),
        (rules.documents(torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])), lambda q, k: "00011222"[q] == "00011222"[k]),
    ],
)
def test_rules_are_what_they_say(rule, allowed):
    assert torch.equal(written(rule, 8), spelled(8, allowed))


@pytest.mark.parametrize("token_causal", [False, True])
def test_teacher_forcing_spelled_out(token_causal):
    length, size = 6, 2

    def allowed(q: int, k: int) -> bool:
        q_at, k_at, q_clean, k_clean = q % length, k % length, q >= length, k >= length
        if q_clean:
            return k_clean and (k_at <= q_at if token_causal else k_at // size <= q_at // size)
        return k_at // size < q_at // size if k_clean else k_at // size == q_at // size

    rule = rules.teacher_forcing(length, size, token_causal=token_causal)
    assert torch.equal(written(rule, 2 * length), spelled(2 * length, allowed))


def test_simple_rules_never_become_matrices():
    cpu = torch.device("cpu")
    assert Context().look(Window(0, 9), cpu) == (None, False)
    assert Context(rule=rules.causal).look(Window(0, 9), cpu) == (None, True)
    store = Store(20)
    store.length = 8
    assert Context(rule=rules.causal, store=store).look(Window(8, 1), cpu) == (None, False)
    # a block that sees finished blocks and all of itself sees everything there is
    assert Context(rule=rules.not_later(4), store=store).look(Window(8, 4), cpu) == (None, False)
    assert Context(rule=rules.leading(8, 4), store=store).look(Window(8, 4), cpu) == (None, False)
    mask, simple = Context(rule=rules.causal, store=store).look(Window(8, 4), cpu)
    assert mask is not None
    assert mask.shape == (1, 1, 4, 12)
    assert not simple


def test_both_allows_what_each_allows():
    rule = rules.both(rules.causal, rules.within(torch.tensor([3])))
    assert rule is not None
    assert torch.equal(written(rule, 5), spelled(5, lambda q, k: k <= q and k < 3))
    assert rules.both(None, None) is None
    assert rules.both(rules.causal, None) is rules.causal


def test_a_window_given_as_a_slice():
    assert Context(window=slice(2, 6)).window == Window(2, 4)
    with pytest.raises(ValueError, match="needs its stop"):
        Context(window=slice(2, None))
