"""A folder that is exchanged is there whole, whatever happens in between."""

from __future__ import annotations

import os

import pytest
import torch
from toy import network

from unveil import folder, hub

OLD, NEW = network(seed=1), network(seed=2)


@pytest.fixture
def place(tmp_path):
    return hub.save(OLD, tmp_path / "model")


@pytest.mark.parametrize("then", ["load", "save"])
def test_a_kill_between_the_two_renames_loses_nothing(then, place, monkeypatch):
    real, done = os.replace, []

    def killed(source, target):
        if done:
            raise KeyboardInterrupt  # like a kill, nothing of the library stops it
        done.append(source)
        real(source, target)

    monkeypatch.setattr(folder, "PATIENCE", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(folder.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            hub.save(NEW, place, overwrite=True)
    assert not place.exists()
    again = hub.load_model if then == "load" else refused
    with pytest.warns(UserWarning, match="a save was killed before .*model was in its place; .* is there again"):
        again(place)
    assert torch.equal(hub.load_model(place).embed.weight, OLD.embed.weight)
    assert os.listdir(place.parent) == ["model"]


def refused(place):
    """The old model is back before the question is asked whether it may be replaced."""
    with pytest.raises(ValueError, match="exists and is not empty"):
        hub.save(NEW, place)


def test_an_exchange_that_is_going_on_is_waited_for(place, monkeypatch):
    """Between the renames of another process, which lives."""
    aside = place.with_name(".model.1.replaced")
    os.replace(place, aside)
    monkeypatch.setattr(folder.time, "sleep", lambda _: place.mkdir())
    folder.recover(place)
    assert aside.is_dir()
    assert not list(place.iterdir())


def test_nothing_is_recovered_where_nothing_was(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        hub.load_model(tmp_path / "other [1]")
