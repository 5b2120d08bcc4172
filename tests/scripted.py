"""An engine's process without a model, and a server of it: it misbehaves where a request asks for it."""

from __future__ import annotations

import asyncio
import os
import select
import sys
import time
from functools import partial
from pathlib import Path

from unveil.serve.messages import (
    Admitted,
    Cancel,
    Done,
    Drain,
    Drained,
    Load,
    Ready,
    Refusal,
    Step,
    Submit,
    Write,
    line,
    read,
)

PLACES = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
MASK = 9
READY = Ready("scripted", MASK, 1, 0, "leader", 4, 4096, 10, 1000, "cpu", "float32", 1 << 20)
SLOTS = 2  # requests at a time
FLOOD = 8  # a token that makes the answer large
PAUSE = 0.01  # seconds between two rounds


def command(folder: Path, *words: str, call: str = "main") -> list[str]:
    """What starts it; `folder` holds the count of its lives."""
    start = f"import sys; sys.path[:0] = {PLACES}; import scripted; scripted.{call}(*sys.argv[1:])"
    return [sys.executable, "-c", start, str(folder), *words]


def say(*events) -> None:
    data = b"".join(map(line, events))
    while data:
        data = data[os.write(1, data) :]


def misbehave(how: str) -> None:
    if how == "crash":
        os._exit(3)
    if how == "garbage":
        os.write(1, b'{"is":"st\xff\xfe\n')
        time.sleep(60)
    if how == "nonsense":
        os.write(1, b'{"is":"step","id":"nonsense","row":7}\n[[[\n')
        time.sleep(60)


def main(folder: str, *words: str) -> None:
    lives = Path(folder, "lives")
    life = int(lives.read_text()) + 1 if lives.exists() else 1
    lives.write_text(str(life))
    if "unloadable" in words:
        say(Refusal("", "there is no such model"))
        sys.exit(2)
    if "stillborn" in words or ("fragile" in words and life > 1):
        sys.exit(4)
    say(READY)
    queue: list[Submit] = []
    running: dict[str, tuple[Submit, int]] = {}
    rest, draining, tokens = b"", False, 0
    while True:
        busy = bool(queue or running)
        if select.select([0], [], [], PAUSE if busy else None)[0]:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            for order in map(read, whole):
                if isinstance(order, Drain):
                    draining = True
                elif isinstance(order, Cancel):
                    queue = [each for each in queue if each.id != order.id]
                    running.pop(order.id, None)
                    say(Load(len(queue), len(running), 0, 0, 0, 0, tokens, 0))
                elif isinstance(order, Submit) and order.decoder == "wrong":
                    say(Refusal(order.id, "no decoder called 'wrong'"))
                elif isinstance(order, Submit):
                    misbehave(order.decoder)
                    queue.append(order)
        while queue and len(running) < SLOTS:
            order = queue.pop(0)
            running[order.id] = (order, 0)
            say(Admitted(order.id, [0] * len(order.rows)))
        for name, (order, step) in list(running.items()):
            at = order.rows[0].tokens.index(MASK) + step
            size = 2_000 if order.decoder == "flood" or FLOOD in order.rows[0].tokens else 1
            writes = [Write(at, 5, -0.5, [(5, -0.5)])] * size
            say(*(Step(name, row, step + 1, 1, step + 1, writes, [], at + 1) for row in range(len(order.rows))))
            tokens += len(order.rows)
            running[name] = (order, step + 1)
            if at + 1 == len(order.rows[0].tokens):
                del running[name]
                say(*(Done(name, row, "length", step + 1, 0.1, 0.0) for row in range(len(order.rows))))
        if busy:
            say(Load(len(queue), len(running), 0, 0, 0, 0, tokens, 0))
        if draining and not (queue or running):
            say(Drained())
            return


def serve(folder: str, log: str, *words: str) -> None:
    """A whole server with such an engine; its exit status is the server's."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    from unveil.cli.serve import address
    from unveil.codecs.text import Text
    from unveil.serve import app, listen
    from unveil.serve.journal import Journal
    from unveil.serve.limits import Limits

    names = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, MASK)}}
    text = Text(Tokenizer(WordLevel(names, unk_token="</s>")), special={"bos": "<s>", "eos": "</s>"})
    journal, limits, sock = Journal(Path(log)), Limits(queue=20), listen.bind("127.0.0.1", 0)
    create = partial(app.create, text=text, limits=limits, journal=journal)
    engine = command(Path(folder), *words)
    told = partial(address, sock, True)
    sys.exit(asyncio.run(listen.serve(engine, limits, create, sock, told, drain=30, journal=journal)))
