"""A run that was stopped, killed or starved of disk continues to the same numbers, bit for bit."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from training import Counting, network, run, same

from unveil.objectives import Loss
from unveil.objectives.autoregressive import Autoregressive
from unveil.train import Stopped, checkpoint, newest

KILLED = """
import os, signal
from pathlib import Path
import torch
torch.set_num_threads(1)
from training import run
from unveil.train import checkpoint
write = checkpoint.save_file
def die(tensors, file):
    write(tensors, file)
    if "00000015" in str(file) and file.name.startswith("optimiser"):
        os.truncate(file, 100)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = die
run(Path({out!r}))
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """20 steps without a break: the model, and the losses."""
    model = network()
    result = run(tmp_path_factory.mktemp("straight") / "out", model)
    return model, numbers(result)


def numbers(result):
    """The part of the log that does not depend on the clock."""
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in result.history]


def interrupted(out, number=signal.SIGTERM, at=10, **options):
    """A run that a signal stops after `at` steps."""
    data = Counting(lambda step: os.kill(os.getpid(), number) if step == at else None)
    with pytest.raises(Stopped) as caught:
        run(out, data=data, **options)
    return caught.value


def continued(out, straight, **options):
    """Resume with another network and another state of the dice: the checkpoint must bring everything."""
    model = network(seed=7)
    result = run(out, model, resume=True, **options)
    assert same(model, straight[0])
    assert numbers(result) == straight[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits(tmp_path, straight, number, code):
    handlers = signal.getsignal(number)
    stopped = interrupted(tmp_path / "out", number, at=8)
    assert (stopped.code, stopped.step) == (code, 8)
    assert stopped.path == newest(tmp_path / "out" / "checkpoints")
    assert signal.getsignal(number) == handlers
    continued(tmp_path / "out", straight)


def test_nothing_is_lost_when_it_happens_twice(tmp_path, straight):
    interrupted(tmp_path / "out", at=3)
    interrupted(tmp_path / "out", at=12, resume=True)
    continued(tmp_path / "out", straight)
    continued(tmp_path / "out", straight)  # a finished run is only exported again


def test_micro_batches_and_random_numbers_continue(tmp_path):
    class Noisy(Autoregressive):
        def __call__(self, model, batch):
            loss = super().__call__(model, batch)
            dice = torch.rand(()), random.random(), np.random.default_rng(np.random.randint(1 << 30)).random()
            return Loss(loss.total * sum(dice), loss.count)

    one, two = network(), network(seed=7)
    options = {"accumulate": 2, "objective_": Noisy()}
    whole = run(tmp_path / "one", one, **options)
    interrupted(tmp_path / "two", at=9, **options)
    random.seed(1)
    assert numbers(run(tmp_path / "two", two, resume=True, **options)) == numbers(whole)
    assert same(one, two)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "state", "partial"])
def test_damaged_checkpoints_are_skipped(tmp_path, straight, harm):
    out = tmp_path / "out"
    interrupted(out, at=13)
    last = out / "checkpoints" / "step-00000013"
    file = last / "optimiser.safetensors"
    if harm == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif harm == "flipped":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    elif harm == "missing":
        file.unlink()
    elif harm == "state":
        text = (last / "state.json").read_text()
        (last / "state.json").write_text(text.replace('"tokens": 416', '"tokens": 417'))
    elif harm == "partial":
        last.rename(last.with_name(".partial-00000013-1"))
    if harm == "partial":
        continued(out, straight)
    else:
        with pytest.warns(UserWarning, match="damaged checkpoint .*step-00000013"):
            continued(out, straight)
    assert not list((out / "checkpoints").glob(".partial*"))
    assert [checkpoint.damage(p) for p in checkpoint.listed(out / "checkpoints")] == [None, None]


def test_when_all_are_damaged(tmp_path):
    interrupted(tmp_path / "out", at=3)
    (tmp_path / "out" / "checkpoints" / "step-00000003" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="every checkpoint.*damaged"):
        run(tmp_path / "out", resume=True)


def test_killed_in_the_middle_of_a_write(tmp_path, straight):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    script = KILLED.format(out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "out" / "checkpoints").glob(".partial-00000015*"))
    continued(tmp_path / "out", straight)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, straight, monkeypatch, error):
    write = checkpoint.save_file

    def full(tensors, file):
        write(tensors, file)
        if "00000010" in str(file) and file.name.startswith("optimiser"):
            raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="checkpoint of step 10 .*No space left.*step-00000005"):
        run(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000005"]
    monkeypatch.setattr(checkpoint, "save_file", write)
    continued(tmp_path / "out", straight)


def test_another_recipe_is_named(tmp_path):
    interrupted(tmp_path / "out", at=3)
    with pytest.raises(ValueError, match=r"rows \(4 there, 6 here\), lr \(0.01 there, 0.02 here\)"):
        run(tmp_path / "out", resume=True, lr=0.02, rows=6)
    run(tmp_path / "out", resume=True, keep=1, save_every=7)  # what changes no number may change
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000020"]


def test_another_model_is_named(tmp_path):
    interrupted(tmp_path / "out", at=3)
    model = network()
    model.blocks = model.blocks[:1]
    model.s = type(model.s)(**{**vars(model.s), "layers": 1})
    with pytest.raises(ValueError, match="another model: it differs in blocks.1"):
        run(tmp_path / "out", model, resume=True)


def test_only_some_are_kept(tmp_path):
    run(tmp_path / "two", steps=12, save_every=3)
    assert [p.name for p in checkpoint.listed(tmp_path / "two" / "checkpoints")] == ["step-00000012", "step-00000009"]
    run(tmp_path / "all", steps=12, save_every=3, keep=0)
    assert len(checkpoint.listed(tmp_path / "all" / "checkpoints")) == 4


def test_what_a_checkpoint_holds(tmp_path):
    run(tmp_path / "out", steps=3)
    path = newest(tmp_path / "out" / "checkpoints")
    assert path is not None
    files = {p.name for p in path.iterdir()}
    tensors = {f"{name}.safetensors" for name in ("model", "optimiser", "ema", "rng")}
    assert files == tensors | {"state.json"}
    state = json.loads((path / "state.json").read_text())["state"]
    assert state["checksums"].keys() == tensors
    assert state["cursor"] == {"step": 3, "sample": 12, "seed": 0}
    assert state["recipe"]["lr"] == 1e-2
    assert state["schedule"]["share"] == 1.0


def test_a_log_cut_off_by_a_kill_is_mended(tmp_path, straight):
    interrupted(tmp_path / "out", at=7)
    with (tmp_path / "out" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "loss": 1.0}\n{"step": 9, "lo')
    continued(tmp_path / "out", straight)


def test_a_resumed_run_without_checkpoints_begins_again(tmp_path, straight):
    (tmp_path / "out").mkdir()
    model = network()
    result = run(tmp_path / "out", model, resume=True)
    assert same(model, straight[0])
    assert numbers(result) == straight[1]
