"""From the first process of Ray to its end: start or join it, put replicas there, replace them, and leave."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from ...cluster.connection import joined
from .. import listen
from ..journal import Journal
from ..setup import Setup
from .front import Front
from .pool import Pool
from .replica import Replica

SETTLED = {"log_level": "WARNING", "enable_access_log": False}


@dataclass(frozen=True)
class Wanted:
    """How many replicas, and what each may do.

    There are `least` to `most`, as many as requests in flight need at `busy` for each. One takes at most twice as many;
    requests beyond wait. `cpus` and `gpus` are what Ray sets aside for each, `address` is where a cluster runs; None:
    here, for us alone. More are there after `up` seconds of need, fewer after `down` seconds without.
    """

    least: int = 1
    most: int = 1
    busy: int = 16
    cpus: float = 1
    gpus: float = 0
    address: str | None = None
    up: float = 10.0
    down: float = 300.0


@dataclass(frozen=True)
class Running:
    """A server that stands before replicas, as others on this machine find it."""

    pid: int
    address: str  # of its Ray
    name: str  # of its application


def note(port: int) -> Path:
    """Where the server of a port notes what it is; a folder of this user alone."""
    folder = Path(tempfile.gettempdir()) / f"unveil-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to somebody else; remove it, or name another place in TMPDIR")
    return folder / f"serve-{port}.json"


def running(port: int) -> Running | None:
    """The server of this user with replicas at a port, if one runs."""
    with suppress(OSError, ValueError, TypeError):
        found = Running(**json.loads(note(port).read_text(encoding="utf-8")))
        os.kill(found.pid, 0)
        return found
    return None


@contextmanager
def noted(port: int, found: Running) -> Iterator[None]:
    """Be found, as long as the block lasts."""
    path = note(port)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(asdict(found)), encoding="utf-8")
    fresh.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def planned(wanted: Wanted, queue: int, drain: float) -> serve.Deployment:
    """What Ray Serve is to keep running."""
    scale = {"min_replicas": wanted.least, "max_replicas": wanted.most, "target_ongoing_requests": wanted.busy}
    scale |= {"initial_replicas": wanted.least, "upscale_delay_s": wanted.up, "downscale_delay_s": wanted.down}
    deployment = serve.deployment(
        Replica,
        name="replica",
        max_ongoing_requests=2 * wanted.busy,
        max_queued_requests=queue,
        ray_actor_options={"num_cpus": wanted.cpus if wanted.address else 0, "num_gpus": wanted.gpus},
        request_router_config={
            "request_router_class": "unveil.serve.replicas.router:Affinity",
            "request_router_kwargs": {"busy": wanted.busy},
        },
        graceful_shutdown_timeout_s=drain,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        max_constructor_retry_count=2,
        max_surge_percent=1,  # rounded up: one new one at a time, which is there before an old one goes
        rolling_update_percentage=0.01,  # one at a time
        logging_config=SETTLED,
    )
    if wanted.least == wanted.most:
        return deployment.options(num_replicas=wanted.least)
    return deployment.options(autoscaling_config=scale)


def deploy(setup: Setup, wanted: Wanted, name: str, drain: float) -> DeploymentHandle:
    """Put replicas there, or replace those there are, one after the other, by new ones; wait until that is done.

    ValueError, in the words of the engine, where they do not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config=SETTLED)
    try:
        return serve.run(planned(wanted, setup.limits.queue, drain).bind(setup), name=name, route_prefix=None)
    except RuntimeError as error:
        found = serve.status().applications.get(name)
        told = "".join(each.message for each in found.deployments.values()) if found else str(error)
        raise ValueError(f"the replicas do not start: {reason(told)}") from error


def reason(told: str) -> str:
    """The last sentence of an error in what Ray Serve tells of a deployment, which holds whole tracebacks."""
    sentences = re.findall(r"^(?:[\w.]+\.)?(?:ValueError|OSError|RuntimeError): (.+)$", told, re.MULTILINE)
    return (sentences or told.split("\n"))[-1].strip() or "Ray Serve does not say why"


def host(
    setup: Setup, wanted: Wanted, sock: socket.socket, announce: Callable[[], None], *, drain: float, journal: Journal
) -> int:
    """Start replicas and stand before them until a signal ends it; the exit status."""
    port = sock.getsockname()[1]
    name = f"unveil-{port}"
    with joined(wanted.address):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, leave)
        try:
            handle = deploy(setup, wanted, name, drain)
            address = ray.get_runtime_context().gcs_address
            with noted(port, Running(os.getpid(), address, name)):
                return asyncio.run(stand(handle, name, setup, sock, announce, drain, journal))
        except Left:
            return 0
        finally:
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_IGN)  # what is left takes seconds, and is not to be left half done
            if wanted.address is not None:
                serve.delete(name)


class Left(BaseException):
    """A signal came before anything was served."""


def leave(*_: object) -> None:
    raise Left


async def stand(
    handle: DeploymentHandle,
    name: str,
    setup: Setup,
    sock: socket.socket,
    announce: Callable[[], None],
    drain: float,
    journal: Journal,
) -> int:
    """Serve HTTP; the exit status."""
    asked, again = listen.signals()
    pool = Pool(handle, name)
    server = listen.http(Front(pool, setup.limits, journal), announce)
    try:
        return await listen.attend(pool, server, sock, asked, again, drain, journal)
    finally:
        pool.watching.cancel()


def update(found: Running, setup: Setup, wanted: Wanted, drain: float) -> None:
    """Replace the replicas behind a running server; it goes on serving. ValueError where the new ones do not start."""
    with joined(found.address):
        deploy(setup, wanted, found.name, drain)
