"""Golden traces: what each decoder writes, step by step, on a seeded model. A change here is a change of behaviour.

`python tests/test_traces.py` writes them anew; say in the commit why they changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import MASK, prompts, tiny

from unveil import spec
from unveil.canvas import Canvas
from unveil.nn.grow import bare
from unveil.sample import denoise

GOLDEN = Path(__file__).parent / "traces" / "decoders.json"
SETTINGS = {
    "full": ("full", None, False, "dual"),
    "sure": ("full", None, True, "recompute"),
    "leader": ("leader", 4, True, "causal"),
}


def trace(decoder: str, setting: str) -> list[list[list[int]]] | str:
    """The tokens of both rows after every step, or why the decoder is refused there."""
    kind, block, shifted, cache = SETTINGS[setting]
    model = tiny(kind, block, shifted=shifted, seed=11)
    if setting == "sure":  # probabilities from low to nearly 1, so that levels and bounds have something to decide
        bare(model).norm.weight.data.mul_(12)
    canvas = Canvas.answering([prompts(1, 4, 7)[0], prompts(1, 6, 8)[0]], 9, MASK, seeds=prompts(1, 2, 9)[0])
    steps = denoise(model, canvas, f"{decoder}(temperature=0.7)", cache=cache, block=4)
    try:
        return [[row.tolist() for row in step.rows()] for step in steps]
    except ValueError as refusal:
        return str(refusal)


def test_no_decoder_is_refused_everywhere():
    golden = json.loads(GOLDEN.read_text())
    for decoder in spec.names("decoders"):
        assert any(isinstance(golden[f"{decoder} {setting}"], list) for setting in SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("decoder", spec.names("decoders"))
def test_traces_are_as_they_were(decoder, setting):
    golden = json.loads(GOLDEN.read_text())
    assert f"{decoder} {setting}" in golden, "a new decoder needs its golden trace: python tests/test_traces.py"
    assert trace(decoder, setting) == golden[f"{decoder} {setting}"]


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    made = {f"{d} {s}": trace(d, s) for d in spec.names("decoders") for s in SETTINGS}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(steps)}" for name, steps in made.items())
    GOLDEN.write_text("{\n" + lines + "\n}\n")
