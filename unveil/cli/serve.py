"""`unveil serve`: a model behind OpenAI's HTTP interface, for many users at once."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import choices
from .places import model_place
from .say import Json, result

if TYPE_CHECKING:
    from socket import socket

    from ..serve.link import Link
    from ..serve.setup import Setup


def settled(context: typer.Context, path: str | None) -> str | None:
    """Take a file's options as the defaults of this command."""
    if path is None:
        return None
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    known = [each.name for each in context.command.params if each.name and each.name not in ("config", "json", "help")]
    defaults: dict[str, object] = {}
    for name, value in found.items():
        if (key := name.replace("-", "_")) not in known:
            raise ValueError(f"{path}: no option called {name!r}; there are: {', '.join(known)}")
        defaults[key] = [f"{inner}={of}" for inner, of in value.items()] if isinstance(value, dict) else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


Place = Annotated[str, typer.Argument(help="A folder, a hub id or an embedded model.")]
Name = Annotated[str | None, typer.Option(help="What requests call it; default: as here, a folder by its last part.")]
Host = Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0: every address of the machine.")]
Port = Annotated[int, typer.Option(help="0: any that is free.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Numbers = Annotated[str | None, typer.Option(help="float32, bfloat16, ...; default: float32 on a CPU, else its own.")]
Memory = Annotated[str | None, typer.Option(help="For keys and values of requests, such as 4GB; default: what fits.")]
Threads = Annotated[int | None, typer.Option(help="Of the processor; default: one or all, whichever is faster.")]
Interval = Annotated[
    float, typer.Option(help="Milliseconds for which new text may wait to be sent with what follows; 0: every step.")
]
Decoding = Annotated[str, typer.Option("--decoder", "-d", help="Of requests that name none; see unveil list.")]
Caching = Annotated[str | None, typer.Option("--cache", "-c", help="Likewise; default: causal where exact.")]
Block = Annotated[int | None, typer.Option(help="Likewise: positions per block; default: the model's own.")]
Steps = Annotated[int | None, typer.Option(help="Likewise: predictions allowed per block.")]
Queue = Annotated[int, typer.Option(help="Requests that may wait; one more is told to come back (429).")]
Timeout = Annotated[float, typer.Option(help="Seconds for one request, its wait included.")]
Tokens = Annotated[int, typer.Option(help="Most tokens that one answer may have.")]
Prompt = Annotated[int | None, typer.Option(help="Most tokens of one prompt; default: the model's context.")]
Answers = Annotated[int, typer.Option("--max-n", help="Most answers to one prompt.")]
Rows = Annotated[int, typer.Option(help="Most answers of one request, all its prompts together.")]
Body = Annotated[str, typer.Option(help="Largest body of a request, such as 512kB.")]
Keys = Annotated[
    str | None, typer.Option("--api-keys", help="A file with a key a line; also UNVEIL_API_KEYS, commas between them.")
]
Cors = Annotated[list[str] | None, typer.Option(help="An origin whose pages may call the server; may be repeated.")]
Template = Annotated[str | None, typer.Option("--chat-template", help="A jinja file in place of the model's own.")]
Page = Annotated[bool, typer.Option("--page/--no-page", help="Show the page at /.")]
Log = Annotated[str | None, typer.Option(help="A file for requests and events, as lines of JSON.")]
Drain = Annotated[float, typer.Option(help="Seconds to finish what runs after SIGTERM or Ctrl-C.")]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", help="NAME=FOLDER, a LoRA adapter served as NAME; may be repeated.")
]
Ray = Annotated[bool, typer.Option("--ray", help="Run replicas by Ray Serve; again at the same port: replace them.")]
Replicas = Annotated[str, typer.Option(help="With --ray: how many, such as 2, or 1-4 as load asks for.")]
Busy = Annotated[int, typer.Option(help="With --ray: requests in flight that make one replica busy.")]
Address = Annotated[str | None, typer.Option(help="With --ray: HOST:PORT of a cluster; default: Ray is started here.")]
Config = Annotated[
    str | None,
    typer.Option(
        callback=settled, is_eager=True, help="A TOML file of these options; the command line goes before it."
    ),
]

ENVIRONMENT = "UNVEIL_API_KEYS"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def serve(
    model: Place = "stdlib-dlm",
    name: Name = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    device: Device = "cpu",
    dtype: Numbers = None,
    memory: Memory = None,
    threads: Threads = None,
    stream_interval: Interval = 50,
    decoder: Decoding = "confidence",
    cache: Caching = None,
    block: Block = None,
    steps: Steps = None,
    queue: Queue = 256,
    timeout: Timeout = 600,
    max_tokens: Tokens = 4096,
    max_prompt: Prompt = None,
    max_n: Answers = 16,
    max_rows: Rows = 64,
    max_body: Body = "1MiB",
    api_keys: Keys = None,
    cors: Cors = None,
    chat_template: Template = None,
    page: Page = True,
    log: Log = None,
    drain: Drain = 30,
    adapter: Adapters = None,
    ray: Ray = False,
    replicas: Replicas = "1",
    busy: Busy = 16,
    ray_address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Serve a model to OpenAI clients and to browsers, on this machine alone unless --host says otherwise."""
    from functools import partial
    from importlib.util import find_spec

    if not all(find_spec(each) for each in ("fastapi", "uvicorn", "httptools", "prometheus_client", "llguidance")):
        raise ValueError("unveil serve needs what its extra brings: pip install 'unveil[serve]'")
    if ray and not find_spec("ray"):
        raise ValueError("unveil serve --ray needs what its extra brings: pip install 'unveil[serve,ray]'")
    from ..serve.limits import Limits

    counts = {"--block": block, "--steps": steps, "--queue": queue, "--threads": threads, "--max-tokens": max_tokens}
    counts |= {
        "--max-prompt": max_prompt,
        "--max-n": max_n,
        "--max-rows": max_rows,
        "--timeout": timeout,
        "--busy": busy,
    }
    for option, value in counts.items():
        if value is not None and not value > 0:
            raise ValueError(f"{option} is {value}; expected more than 0")
    if not 0 <= drain < float("inf"):
        raise ValueError(f"--drain is {drain}; expected seconds from 0")
    if not 0 <= stream_interval < float("inf"):
        raise ValueError(f"--stream-interval is {stream_interval}; expected milliseconds from 0")
    if not 0 <= port < 65536:
        raise ValueError(f"--port is {port}; expected 0 (any) to 65535")
    limits = Limits(
        decoder=decoder,
        cache=cache,
        block=block,
        steps=steps,
        queue=queue,
        timeout=timeout,
        max_tokens=max_tokens,
        max_prompt=max_prompt,
        max_n=max_n,
        max_rows=max_rows,
        max_body=size("--max-body", max_body),
        keys=keys(api_keys),
        cors=tuple(map(origin, cors or [])),
        page=page,
        template=None if chat_template is None else Path(chat_template).read_text(encoding="utf-8"),
    )
    room = None if memory is None else size("--memory", memory)
    known("decoders", decoder)
    known("caches", cache)
    from ..serve import app, listen
    from ..serve.journal import Journal, say
    from ..serve.link import Lost
    from ..serve.setup import Setup

    folder, adapters = Path(model).is_dir(), tuple(map(named, adapter or []))
    if len(dict(adapters)) < len(adapters):
        raise ValueError("two adapters have one name; expected a name of its own for each --adapter")
    setup = Setup(
        model=str(Path(model).resolve()) if folder else model_place(model),
        name=name or (Path(model).resolve().name if folder else model),
        limits=limits,
        adapters=adapters,
        device=device,
        dtype=dtype,
        memory=room,
        threads=threads,
        interval=stream_interval / 1000,
        log=None if log is None else str(Path(log).resolve()),
    )
    if ray:
        raise typer.Exit(replicated(setup, count(replicas), busy, ray_address, host, port, drain, json))
    sock = listen.bind(host, port)
    journal = Journal()
    try:
        if not limits.keys and not listen.inward(sock):
            say(f"whoever reaches {host} may use this server: it has no keys (see --api-keys)")
        text = setup.text()
        journal = Journal(None if log is None else Path(log))
        create = partial(app.create, text=text, limits=limits, journal=journal)
        announce = partial(address, sock, json)
        status = listen.run(listen.serve(setup.command(), limits, create, sock, announce, drain=drain, journal=journal))
    except Lost as error:
        say(str(error))
        status = 1
    finally:
        sock.close()
        journal.close()
    raise typer.Exit(status)


def size(option: str, given: str) -> int:
    """Bytes of a size such as 4GB (of 1000), 4GiB (of 1024) or 4096."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?((?:[kmg]i?)?)b?", given.strip().lower())
    if not found or not (count := int(float(found[1]) * UNITS[found[2]])):
        raise ValueError(f"{option} is {given!r}; expected a size such as 500MB, 4GB or 4GiB")
    return count


def keys(path: str | None) -> frozenset[str]:
    """The keys of a file and of the environment; none where neither is given."""
    found: list[tuple[str, str]] = []
    if path is not None:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        found += [(f"line {i} of {path}", line) for i, line in enumerate(lines, 1) if line and line[0] != "#"]
        if not found:
            raise ValueError(f"{path} holds no key; expected one a line")
    if ENVIRONMENT in os.environ:
        listed = [key.strip() for key in os.environ[ENVIRONMENT].split(",") if key.strip()]
        if not listed:
            raise ValueError(f"{ENVIRONMENT} is set and holds no key; unset it to serve without keys")
        found += [(f"{ENVIRONMENT}, key {i}", key) for i, key in enumerate(listed, 1)]
    for where, key in found:
        if not re.fullmatch(r"[!-~]+", key):
            raise ValueError(f"{where}: expected visible ASCII characters alone, since it travels in an HTTP header")
    return frozenset(key for _, key in found)


def origin(given: str) -> str:
    """An origin as browsers name it."""
    if given != "*" and not re.fullmatch(r"https?://[^/\s?#@]+", given):
        raise ValueError(f"--cors is {given!r}; expected an origin such as https://example.org, without a path, or *")
    return given.lower()


def known(kind: str, given: str | None) -> None:
    """Refuse a choice that is not there. What it is given is tried once the model is loaded."""
    if given is None:
        return
    name, there = ast.unparse(choices.parsed(given).func), choices.described(kind)
    if name not in there:
        raise ValueError(f"no {kind[:-1]} called {name!r}; there are: {', '.join(there)}")


def named(given: str) -> tuple[str, str]:
    """An adapter's name and its folder."""
    name, equals, folder = given.partition("=")
    if not (equals and name.strip() and folder.strip()):
        raise ValueError(f"--adapter is {given!r}; expected NAME=FOLDER")
    return name.strip(), str(Path(folder.strip()).resolve())


def count(given: str) -> tuple[int, int]:
    """How many replicas there are at least and at most."""
    found = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", given.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise ValueError(f"--replicas is {given!r}; expected a number such as 2, or a range such as 1-4")
    return least, most


def replicated(
    setup: Setup, numbers: tuple[int, int], busy: int, place: str | None, host: str, port: int, drain: float, json: bool
) -> int:
    """Serve by replicas, or replace those that run behind this port already; the exit status."""
    from dataclasses import replace
    from functools import partial

    from ..serve import listen
    from ..serve.journal import Journal, say
    from ..serve.replicas import cluster

    threads = setup.threads or max((os.cpu_count() or 1) // numbers[1], 1)
    setup = replace(setup, threads=threads)
    gpus = int(setup.device.startswith("cuda"))
    wanted = cluster.Wanted(*numbers, busy=busy, cpus=threads, gpus=gpus, address=place)
    setup.text()  # before anything is touched
    if port and (found := cluster.running(port)):
        say(f"replacing the replicas behind port {port}, one after the other")
        cluster.update(found, setup, wanted, drain)
        about = {"model": setup.name, "port": port, "pid": found.pid, "replaced": True}
        result(about, json, [f"the replicas behind port {port} serve {setup.name} as it is asked for now"])
        return 0
    sock = listen.bind(host, port)
    try:
        if not setup.limits.keys and not listen.inward(sock):
            say(f"whoever reaches {host} may use this server: it has no keys (see --api-keys)")
        journal = Journal(None if setup.log is None else Path(setup.log))
        announce = partial(told, sock, setup.name, json)
        return cluster.host(setup, wanted, sock, announce, drain=drain, journal=journal)
    finally:
        sock.close()


def address(sock: socket, json: bool, link: Link) -> None:
    """Tell where the server is, once requests can be taken."""
    told(sock, link.ready.name, json)


def told(sock: socket, model: str, json: bool) -> None:
    """Tell where a model is served."""
    host, port = sock.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    found = {"model": model, "url": url, "host": host, "port": port, "pid": os.getpid()}
    result(found, json, [f"serving {model} at {url}, for OpenAI clients at {url}/v1"])
