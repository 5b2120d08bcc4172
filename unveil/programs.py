"""Python in what models write: which part of a completion is the program, and how many of n samples solve a problem."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # where a function's body is over (Chen et al. 2021, section 3)


def fenced(text: str) -> str | None:
    """What stands in the first fence of three backticks, closed or not; None where there is no fence."""
    found = FENCE.search(text)
    return None if found is None else found[1]


def before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def completed(prompt: str, completion: str) -> str:
    """The program of a function's beginning and what a model went on with.

    An indented completion is the rest of the body and ends where something new begins at the margin. One in a fence, or
    one that begins at the margin, is an answer with a function of its own: it stands behind the prompt, whose function,
    a docstring long, it replaces, and whose imports it may rely on.
    """
    code = fenced(completion)
    if code is None:
        first = next((line for line in completion.split("\n") if line.strip()), "")
        if not completion.strip() or first[:1].isspace() or not own(completion):
            return prompt + before(completion, STOPS)
        code = before(completion, ("\n```",))
    return f"{prompt}\n{code}" if own(code) else prompt + code


def own(code: str) -> bool:
    """Does it define something at the margin?"""
    return re.search(r"^(async def|def|class)\b", code, re.MULTILINE) is not None


def pass_at(k: int, right: Sequence[int], samples: int) -> float:
    """pass@k: how likely one of k samples is right, from the number of right ones among `samples` of each problem.

    The unbiased estimator 1 - C(n - c, k) / C(n, k), as a product (Chen et al. 2021, 2107.03374, equation 1).
    ValueError for a k beyond the number of samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs from 1 to {samples} samples, as many as each problem has")
    if not right:
        raise ValueError("pass@k of no problems: expected at least one")
    if wrong := [count for count in right if not 0 <= count <= samples]:
        raise ValueError(f"{wrong[0]} right ones among {samples} samples")
    return sum(1 - prod(1 - k / i for i in range(samples - c + 1, samples + 1)) for c in right) / len(right)
