"""A run that several processes share gives the numbers of one process, through stops, kills and other world sizes."""

import os
import re
import signal
import subprocess
import sys

import launching
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from launching import last_sums, launched, learn, measured, mixture, refused, shifted, spent, written
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from training import Counting, network, recipe, run, same

from unveil.hub import load_model
from unveil.objectives.leader import Leader
from unveil.train import Stopped, checkpoint
from unveil.train.several import Several, chosen, joined


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """20 steps in one process: the folder, the model and the log."""
    out, model = tmp_path_factory.mktemp("straight") / "out", network()
    return out, model, launching.timeless(run(out, model).history)


def close(history, expected):
    assert [line["step"] for line in history] == [line["step"] for line in expected]
    for mine, theirs in zip(history, expected, strict=True):
        for name in theirs.keys() - {"parts"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), (name, mine["step"])
        if "parts" in theirs:
            assert mine["parts"] == pytest.approx(theirs["parts"], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("mode", "processes", "more"),
    [
        ("fsdp", 2, {}),
        ("ddp", 2, {"accumulate": 3}),
        ("hsdp", 4, {"machines": 2, "rows": 8, "accumulate": 8, "steps": 10}),
        ("auto", 2, {"checkpointing": True, "deterministic": True}),
    ],
)
def test_the_numbers_are_those_of_one_process(tmp_path, straight, mode, processes, more):
    out = tmp_path / "out"
    found = launched(processes, learn, out, {"parallel": mode, **more})
    assert {each["shards"] for each in found} == {{"fsdp": 2, "ddp": 1, "hsdp": 2, "auto": 1}[mode]}
    whole, model, expected = straight
    if mode == "hsdp":  # other numbers, so that each of four processes has two micro-batches
        model = network()
        expected = launching.timeless(run(tmp_path / "one", model, rows=8, steps=10).history)
    for each in found:
        close(each["history"], expected)
    count = sum(len(each["ids"][0]) for each in found)
    rows = [sum((each["ids"][step] for each in found), []) for step in range(len(expected))]
    assert rows == [list(range(count * step, count * step + count)) for step in range(len(expected))]
    assert f"{len(expected)}/{len(expected)}" in found[0]["said"]
    assert not any(each["said"] for each in found[1:]), "only the first process prints"
    for mine, theirs in zip(load_model(out).parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    assert {p.name for p in out.iterdir()} - {".job"} == {p.name for p in whole.iterdir()}


@pytest.mark.parametrize(("make", "objective"), [(shifted, Leader), (mixture, None)])
def test_two_copies_evaluation_samples_and_experts(tmp_path, make, objective):
    """Of an expert that no token of a process reaches, that process has a gradient all the same."""
    options = {"steps": 4, "eval_every": 2, "evaluate": measured, "sample": written if objective else None}
    options |= {"objective_": objective} if objective else {}
    alone = dict(options)
    if objective:
        alone["objective_"] = objective()
    one = run(tmp_path / "one", make(), **alone)
    for mode in ("fsdp", "ddp") if objective else ("fsdp",):
        found = launched(2, learn, tmp_path / mode, {**options, "parallel": mode, "model": make})
        for each in found:
            close(each["history"], launching.timeless(one.history))
        texts = [tmp_path / name / "samples" / "step-00000004.txt" for name in ("one", mode)]
        assert not objective or texts[0].read_text() == texts[1].read_text()


def test_low_precision_is_close(tmp_path):
    options = {"dtype": "bfloat16", "steps": 10, "rows": 8, "length": 16, "parallel": "fsdp"}
    alone = launching.timeless(run(tmp_path / "one", network(), **{**options, "dtype": "float32"}).history)
    found = launched(2, learn, tmp_path / "out", options)
    losses = [line["loss"] for line in found[0]["history"]]
    assert losses == pytest.approx([line["loss"] for line in alone], rel=0.03)
    assert losses != [line["loss"] for line in alone]
    assert {p.dtype for p in load_model(tmp_path / "out").parameters()} == {torch.float32}


@pytest.mark.parametrize("modes", [("fsdp", "ddp"), ("ddp", "fsdp")])
def test_two_processes_one_and_two_again(tmp_path, straight, modes):
    out, ids = tmp_path / "out", []
    with pytest.raises(ChildFailedError) as caught:
        launched(2, learn, out, {"parallel": modes[0], "halt": 7})
    assert {failure.exitcode for failure in caught.value.failures.values()} == {128 + signal.SIGTERM}
    assert [path.name for path in checkpoint.listed(out / "checkpoints")] == ["step-00000007", "step-00000005"]
    data = Counting(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 13 else ids.append(step))
    with pytest.raises(Stopped):
        run(out, network(seed=7), data, resume=True)
    assert ids[0] == 7, "nothing is skipped or repeated"
    found = launched(2, learn, out, {"parallel": modes[1], "resume": True})
    close(found[0]["history"], straight[2])
    assert [each["ids"][0] for each in found] == [[52, 53], [54, 55]]


def test_a_process_that_is_killed(tmp_path):
    """The launcher starts all of them again, and the last checkpoint is that of an undisturbed run, bit for bit."""
    options = {"parallel": "fsdp", "deterministic": True}
    whole = launched(2, learn, tmp_path / "whole", options, restarts=1)
    found = launched(2, learn, tmp_path / "out", {**options, "kill": (1, 13)}, restarts=1)
    assert (tmp_path / "out.killed").exists()
    assert "continuing at step 10" in found[0]["said"]
    assert found[0]["history"] == whole[0]["history"]
    assert last_sums(tmp_path / "out") == last_sums(tmp_path / "whole")
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "out" / name).exists()
    assert same(load_model(tmp_path / "out"), load_model(tmp_path / "whole"))


