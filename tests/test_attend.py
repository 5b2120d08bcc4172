"""Ways to attend give the numbers of the dense one."""

from __future__ import annotations

import pytest
import torch
from models import prompts, tiny

from unveil import rules
from unveil.context import Context
from unveil.nn.attend import Flex


@pytest.mark.parametrize(
    "rule",
    [None, rules.causal, rules.not_later(4), rules.documents(torch.arange(12) // torch.tensor([[3], [4], [5]]))],
    ids=["full", "causal", "blocks", "documents"],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_dense(rule):
    model, tokens = tiny(sharp=2), prompts(3, 12)
    with torch.inference_mode():
        plain = model(tokens, Context(rule=rule))
        found = model(tokens, Context(rule=rule, attend=Flex(compiled=False)))
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)
