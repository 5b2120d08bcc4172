"""Several processes on one machine, started as torchrun starts them, for the tests of what they do together."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from training import Counting, network, run

from unveil.attention import Attention
from unveil.denoiser import Denoiser
from unveil.evaluate.likelihood import score
from unveil.hub import fresh
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Transformer
from unveil.objectives.autoregressive import Autoregressive
from unveil.sample import generate
from unveil.start import start
from unveil.train import Recipe, checkpoint, train
from unveil.train.several import joined


def launched(processes: int, work: Callable[..., Any], *given: Any, restarts: int = 0, job: str = "test") -> list[Any]:
    """What `work(*given)` returned in each process.

    They are forked from one server, which imports torch once, and peft where it is there, since that takes seconds.
    """
    multiprocessing.set_forkserver_preload(
        ["torch.distributed.launcher.api", "unveil.train.several", "unveil.train.loop", "peft"]
    )
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=job,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.05,
        start_method="forkserver",
    )
    found = elastic_launch(config, work)(*given)
    return [found[rank] for rank in range(processes)]


def learn(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One run, shared by the processes: what this one saw of it.

    `kill`: the process of this rank dies as it asks for that step, once. `halt`: the last gets SIGTERM at that step.
    `machines`: so many are pretended to.
    """
    torch.set_num_threads(1)
    options = dict(options)
    seen: list[list[int]] = []
    kill, halt, machines = options.pop("kill", None), options.pop("halt", None), options.pop("machines", 1)
    objective = options.pop("objective_", Autoregressive)()
    marker = out.with_name(f"{out.name}.killed")
    os.environ["LOCAL_WORLD_SIZE"] = str(int(os.environ["LOCAL_WORLD_SIZE"]) // machines)
    console = Console(file=io.StringIO(), width=200)
    with joined() as ranks:

        def before(step: int) -> None:
            if kill == (ranks.rank, step) and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if halt == step and ranks.rank == ranks.world - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        def share(batch):
            found = type(ranks).share(ranks, batch)
            seen.append(found.ids.tolist())
            return found

        ranks.share = share
        model = options.pop("model", network)()
        result = run(out, model, Counting(before), objective_=objective, console=console, ranks=ranks, **options)
        return {
            "history": timeless(result.history),
            "ids": seen,
            "said": console.file.getvalue(),
            "rank": ranks.rank,
            "shards": ranks.writers,
        }


def refused(out: Path, options: dict[str, Any]) -> str:
    """What this process was told instead of a result. `full`: the disk of the last process is."""
    options = dict(options)
    other = os.environ["RANK"] != "0"
    if options.pop("full", False) and other:
        checkpoint.save_file = overflow
    if options.setdefault("model", network) == "other":
        options["model"] = spent if other else network
    try:
        learn(out, options)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def overflow(*given: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, "no space")


def spent() -> Transformer:
    """A network that is one block short."""
    model = network()
    model.blocks = model.blocks[:1]
    model.s = replace(model.s, layers=1)
    return model


def shifted() -> Denoiser:
    model = network()
    model.attention = Attention("leader", 17)
    return Shifted(model)


def mixture() -> Denoiser:
    """More experts than tokens, so that no process uses all of them."""
    sizes = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_experts": 64, "num_experts_per_tok": 1}
    return fresh({"model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "tie_word_embeddings": False, **sizes})


def measured(model: Denoiser) -> float:
    """Held-out nats, as the command line measures them."""
    return score(model, Counting().batch(99, 2, 8), draws=2).nats


def written(model: Denoiser) -> str:
    return str(generate(model, torch.zeros(1, 1, dtype=torch.long), 16, "confidence", block=17, seed=0).tolist())


def timeless(history: list[dict]) -> list[dict]:
    """The part of the log that does not depend on the clock."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in history]


def last_sums(out: Path) -> dict[str, str]:
    """The checksums of the newest checkpoint."""
    path = checkpoint.newest(out / "checkpoints")
    assert path is not None
    return checkpoint.read_state(path)["checksums"]


def tuned(out: Path, fields: dict[str, Any]) -> list[dict]:
    """A run of a whole recipe in one of the processes, or alone: what this process logged of it."""
    torch.set_num_threads(1)
    with joined() as ranks:
        made = ranks.in_turn(lambda: start(Recipe(**fields)))
        quiet = Console(quiet=True)
        found = train(
            made.model,
            made.objective,
            made.corpus.train,
            made.recipe,
            out=out,
            text=made.text,
            console=quiet,
            ranks=ranks,
        )
    return timeless(found.history)