def test_others_read_the_pieces(tmp_path):
    """torch.distributed.checkpoint finds the tensors of such a folder whole."""
    launched(2, learn, tmp_path / "out", {"parallel": "fsdp", "steps": 3})
    path = checkpoint.newest(tmp_path / "out" / "checkpoints")
    assert path is not None
    assert len(list((path / "model").iterdir())) == 2
    stored = checkpoint.Stored(path)
    wanted = {name: torch.zeros(size) for name, size in stored.shapes["model"].items()}
    with pytest.warns(UserWarning, match="in a single process"):
        dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(path / "model")), no_dist=True)
    ours = {name: checkpoint.Part(torch.zeros(size)) for name, size in stored.shapes["model"].items()}
    stored.read("model", ours)
    assert wanted.keys() == dict(network().named_parameters()).keys()
    for name, value in wanted.items():
        assert value.any()
        assert torch.equal(value, ours[name].tensor)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": 5}, "5 rows a step cannot be shared equally by 2 processes"),
        ({"parallel": "hsdp"}, "there is one machine: use fsdp, ddp or auto"),
        ({"model": "other"}, "process 1 has another recipe, model or data than the first process"),
        ({"full": True}, "could not save the checkpoint of step 5 .*no space|another process could not write its part"),
    ],
)
def test_what_is_refused(tmp_path, options, said):
    out = tmp_path / "out"
    for found in launched(2, refused, out, {"parallel": "fsdp", **options}):
        assert found
        assert re.search(said, found), found
    assert not list(out.glob("checkpoints/*")), "nothing is half-written"


def test_a_checkpoint_of_another_model(tmp_path):
    launched(2, learn, tmp_path / "out", {"parallel": "fsdp", "steps": 3})
    before = sorted(p.name for p in tmp_path.rglob("*"))
    for found in launched(
        2, refused, tmp_path / "out", {"parallel": "fsdp", "steps": 3, "resume": True, "model": spent}
    ):
        assert "is of another model: it differs in blocks.1" in found
    assert before == sorted(p.name for p in tmp_path.rglob("*"))


def test_the_command_in_several_processes(tmp_path):
    """They are started, agree on what is wrong, and one of them says it."""
    given = ["--recipe", "stdlib-ar", "--out", tmp_path / "out", "--steps", "2", "--rows", "3", "--nproc", "2"]
    path = os.pathsep.join(sys.path)
    found = subprocess.run(
        [sys.executable, "-m", "unveil", "train", *given],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.count("unveil: 3 rows a step cannot be shared equally by 2 processes") == 1
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())


def test_devices_that_are_not_there(monkeypatch):
    with pytest.raises(ValueError, match="cpu or cuda, not on mps"):
        chosen(torch.device("mps"), 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        chosen(torch.device("cuda"), 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    with pytest.raises(ValueError, match="NCCL, and this build of torch has none"):
        chosen(torch.device("cuda"), 0)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    with pytest.raises(ValueError, match="process 3 of this machine needs a GPU of its own, and it has 2"):
        chosen(torch.device("cuda"), 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE is '2' and LOCAL_RANK not set: start several by torchrun or --nproc",
        ),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "and RANK not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' and WORLD_SIZE two"),
    ],
)
def test_a_launcher_that_is_not_torchrun(monkeypatch, given, said):
    """Kubeflow, for one, sets WORLD_SIZE in its pods, where a command may also be started without torchrun."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(said)), joined():
        pass


def test_machines_of_different_sizes(monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    ranks = Several(torch.device("cpu"), 0, 3)
    monkeypatch.setattr(ranks, "words", lambda text: [text, "3", "3", "1"])
    with pytest.raises(ValueError, match="every machine needs as many processes as the others"):
        ranks.check(recipe(rows=4))
    with pytest.raises(ValueError, match="parallel"):
        recipe(parallel="tensor")
