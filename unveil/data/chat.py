"""Conversations as rows: the prompt is given, the response and the end-of-text padding after it are learned.

Shapes: B rows, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..codecs.text import Text
from ..objectives import Batch
from .corpus import Corpus, Unit, digest, split
from .order import shuffle
from .sources import rows as read_rows

Row = tuple[str, list[int], list[int]]  # name, prompt, response


class Conversations:
    """One row per response, padded with the end-of-text token; read like `Packed`, so that a trainer cannot tell.

    Padding is learned like the response, so that a model knows where to stop (LLaDA, section 2.3); with `pads`, only
    that many of its tokens are. Rows longer than the context are left out: `skipped` counts them.
    """

    def __init__(self, conversations: Sequence[Row], end: int, pads: int | None = None):
        """`end` is the end-of-text id. Prompt and response are token ids; the response includes its own end."""
        self.conversations = list(conversations)
        self.end = end
        self.pads = pads
        self.tokens = sum(len(prompt) + len(response) for _, prompt, response in self.conversations)
        self._fitting: tuple[int, list[int]] | None = None  # by length
        self._latest: tuple[tuple[int, int, int], np.ndarray] | None = None  # by seed, epoch and length

    def __len__(self) -> int:
        return len(self.conversations)

    def size(self, i: int) -> int:
        """Tokens of a row, without its padding."""
        _, prompt, response = self.conversations[i]
        return len(prompt) + len(response)

    def fitting(self, length: int) -> list[int]:
        """The rows of at most `length` tokens. ValueError when there is none."""
        if self._fitting is not None and self._fitting[0] == length:
            return self._fitting[1]
        sizes = [self.size(i) for i in range(len(self))]
        found = [i for i, size in enumerate(sizes) if size <= length]
        if not found:
            shortest = min(sizes, default=0)
            raise ValueError(f"no conversation fits {length} tokens: the shortest of {len(sizes)} has {shortest}")
        self._fitting = length, found
        return found

    def skipped(self, length: int) -> int:
        """How many rows are too long for `length` tokens."""
        return len(self) - len(self.fitting(length))

    def count(self, length: int) -> int:
        """Rows in one epoch. ValueError when none is short enough."""
        return len(self.fitting(length))

    def samples(self, first: int, count: int, length: int, *, seed: int = 0, documents: bool = True) -> Batch:
        """Samples `first` .. `first + count - 1`: tokens (count, length), answer True from the response on."""
        ids = range(first, first + count)
        return self.pack([self._place(i, length, seed) for i in ids], ids, length, documents, seed)

    def batch(self, step: int, rows: int, length: int, *, seed: int = 0, documents: bool = True) -> Batch:
        """What an optimiser step reads: samples `step * rows` .. `step * rows + rows - 1`."""
        found = self.samples(step * rows, rows, length, seed=seed, documents=documents)
        found.step = step
        return found

    def windows(self, length: int, limit: int | None = None, *, documents: bool = True) -> Batch:
        """The rows that fit in their own order; of more than `limit`, as many, evenly spread."""
        fitting = self.fitting(length)
        count = len(fitting) if limit is None else min(limit, len(fitting))
        ids = [i * len(fitting) // count for i in range(count)]
        return self.pack([fitting[i] for i in ids], ids, length, documents, 0)

    def origins(self, ids: Sequence[int], length: int, *, seed: int = 0) -> list[str]:
        """The names of these samples."""
        return list(dict.fromkeys(self.conversations[self._place(int(i), length, seed)][0] for i in ids))

    def _place(self, index: int, length: int, seed: int) -> int:
        """The row that is sample `index`."""
        if index < 0 or seed < 0:
            raise ValueError(f"sample and seed count from 0: {index} and {seed} were given")
        fitting = self.fitting(length)
        number, place = divmod(index, len(fitting))
        key = seed, number, length
        order = self._latest[1] if self._latest is not None and self._latest[0] == key else None
        if order is None:
            order = shuffle(len(fitting), seed, number)
            self._latest = key, order
        return fitting[order[place]]

    def pack(self, chosen: Sequence[int], ids: Sequence[int], length: int, documents: bool, seed: int) -> Batch:
        """These rows as a batch, numbered `ids`."""
        tokens = torch.full((len(chosen), length), self.end)
        answer = torch.zeros_like(tokens, dtype=torch.bool)
        for row, i in enumerate(chosen):
            _, prompt, response = self.conversations[i]
            stop = len(prompt) + len(response)
            tokens[row, :stop] = torch.tensor(prompt + response)
            answer[row, len(prompt) : length if self.pads is None else stop + self.pads] = True
        marks = torch.zeros_like(tokens) if documents else None
        return Batch(tokens, answer, documents=marks, ids=torch.tensor(list(ids)), seed=seed)


def converse(
    sources: str | Sequence[str],
    text: Text,
    *,
    held_out: float = 0.02,
    seed: int = 0,
    pads: int | None = None,
    by: Unit = "tokens",
) -> Corpus[Conversations]:
    """Conversations from .jsonl, .json or .parquet rows, and about this share of them held out, as in `prepare`.

    A row has `messages` (a list of {"role", "content"}; needs a chat template) or `prompt` and `response`, put into
    the chat template where there is one and otherwise simply one after the other. A conversation of n responses is n
    rows, each with all that was said before as its prompt (LLaDA, section 2.3), all on the same side of the split.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"the held-out share lies in [0, 1), not {held_out}")
    if text.eos_id is None:
        raise ValueError("conversations need an end-of-text token, and this tokenizer has none")
    found: list[Row] = []
    digests: list[bytes] = []
    sizes: list[int] = []
    for name, row in read_rows(sources):
        made = list(responses(name, row, text))
        if by == "tokens":
            content = digest(str([(prompt, response) for _, prompt, response in made[:1]]))
            sizes += [len(prompt) + len(response) for _, prompt, response in made]
        else:
            content, size = weighed(said(row))
            sizes += [size] * len(made)
        found += made
        digests += [content] * len(made)
    away = split(digests, np.array(sizes), held_out, seed)
    train, rest = (
        Conversations([row for row, chosen in zip(found, side, strict=True) if chosen], text.eos_id, pads)
        for side in (~away, away)
    )
    return Corpus(train, rest, [name for name, _, _ in found])


