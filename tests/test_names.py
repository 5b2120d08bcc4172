"""The names that outsiders rely on, and the shape of the calls they make."""

from __future__ import annotations

import inspect

import torch
from models import prompts, tiny


def test_public_names():
    from unveil import rules
    from unveil.context import Context
    from unveil.hub import load, load_model, save
    from unveil.sample import denoise, generate

    assert all(callable(each) for each in (load, load_model, save, denoise, generate, rules.causal, rules.not_later))
    assert Context(rule=rules.causal).rule is rules.causal


def test_generate_keeps_its_signature():
    from unveil.sample import generate

    found = {name: p.default for name, p in inspect.signature(generate).parameters.items()}
    needed = inspect.Parameter.empty
    assert found == {
        "model": needed,
        "prompts": needed,
        "length": needed,
        "decoder": "confidence",
        "cache": "recompute",
        "block": None,
        "steps": None,
        "seed": None,
        "guide": None,
    }
    kinds = [p.kind.name for p in inspect.signature(generate).parameters.values()]
    assert kinds == ["POSITIONAL_OR_KEYWORD"] * 4 + ["KEYWORD_ONLY"] * 5


def test_denoise_takes_no_more_options():
    from unveil.sample import denoise

    found = list(inspect.signature(denoise).parameters)
    assert found == ["model", "canvas", "decoder", "cache", "block", "steps", "guide"]


def test_load_model_keeps_its_signature():
    from unveil.hub import load_model

    found = inspect.signature(load_model).parameters
    options = {name: p.default for name, p in found.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert options == {"adapter": None, "mask_id": None, "dtype": None, "device": "cpu", "raw": False}


def test_decoders_and_caches_as_objects_or_spec_strings():
    from unveil.caches.dual import Dual
    from unveil.decoders.threshold import Threshold
    from unveil.sample import generate

    model, given = tiny(), prompts()
    by_name = generate(model, given, 8, "threshold(tau=0.4)", cache="dual(refresh=2)", block=4)
    assert torch.equal(by_name, generate(model, given, 8, Threshold(tau=0.4), cache=Dual(refresh=2), block=4))
    rows = generate(model, list(given), 8, "threshold(tau=0.4)", cache="dual(refresh=2)", block=4)
    assert torch.equal(by_name, rows)
