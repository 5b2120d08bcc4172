"""What the rules for writing several tokens at once promise, checked on joint distributions that can be enumerated."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unveil.attention import FULL
from unveil.canvas import Canvas
from unveil.context import EVERYTHING, Context
from unveil.denoiser import Denoiser
from unveil.sample import denoise

SIZES = pytest.mark.parametrize("size", [(3, 4), (4, 3), (5, 2)], ids=str)  # positions, tokens
MANY = 1500  # joint distributions


class Exact(Denoiser):
    """Row b's tokens come from a joint distribution of its own; the logits are its exact conditional marginals.

    `joint` is (B, A) over the A = tokens^positions assignments.
    """

    def __init__(self, joint: Tensor, positions: int, tokens: int):
        super().__init__()
        self.joint, self.mask_id, self.attention = joint.double(), tokens, FULL
        self.every = torch.tensor(list(product(range(tokens), repeat=positions)))  # (A, positions)
        self.places = tokens ** torch.arange(positions)

    def given(self, written: Tensor) -> Tensor:
        """(B, A) the joint distribution, given what is written in (B, L)."""
        fits = ((written[:, None] == self.mask_id) | (written[:, None] == self.every)).all(-1)
        left = self.joint * fits
        return left / left.sum(-1, keepdim=True)

    def marginals(self, left: Tensor) -> Tensor:
        """(B, A) to (B, L, V)."""
        return torch.einsum("ba,alv->blv", left, F.one_hot(self.every, self.mask_id).double())

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        p = self.marginals(self.given(tokens))
        logits = F.pad(p, (0, 1)).log().flatten(0, 1)
        return logits if ctx.read is None else logits[ctx.read]


def model_of(size: tuple[int, int]) -> Exact:
    """Joints of three sorts: smooth to sharp; one assignment and noise; one assignment and its neighbours."""
    (positions, tokens), generator = size, torch.Generator().manual_seed(0)
    count, third = tokens**positions, MANY // 3
    scale = torch.linspace(0.5, 8, third)[:, None]
    spread = (scale * torch.randn(third, count, generator=generator)).softmax(-1)
    weight = torch.rand(third, 1, generator=generator)
    noise = (3 * torch.randn(third, count, generator=generator)).softmax(-1)
    chosen = F.one_hot(torch.randint(count, (third,), generator=generator), count)
    peaked = weight * chosen + (1 - weight) * noise
    # The hardest: assignment 0 fails at one position at a time, each with about the largest probability allowed.
    least = 1e-6 * torch.rand(third, count, generator=generator)
    doubt = (0.6 + 0.8 * torch.rand(third, positions, generator=generator)) / (positions + 1)
    for at in range(positions):
        least[:, tokens**at] += doubt[:, at]
    least[:, 0] += (1 - doubt.sum(1)).clamp(min=0)
    return Exact(torch.cat([spread, peaked, least / least.sum(-1, keepdim=True)]), positions, tokens)


def writes(model: Exact, decoder: str):
    """(B, L) before and after every step, and the joint distribution given what stood before."""
    before = torch.full((len(model.joint), model.every.shape[1]), model.mask_id)
    canvas = Canvas.filling(before, model.mask_id)
    for done in denoise(model, canvas, decoder):
        yield before, done.tokens.clone(), model.given(before)
        before = done.tokens.clone()


def of_set(model: Exact, chosen: Tensor, left: Tensor) -> Tensor:
    """(B, A) the joint distribution of the (B, L) positions chosen, each tuple at the number it spells."""
    number = (model.every * chosen[:, None] * model.places).sum(-1)
    return torch.zeros_like(left).scatter_add(1, number, left)


def violations(model: Exact, decoder: str, lead: float = 0.0) -> tuple[int, int]:
    """Steps of a row that wrote several tokens, and those at which they did not lead any other tuple by `lead`."""
    several = wrong = 0
    for before, after, left in writes(model, decoder):
        chosen = before != after
        many = chosen.sum(1) > 1
        joint = of_set(model, chosen, left)
        number = (after * chosen * model.places).sum(1, keepdim=True)
        level, other = joint.gather(1, number)[:, 0], joint.scatter(1, number, 0).amax(1)
        several += int(many.sum())
        wrong += int((many & (level - other < lead - 1e-6)).sum())
    return several, wrong


@SIZES
@pytest.mark.parametrize(
    ("decoder", "lead"),
    [
        ("factor", 0),
        ("factor(f=0.75)", 0.25),
        ("frechet(delta=0)", 0),
        ("frechet", 0.25),
        ("frechet(delta=0.02)", 0.02),
    ],
)
def test_what_is_written_together_is_the_likeliest_tuple(size, decoder, lead):
    """And it leads every other by 1 - f or delta, given what was written before."""
    several, wrong = violations(model_of(size), decoder, lead)
    assert several > 500
    assert wrong == 0


@SIZES
@pytest.mark.parametrize(
    "decoder", ["threshold(tau=0.7)", "threshold(tau=0.81)", "factor(f=1.1)", "frechet(delta=-0.1)"]
)
def test_rules_that_promise_less_break_it(size, decoder):
    _, wrong = violations(model_of(size), decoder)
    safe = decoder == "threshold(tau=0.81)" and (size[0] + 1) * (1 - 0.81) < 1  # too few positions to go wrong
    assert (wrong == 0) == safe


def test_the_bound_is_tight():
    """Three tokens of probability .74: writing all three is wrong, writing two is right."""
    joint = torch.zeros(1, 8)
    joint[0, 0], joint[0, 1], joint[0, 2], joint[0, 4] = 0.22, 0.26, 0.26, 0.26
    model = Exact(joint, 3, 2)
    torch.testing.assert_close(model.marginals(model.joint)[0, :, 0], torch.full((3,), 0.74).double())
    for decoder, first, wrong in [("factor", 2, 0), ("frechet(delta=0)", 2, 0), ("threshold(tau=0.7)", 3, 1)]:
        before, after, _ = next(writes(model, decoder))
        assert int((before != after).sum()) == first
        assert violations(model, decoder) == (1, wrong)


@SIZES
def test_the_product_of_marginals_is_as_near_as_claimed(size):
    """Total variation of the joint and the product of its marginals: below (3 n - 1) e / 2 where all exceed 1 - e."""
    model = model_of(size)
    p = model.marginals(model.joint)
    rows = torch.arange(len(p))[:, None, None]
    apart = 0.5 * (model.joint - p[rows, torch.arange(size[0]), model.every].prod(-1)).abs().sum(-1)
    bound = (3 * size[0] - 1) * (1 - p.amax(-1).amin(-1)) / 2
    assert (apart <= bound + 1e-9).all()
    assert (bound < 1).sum() > 50


@SIZES
@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_entropy_bound_loses_no_more_than_gamma(size, gamma):
    """In nats: how far the joint distribution of what is written together is from the product of its marginals."""
    model, several = model_of(size), 0
    for before, after, left in writes(model, f"entropy_bound(gamma={gamma})"):
        chosen = before != after
        joint, p = of_set(model, chosen, left), model.marginals(left)
        negative = (p * p.clamp_min(1e-300).log()).sum(-1)  # (B, L) entropies
        lost = (joint * joint.clamp_min(1e-300).log()).sum(-1) - (negative * chosen).sum(-1)
        assert (lost <= gamma + 1e-5).all()
        several += int((chosen.sum(1) > 1).sum())
    assert several > 200


def test_first_hitting_draws_from_the_joint_distribution():
    """With exact conditionals any order gives the joint: a chi-squared test over its 27 assignments."""
    joint, many = (1.5 * torch.randn(27, generator=torch.Generator().manual_seed(2))).softmax(-1).double(), 6000
    model = Exact(joint.expand(many, -1), 3, 3)
    canvas = Canvas.filling(torch.full((many, 3), 3), 3, torch.arange(many))
    for _ in denoise(model, canvas, "first_hitting"):
        pass
    spelled = (model.every * model.places).sum(-1).argsort()
    observed = torch.bincount((canvas.tokens * model.places).sum(-1), minlength=27)
    expected = many * joint[spelled]
    assert ((observed - expected) ** 2 / expected).sum() < 54.1  # 26 degrees of freedom, one in a thousand