def training_turns(sources: str | Sequence[str], *, held_out: float = 0.02, seed: int = 0) -> Iterator[str]:
    """The prompts and responses that `converse` does not hold out by characters: what a new tokenizer may read.

    Messages are left out, since no new tokenizer has a template for them.
    """
    turns = [[row["prompt"], row["response"]] for _, row in read_rows(sources) if plain(row)]
    if turns:
        digests, sizes = zip(*map(weighed, turns), strict=True)
        away = split(digests, np.array(sizes), held_out, seed)
        yield from (each for both, held in zip(turns, away, strict=True) if not held for each in both)


def plain(row: Mapping[str, Any]) -> bool:
    """Is it a prompt and a response, both texts?"""
    return "messages" not in row and all(isinstance(row.get(key), str) for key in ("prompt", "response"))


def said(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row, up to and with the first response."""
    if "messages" not in row:
        return [row["prompt"], row["response"]]
    first = next(i for i, turn in enumerate(row["messages"]) if turn["role"] == "assistant")
    return [str(turn["content"]) for turn in row["messages"][: first + 1]]


def weighed(texts: Sequence[str]) -> tuple[bytes, int]:
    """What stands for these texts in the split, and their characters."""
    return digest(*texts), sum(map(len, texts))


def responses(name: str, row: Mapping[str, Any], text: Text) -> Iterator[Row]:
    """One row per response of a conversation. ValueError for a row of another form."""
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and "content" in turn for turn in messages
        ):
            raise ValueError(f'{name}: messages should be a list of {{"role": ..., "content": ...}}')
        if not any(turn["role"] == "assistant" for turn in messages):
            raise ValueError(f"{name}: no message has the role assistant, so there is nothing to learn")
        for i, turn in enumerate(messages):
            if turn["role"] == "assistant":
                yield _turn(f"{name}.{i}", messages[:i], turn, text)
        return
    for key in ("prompt", "response"):
        if not isinstance(row.get(key), str):
            has = ", ".join(sorted(row))
            raise ValueError(f"{name} should have messages, or prompt and response as texts; its fields are {has}")
    if text.template is not None:
        asked = {"role": "user", "content": row["prompt"]}
        yield _turn(name, [asked], {"role": "assistant", "content": row["response"]}, text)
        return
    front = [] if text.start_id is None else [text.start_id]
    yield name, [*front, *text.encode(row["prompt"])], _ended(text.encode(row["response"], begins=False), text)


def _turn(name: str, before: Sequence[Mapping[str, Any]], turn: Mapping[str, Any], text: Text) -> Row:
    """The response is what the template writes after its generation prompt."""
    prompt = text.chat(before, add_generation_prompt=True)
    whole = text.chat([*before, turn], add_generation_prompt=False)
    if whole[: len(prompt)] == prompt:
        return name, prompt, _ended(whole[len(prompt) :], text)
    return name, prompt, _ended(text.encode(turn["content"], begins=False), text)


def _ended(response: list[int], text: Text) -> list[int]:
    """With one end-of-text token at its end; what a template writes after it (the next turn's line break) goes."""
    end = text.eos_id
    assert end is not None
    return [*response[: response.index(end)], end] if end in response else [*response, end]
