"""A Ray cluster for as long as it is needed: joined at its address, or started on this machine and shut down."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray

ROOT = Path(__file__).parent.parent.parent  # where `unveil` is found
STORE = 256 * 2**20  # bytes of a local Ray's object store: what passes through it is text
PATIENCE = 5.0  # seconds for an address to answer
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by itself, and warns of until then
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # it calls every pool of actors an error
}


@contextmanager
def joined(address: str | None = None) -> Iterator[None]:
    """A Ray inside: the one this program is connected to already, that at `address`, or one of this machine's own.

    `address` is HOST:PORT of the cluster's head, seen from one of its machines, or "auto" for the Ray that runs on this
    machine. Ray sends no statistics, and what it starts ends with this program, however that ends. ValueError for an
    address of another kind; ConnectionError when nothing answers there, or something that is no Ray like this one.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
        "log_to_driver": False,
    }
    if address is not None:
        reached(address)
    with ExitStack() as stack:
        if address is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="unveil-ray-", ignore_cleanup_errors=True))
            options |= {"include_dashboard": False, "object_store_memory": STORE, "_temp_dir": folder}
        try:
            with hushed():
                ray.init(address or "local", logging_level=logging.ERROR, **options)
        except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            where = f"could be joined at {address}" if address else "could be started on this machine"
            raise ConnectionError(f"no Ray {where}: {reason}") from error
        stack.callback(ray.shutdown)
        yield


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing reaches the terminal inside: Ray writes a line there to say how little it will write."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def reached(address: str) -> None:
    """ValueError for what is no address, ConnectionError where nobody listens: Ray itself would try for a minute."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()) or "/" in address:
        raise ValueError(
            f"{address!r} is no address of a Ray cluster: expected HOST:PORT of its head, or auto for the Ray that "
            "runs on this machine"
        )
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error
