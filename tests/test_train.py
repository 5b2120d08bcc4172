"""The trainer learns, and its schedules, groups, averages, metrics and refusals are what they should be."""

import io
import json
from dataclasses import dataclass, replace

import pytest
import torch
from rich.console import Console
from training import Counting, network, recipe, run, same

from unveil.hub import load_model
from unveil.objectives import Loss
from unveil.objectives.autoregressive import Autoregressive
from unveil.train import Recipe
from unveil.train.machine import split
from unveil.train.optimiser import Average, groups, rate


@dataclass
class Poisoned:
    """A loss that is not finite at one step."""

    step: int
    gradient: bool = False
    bound: bool = True

    def __call__(self, model, batch):
        loss = Autoregressive()(model, batch)
        if batch.step != self.step:
            return loss
        bad = loss.total * torch.nan
        return Loss(loss.total + (bad - bad.detach()).nan_to_num() if self.gradient else bad, loss.count)


def test_it_learns_exports_and_says_so(tmp_path):
    model, console = network(), Console(file=io.StringIO(), width=200)
    told = {"evaluate": lambda m: {"held_out": 0.5, "error": 0.1}, "sample": lambda m: "a sample", "console": console}
    result = run(tmp_path / "out", model, steps=60, rows=8, length=16, eval_every=30, samples_every=30, **told)
    assert result.path == tmp_path / "out"
    assert result.metrics["loss"] < 0.1 < 2 < result.history[1]["loss"]
    lines = [json.loads(text) for text in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [line["step"] for line in lines] == list(range(61))
    assert [line["step"] for line in lines if "held_out" in line] == [0, 30, 60]
    expected = {"step", "tokens", "loss", "parts", "lr", "grad_norm", "tokens_per_second", "seconds"}
    assert set(lines[1]) == expected
    assert lines[-1]["tokens"] == 60 * 8 * 16
    assert (tmp_path / "out" / "samples" / "step-00000030.txt").read_text() == "a sample"
    spoken = console.file.getvalue()
    assert "held_out 0.5" in spoken
    assert "tokens/s" in spoken
    assert spoken.count("\n") < 20, "a log file wants few lines"
    exported = load_model(tmp_path / "out")
    assert same(exported, model), "the model keeps what was exported"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["unveil"]["tokens_seen"] == 60 * 8 * 16
    assert not list((tmp_path / "out").glob(".partial*"))
    assert Recipe.read(tmp_path / "out" / "recipe.toml") == recipe(
        steps=60, rows=8, length=16, eval_every=30, samples_every=30
    )


def test_a_terminal_gets_a_bar(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    run(tmp_path / "out", console=console, steps=3)
    assert "3/3" in console.file.getvalue()


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_micro_batches_change_nothing(tmp_path, accumulate):
    whole, parts = network(), network()
    one = run(tmp_path / "one", whole, rows=8, steps=5)
    many = run(tmp_path / "many", parts, rows=8, steps=5, accumulate=accumulate)
    assert many.metrics["grad_norm"] == pytest.approx(one.metrics["grad_norm"], rel=1e-4)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_micro_batches_are_rows():
    batch = Counting().batch(3, 5, 8)
    pieces = split(batch, 3)
    assert [len(piece.tokens) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([piece.ids for piece in pieces]), batch.ids)
    assert {piece.step for piece in pieces} == {3}


def test_recomputing_activations_changes_nothing(tmp_path):
    kept, again = network(), network()
    run(tmp_path / "kept", kept, steps=3)
    run(tmp_path / "again", again, steps=3, checkpointing=True)
    assert again.checkpointing
    assert same(kept, again)


def test_low_precision_still_learns(tmp_path):
    model = network()
    result = run(tmp_path / "out", model, steps=60, rows=8, length=16, dtype="bfloat16")
    assert result.metrics["loss"] < 0.2
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_clipping_bounds_the_gradient_and_reports_it_unclipped(tmp_path):
    loose = run(tmp_path / "loose", steps=1, clip=0)
    tight = run(tmp_path / "tight", steps=1, clip=1e-3)
    assert loose.metrics["grad_norm"] == tight.metrics["grad_norm"] > 1e-2


def test_groups():
    model = network()
    found = groups(model, Recipe(mlp_lr=0.3, embedding_lr=0.5, weight_decay=0.1, steps=1))
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = {names[id(p)]: (g["share"], g["weight_decay"]) for g in found for p in g["params"]}
    assert set(kinds) == set(names.values())
    assert kinds["embed.weight"] == (0.5, 0.0)
    assert kinds["blocks.0.mlp.up.weight"] == (0.3, 0.1)
    assert kinds["blocks.0.attention.q.weight"] == (1.0, 0.1)
    assert kinds["blocks.0.norm_1.weight"] == (1.0, 0.0)


def test_the_schedule():
    plan = Recipe(lr=1.0, min_lr=0.1, warmup=0.2, steps=10)
    rates = [rate(plan, plan.share(step, 0)) for step in range(1, 11)]
    assert rates[:2] == pytest.approx([0.5, 1.0])
    assert rates[5] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert sorted(rates[1:], reverse=True) == rates[1:]


def test_what_ends_a_run():
    assert Recipe(tokens=1000, rows=4, length=100).updates == 3
    assert Recipe(tokens=1000, steps=2, rows=4, length=100).updates == 2
    assert Recipe(minutes=2).updates is None
    assert Recipe(minutes=2).share(1000, 60) == 0.5
    assert Recipe(minutes=2, steps=10).share(8, 60) == 0.8


def test_the_clock_ends_a_run(tmp_path):
    result = run(tmp_path / "out", steps=0, minutes=0.01, log_every=1000, evaluate=lambda model: 1.0)
    assert result.metrics["step"] > 1
    assert 0.3 < result.metrics["seconds"] < 6
    assert result.metrics["lr"] < 5e-3
    assert len(result.history) == 1, "the last step is always logged"
    assert result.metrics["held_out"] == 1


def test_the_average():
    model = network()
    average = Average(model, 0.999)
    start = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    average.update(0)
    with average.applied():
        torch.testing.assert_close(model.embed.weight, start + 0.9)
    torch.testing.assert_close(model.embed.weight, start + 1)


def test_no_average(tmp_path):
    model = network()
    run(tmp_path / "out", model, steps=3, ema=0)
    assert not list((tmp_path / "out" / "checkpoints").glob("*/ema.safetensors"))
    assert same(load_model(tmp_path / "out"), model)


def test_frozen_weights_stay(tmp_path):
    model = network()
    model.embed.weight.requires_grad_(False)
    before = model.embed.weight.clone()
    run(tmp_path / "out", model, steps=2)
    assert torch.equal(model.embed.weight, before)
    with pytest.raises(ValueError, match="no weights to train"):
        run(tmp_path / "none", network().requires_grad_(False), steps=2)


@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_not_finite_stops_the_run(tmp_path, gradient):
    with pytest.raises(FloatingPointError, match="nan at step 8") as caught:
        run(tmp_path / "out", objective_=Poisoned(7, gradient))
    said = str(caught.value)
    assert "samples [28, 29, 30, 31]" in said
    assert "text-28, text-29" in said
    assert "step-00000005" in said
    with pytest.raises(FloatingPointError, match="no checkpoint yet"):
        run(tmp_path / "other", objective_=Poisoned(2, gradient))


def test_a_recipe_is_a_file_under_flags(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('lr = 1e-3\nobjective = "leader(n=4)"\nsteps = 10\nbetas = [0.9, 0.99]\n')
    found = Recipe.read(file, steps=20, rows=None)
    assert (found.lr, found.objective, found.steps, found.rows, found.betas) == (
        1e-3,
        "leader(n=4)",
        20,
        Recipe().rows,
        (0.9, 0.99),
    )
    quoted = replace(found, data='a "b" \\ c')
    file.write_text(quoted.toml())
    assert Recipe.read(file) == quoted
    several = replace(found, data=["a, b.txt", "c/"])
    file.write_text(several.toml())
    assert Recipe.read(file).data == ("a, b.txt", "c/")
    file.write_text('data = "a, b.txt"')
    assert Recipe.read(file).data == ("a, b.txt",)
    assert not Recipe.read(file).differences(Recipe(data=["a, b.txt"]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate = 1", "no field 'learning_rate'; the fields are: parent, .*lr, "),
        ("lr = 'fast'", "lr is a number, got 'fast'"),
        ("rows = 1.5", "rows is a whole number, got 1.5"),
        ("compile = 1", "compile is true or false"),
        ("betas = [0.9]", "betas is two numbers"),
        ("data = []", "data is a string or a list of strings, got "),
        ("data = ['a', 1]", "data is a string or a list of strings, got "),
        ("rows = 0", "rows = 0 is out of range"),
        ("ema = 1.0", "ema = 1.0 is out of range"),
        ("accumulate = 99", "need as many rows"),
        ("dtype = 'float8'", "auto, float32 or bfloat16"),
        ("lr = = 1", "is not TOML"),
    ],
)
def test_bad_recipes(tmp_path, text, said):
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        Recipe.read(file)
    with pytest.raises(ValueError, match="no recipe at"):
        Recipe.read(tmp_path / "missing.toml")


def test_a_run_without_an_end(tmp_path):
    with pytest.raises(ValueError, match="steps, tokens or minutes"):
        run(tmp_path / "out", steps=0)


def test_what_cannot_be_exported_is_refused_at_once(tmp_path):
    model = network()
    model.s = replace(model.s, clip=1.0)
    with pytest.raises(ValueError, match="config"):
        run(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_folders_that_exist(tmp_path):
    run(tmp_path / "out", steps=2)
    with pytest.raises(ValueError, match="--resume.*--overwrite"):
        run(tmp_path / "out", steps=2)
    result = run(tmp_path / "out", steps=3, overwrite=True)
    assert [line["step"] for line in result.history] == [1, 2, 3]
    assert len(list((tmp_path / "out" / "checkpoints").iterdir())) == 1
    with pytest.raises(ValueError, match="no run to resume"):
        run(tmp_path / "missing", resume=True)
    with pytest.raises(ValueError, match="one of them"):
        run(tmp_path / "out", resume=True, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        run(tmp_path / "file")
