"""One command in several processes: started as torchrun starts them, and found again inside them."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..train.ranks import Ranks

Processes = Annotated[int, typer.Option("--nproc", help="Processes on this machine, one for each GPU.")]
Restarts = Annotated[int, typer.Option(help="With --nproc: how often processes that died are started again.")]


def launched(processes: int, restarts: int) -> bool:
    """Run this very command in so many processes and wait for them; False where it should simply go on."""
    if processes < 1 or restarts < 0:
        raise ValueError(f"--nproc is at least 1 and --max-restarts at least 0, got {processes} and {restarts}")
    if processes == 1 or "LOCAL_RANK" in os.environ:
        return False
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
    )
    try:
        launch_agent(config, sys.executable, ["-m", "unveil", *sys.argv[1:]])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        code = next((code for code in codes if code), 1)
        if code < 0:
            print(f"unveil: a process was killed by signal {-code}; --resume goes on", file=sys.stderr)
        raise typer.Exit(code if code > 0 else 128 - code) from None
    except SignalException as error:
        raise typer.Exit(128 + error.sigval) from None
    return True


def processes(device: str) -> AbstractContextManager[Ranks]:
    """The processes that work on this command, of which this is one."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from ..train.several import joined

        return joined(device)
    import torch

    from ..train.ranks import Ranks

    return nullcontext(Ranks(torch.device(device)))
