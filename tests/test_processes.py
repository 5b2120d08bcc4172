"""What is hidden: exactly as many tokens as drawn, evenly spread levels, and nothing outside the targets."""

from __future__ import annotations

import pytest
import torch

from unveil.processes import bernoulli, count, draw, groups


def test_a_count_is_exact_and_uniform():
    targets = torch.ones(600, 10, dtype=torch.bool)
    targets[:, 0] = targets[:, 7] = False
    parts = groups(targets.shape, 5, None, targets.device)
    drawn = draw(targets, parts, 1, torch.arange(600))
    assert not bool((drawn.hit & ~targets).any())
    for block, n in ((slice(0, 5), 4), (slice(5, 10), 4)):
        k = drawn.hit[:, block].sum(1)
        found = torch.bincount(k, minlength=n + 1)
        assert int(found[0]) == 0
        assert (found[1:] - 600 / n).abs().max() <= 3  # stratified: far below the spread of independent draws
        torch.testing.assert_close(drawn.weight[:, block].sum(1), torch.full((600,), float(n)))
        share = drawn.hit[:, block].double().mean(0)[targets[0, block]]
        assert (share - (n + 1) / (2 * n)).abs().max() < 0.08


def test_groups_are_documents_and_blocks():
    documents = torch.tensor([[4, 4, 4, 9, 9, 9, 9, 9]])
    assert groups(documents.shape, None, documents, documents.device).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    assert groups(documents.shape, 4, documents, documents.device).tolist() == [[0, 0, 0, 1, 2, 2, 2, 2]]
    assert groups(documents.shape, 3, None, documents.device).tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]


def test_extreme_levels():
    targets, parts = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.long)
    noise = torch.rand(2, 5, dtype=torch.float64)
    assert count(targets, parts, torch.zeros(2, 1), noise).hit.sum(1).tolist() == [1, 1]
    assert count(targets, parts, torch.full((2, 1), 1 - 1e-12), noise).hit.sum(1).tolist() == [5, 5]
    assert bernoulli(targets, torch.ones(2, 1), noise, 1e-3).hit.all()
    assert not count(torch.zeros_like(targets), parts, torch.zeros(2, 1), noise).hit.any()
    with pytest.raises(ValueError, match="count, bernoulli"):
        draw(targets, parts, 0, torch.arange(2), estimator="poisson")
