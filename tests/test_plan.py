"""Plans agree with what small runs take, and say what does not fit; the examples for clusters are well formed."""

import io
import json
import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from unveil.attention import Attention
from unveil.cli import app
from unveil.cli.learn import plain
from unveil.cli.plan import size
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Shape, Transformer
from unveil.objectives import Batch
from unveil.objectives.autoregressive import Autoregressive
from unveil.objectives.block import Block
from unveil.objectives.leader import Leader
from unveil.objectives.masked import Masked
from unveil.train import Recipe, Training
from unveil.train.plan import LADDER, Cluster, counted, needed, operations, plan

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
SMALL = Shape(vocab=2048, width=128, layers=4, heads=4, kv_heads=2, hidden=384, head_size=32, mask_id=2047)
WIDE = replace(SMALL, width=256, heads=8, kv_heads=8, hidden=1024, layers=3)
OBJECTIVES = {"ar": Autoregressive(), "masked": Masked(), "block": Block(16), "leader": Leader(n=8, grow=0, full=0)}
TOLERANCE = 0.10


class Random:
    """Rows of two documents, so that the rule is a matrix where documents matter."""

    def batch(self, step, rows, length, *, seed=0):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 2046, (rows, length), generator=generator)
        begins = torch.randint(1, length, (rows, 1), generator=generator)
        documents = (torch.arange(length) >= begins).long()
        return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), documents, torch.arange(rows), step=step)

    def origins(self, ids, length, *, seed=0):
        return []


def highest(shape, recipe, objective, out):
    """Bytes of tensors that a step takes at its peak: the state before it, and all that the profiler saw allocated."""
    model = Transformer(shape)
    model.attention = Attention("full")
    wrapped = Shifted(model) if isinstance(objective, Leader) else model
    run = Training(wrapped, objective, Random(), recipe, out, console=Console(file=io.StringIO()))
    run.prepare(False, False)
    _, batch = run.update(run.fetch(0))
    state = sum(4 * p.numel() for p in model.parameters()) * 4  # weights, two moments, average
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run.update(batch)
    run.metrics.close()
    run.display.close()
    now = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return state + peak


# Of the wide shape the plan has only the sizes to get right, which what a run keeps and what it lets go depend on; rows
# shared out and numbers of half the size enter the same sums as in the small one.
@pytest.mark.parametrize("goal", OBJECTIVES)
@pytest.mark.parametrize(
    ("shape", "more"),
    [
        *[(SMALL, more) for more in ({}, {"checkpointing": True}, {"accumulate": 4}, {"dtype": "bfloat16"})],
        *[(WIDE, more) for more in ({}, {"checkpointing": True})],
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else "wide" if given is WIDE else "small",
)
def test_memory_is_what_a_run_takes(tmp_path, shape, goal, more):
    recipe = Recipe(**{"steps": 5, "rows": 8, "length": 128, "dtype": "float32", "save_every": 0, **more})
    measured = highest(shape, recipe, OBJECTIVES[goal], tmp_path / "out")
    planned = needed(shape, recipe, OBJECTIVES[goal], 1, 1, recipe.dtype == "bfloat16")
    assert planned.peak == pytest.approx(measured, rel=TOLERANCE)


def test_the_ladder_is_what_it_says():
    known = {"0.1B": 134.5e6, "0.5B": 494.0e6, "1B": 1.2358e9, "3B": 3.2128e9, "7B": 7.6156e9}
    known |= {"14B": 14.770e9, "32B": 32.76e9, "70B": 70.554e9}
    assert {name: counted(shape)[0] for name, shape in LADDER.items()} == pytest.approx(known, rel=1e-3)


def test_seven_billion_on_64():
    """The plan that docs/scale.md shows, by hand."""
    shape, cluster = LADDER["7B"], Cluster(64, 80e9)
    recipe = Recipe(rows=512, length=4096, accumulate=512, checkpointing=True)
    plans = {mode: plan(shape, recipe, Leader(), cluster, mode) for mode in ("ddp", "hsdp", "fsdp")}
    assert [p.fits for p in plans.values()] == [False, True, True]
    weights = 7_615_616_512
    assert plans["hsdp"].weights == weights
    assert plans["hsdp"].bytes.optimiser == 8 * weights / 8
    assert plans["fsdp"].bytes.weights == 4 * weights / 64
    found = plans["hsdp"]
    assert found.speed == pytest.approx(64 * 989e12 * 0.4 / operations(shape, recipe, Leader()))
    assert found.failures == 50_000 / 64 * 3600
    assert found.stop == pytest.approx(16 * weights / 8 / 20e9)
    assert found.every == pytest.approx(math.sqrt(2 * found.stop * found.failures))
    assert 0 < found.lost < 0.01
    dense = Recipe(rows=512, length=4096, accumulate=512)
    by_hand = 6 * (weights - 152_064 * 3584) + 12 * 28 * 3584 * 4096
    assert operations(shape, dense, Autoregressive()) == pytest.approx(by_hand, rel=1e-3)


def test_the_command(tmp_path):
    runner = CliRunner()
    found = runner.invoke(app, ["plan", "leader", "--gpus", "8", "--rows", "64", "--set", "accumulate=64", "--json"])
    plans = json.loads(found.stdout)["plans"]
    assert list(plans) == list(LADDER)
    fits = {name: [mode for mode, each in modes.items() if each["fits"]] for name, modes in plans.items()}
    assert fits["1B"] == ["ddp", "hsdp", "fsdp"]
    assert fits["70B"] == []
    found = runner.invoke(app, ["plan", "stdlib-ar", "--own", "--memory", "1M"])
    assert "nothing fits" in found.stdout
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "llama", "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64}
            | {"num_hidden_layers": 2, "num_attention_heads": 4}
        )
    )
    found = runner.invoke(app, ["plan", "leader", "--parent", str(tmp_path), "--tokens", "1e6"])
    assert "1e+06 tokens" in found.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--gpus", "3"], "16 rows a step cannot be shared equally by 3 GPUs"),
        (["--gpus", "12"], "12 GPUs are no multiple of the 8 of one machine"),
        (["--gpus", "0"], "at least one GPU"),
        (["--params", "9B"], "no parent of 9B parameters is listed; there are: 0.1B"),
        (["--params", "7B", "--own"], "give one of them"),
        (["--memory", "much"], "memory is a number with K, M, G or T"),
        (["--dtype", "int8"], "bfloat16 or float32"),
        (["--mfu", "2"], "mfu at most 1"),
    ],
)
def test_bad_plans(given, said):
    found = CliRunner().invoke(app, ["plan", "leader", *given])
    assert isinstance(found.exception, ValueError)
    assert said in str(found.exception)


def test_sizes():
    assert [size(text) for text in ("80G", "80GB", "1.5t", "1000")] == [80e9, 80e9, 1.5e12, 1000]


def test_the_examples_are_well_formed():
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"], check=True)
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    container = worker["template"]["spec"]["containers"][0]
    assert worker["replicas"] == job["spec"]["elasticPolicy"]["minReplicas"]
    assert int(job["spec"]["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    script = container["args"][0]
    subprocess.run(["bash", "-n", "-c", script], check=True)
    for text in (script, (EXAMPLES / "slurm.sh").read_text()):
        given = re.findall(r"--set (\w+)='?\"?(\w+)", text)
        Recipe.read(None, rows=512, **{name: plain(value) for name, value in given})
        assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in (EXAMPLES / "kubernetes.yaml").read_text()
