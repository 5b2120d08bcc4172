"""`unveil chat`: a conversation in the terminal, each answer seen as it is unveiled; plain where it is piped."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .places import model_place
from .say import Json, result
from .write import Block, Caching, Decoding, Device, Guiding, Heat, Steps, TopP, chosen_decoder, run

if TYPE_CHECKING:
    from ..codecs.text import Text
    from ..decoders import Decoder
    from ..denoiser import Denoiser
    from ..watch.frames import Frame

Place = Annotated[str, typer.Argument(metavar="MODEL", help="A folder or a hub id, with a chat template.")]
Length = Annotated[int, typer.Option("--length", "-l", help="Tokens an answer may have.")]
Seed = Annotated[int, typer.Option(help="Keys every random choice of an answer.")]
Template = Annotated[str | None, typer.Option("--chat-template", help="A jinja file in place of the model's own.")]

MOST = 1 << 63  # seeds are below it
COMMANDS = {"/new": "forget the conversation", "/seed NUMBER": "answer by another seed", "/quit": "leave"}


def chat(
    model: Place,
    decoder: Decoding = "threshold",
    cache: Caching = None,
    guide: Guiding = None,
    block: Block = None,
    steps: Steps = None,
    length: Length = 256,
    temperature: Heat = None,
    top_p: TopP = None,
    seed: Seed = 0,
    chat_template: Template = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Talk with a model: a line is a question. Commands: /new forgets, /seed NUMBER answers otherwise, /quit leaves.

    With --json, one object for each answer.
    """
    from .. import hub
    from ..sample import writer

    if length < 1:
        raise ValueError(f"--length is {length}; expected at least one token for an answer")
    chosen = chosen_decoder(decoder, temperature, top_p)
    loaded, text = hub.load(model_place(model), device=device)
    if chat_template is not None:
        text.template = Path(chat_template).read_text(encoding="utf-8")
    if text.template is None:
        raise ValueError(
            f"{model} has no chat template: give it one with --chat-template FILE, or let it continue texts "
            f"(unveil generate --model {model})"
        )
    text.chat_text([{"role": "user", "content": "Good morning."}])  # refuses a broken template before anybody talks
    network = writer(loaded.eval())
    if network.context_length is not None and length >= network.context_length:
        raise ValueError(
            f"--length is {length}; the model's context holds {network.context_length}, questions included"
        )
    options = {"cache": cache, "guide": guide, "block": block, "steps": steps}
    live = sys.stdin.isatty() and sys.stdout.isatty() and not json
    talk = Talk(network, text, chosen, options, length, seed, json, live)
    if live:
        print(f"{model}: ask; " + ", ".join(f"{name} to {does}" for name, does in COMMANDS.items()))
    for line in asked(live):
        if not talk.hear(line):
            return


def asked(live: bool) -> Iterator[str]:
    """Lines as a person types them, or those of a file."""
    if not live:
        yield from sys.stdin
        return
    with suppress(ImportError):
        import_module("readline")  # gives `input` its keys and its memory
    while True:
        try:
            yield input("\n> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


@dataclass
class Talk:
    """A conversation so far, and how it is continued."""

    network: Denoiser
    text: Text
    decoder: Decoder
    options: dict
    length: int
    seed: int
    json: bool
    live: bool  # does a person sit there, who can put a question in other words?
    turns: list[dict[str, str]] = field(default_factory=list)

    def hear(self, line: str) -> bool:
        """Obey a command or answer a question; False when that was the last."""
        words = line.split()
        if not words:
            return True
        match words:
            case ["/quit"]:
                return False
            case ["/new"]:
                self.turns = []
                self.tell("a new conversation")
            case ["/seed", number] if number.isdecimal() and int(number) < MOST:
                self.seed = int(number)
                self.tell(f"the seed is {self.seed}")
            case ["/seed", *_]:
                self.tell(f"the seed is {self.seed}; /seed NUMBER sets another")
            case [word, *_] if re.fullmatch(r"/\w+", word):
                self.tell(f"no command called {word}; there are: {', '.join(COMMANDS)}")
            case _:
                self.answer(line.strip())
        return True

    def tell(self, words: str) -> None:
        """What is not part of the conversation."""
        print(words, file=sys.stderr)

    def answer(self, question: str) -> None:
        """Ask the model, show its answer, and remember both; an interrupted answer is forgotten with its question."""
        import torch

        from ..canvas import Canvas

        try:
            turns, ids, dropped = self.fitted([*self.turns, {"role": "user", "content": question}])
        except ValueError as error:
            if not self.live:
                raise
            self.tell(str(error))
            return
        if dropped:
            self.tell(f"the conversation outgrew the model's context: its {dropped} oldest messages are left out")
        row = torch.tensor(ids, device=next(self.network.parameters()).device)
        canvas = Canvas.answering([row], self.length, self.network.mask_id, torch.tensor([self.seed]))
        # A decoder that takes tokens back may take back the end as well, so it is heard out.
        end = None if self.decoder.takes_back else self.text.eos_id
        view = partial(answers, start=len(ids), end=end)
        try:
            cost = run(
                self.network, self.text, canvas, self.decoder, titles=[""], quiet=self.json, view=view, **self.options
            )
        except KeyboardInterrupt:
            self.tell("interrupted; that question is forgotten")
            return
        written = canvas.rows()[0][len(ids) :].tolist()
        ended = self.text.eos_id in written
        said = self.text.decode(written[: written.index(self.text.eos_id)] if ended else written)
        self.turns = [*turns, {"role": "assistant", "content": said}]
        if self.json or not sys.stdout.isatty():
            about = {"question": question, "answer": said, "ended": ended, "seed": self.seed, "dropped": dropped}
            result({**about, "prompt_tokens": len(ids), **cost}, self.json, [said])

    def fitted(self, turns: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int], int]:
        """As much of the end of a conversation as leaves room for an answer, its tokens, and the messages left out."""
        room = None if self.network.context_length is None else self.network.context_length - self.length
        for first in range(0, len(turns), 2):  # a question goes with its answer
            ids = self.text.chat(turns[first:])
            if room is None or len(ids) <= room:
                return turns[first:], ids, first
        raise ValueError(
            f"the question takes {len(ids)} tokens and the model's context has room for {room} beside an answer of "
            f"{self.length}: make one of them shorter (--length)"
        )


def answers(frames: Iterable[Frame], start: int, end: int | None) -> Iterator[Frame]:
    """Frames of one row without the first `start` tokens, until `end` stands where nothing to its left is blank."""
    for frame in frames:
        row, blanks = frame.tokens[0][start:], [at - start for at in frame.blanks[0]]
        until = row.index(end) if end in row else len(row)
        ended = until < len(row) and not (blanks and blanks[0] < until)
        if ended:
            row, blanks = row[:until], []
        yield replace(
            frame,
            tokens=[row],
            blanks=[blanks],
            written=[{at - start: p for at, p in frame.written[0].items() if at - start < len(row)}],
            taken_back=[[at - start for at in gone] for gone in frame.taken_back],
        )
        if ended:
            return
