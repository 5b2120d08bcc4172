"""One row's answer while it is written: its final text in order, ended by stop strings, and what is told of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..codecs.spelling import CONTEXT, Spelling
from .messages import Done, Step, Write


@dataclass(frozen=True)
class Place:
    """A row of a request: its tokens with blanks, and which of them the answer is told of.

    Text is told of positions `start` to `stop`; tokens from `context` up to `start` are known to whoever asked, and
    what is told follows them without a seam. `lead` is text put before it.
    """

    tokens: list[int]
    given: int  # tokens that were given
    start: int
    stop: int
    context: int
    ends: int | None = None  # the token that ends its text; None: it is written to its full length
    lead: str = ""
    blanks: tuple[tuple[int, int], ...] = ()  # where several blanks begin and end, where each is told
    seed: int = 0
    prompt: int = 0  # the number of its prompt


@dataclass
class Token:
    """A token of the answer."""

    token: int
    text: str  # what it adds to the text; a character of several tokens belongs to the last
    begin: int  # characters of the answer before it
    write: Write | None  # None: it was given


@dataclass
class Delta:
    """What became certain of an answer."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)  # whose text has come with it
    finish: str | None = None  # "stop" or "length", once

    def and_then(self, later: Delta) -> Delta:
        """Both as one."""
        return Delta(self.text + later.text, self.tokens + later.tokens, later.finish or self.finish)


class Until:
    """Text up to the first stop string, whatever pieces it comes in. What may be the beginning of one waits."""

    def __init__(self, stops: Sequence[str]):
        self.stops, self.held = list(stops), ""
        self.most = max(map(len, self.stops), default=0)

    def add(self, text: str) -> tuple[str, bool]:
        """The text that may be shown, and whether a stop string came."""
        if not self.stops:
            return text, False
        known, self.held = len(self.held), self.held + text
        found = [(at + len(stop), at) for stop in self.stops if (at := self.first(stop, known)) >= 0]
        if found:
            shown, self.held = self.held[: min(found)[1]], ""  # the one that is whole first; of these the longest
            return shown, True
        wait = next((n for n in range(min(self.most - 1, len(self.held)), 0, -1) if self.begins(self.held[-n:])), 0)
        shown, self.held = self.held[: len(self.held) - wait], self.held[len(self.held) - wait :]
        return shown, False

    def first(self, stop: str, known: int) -> int:
        """Where the stop string is in what is held, `known` characters of which were looked at before."""
        return self.held.find(stop, max(0, known - len(stop) + 1))

    def begins(self, text: str) -> bool:
        """May a stop string begin with it?"""
        return any(stop.startswith(text) for stop in self.stops)

    def close(self) -> str:
        """What waited in vain."""
        shown, self.held = self.held, ""
        return shown


class Answer:
    """Follows one row through its events."""

    def __init__(self, spelling: Spelling, place: Place, stops: Sequence[str] = ()):
        self.place, self.spelling = place, spelling
        self.speller = spelling.after(place.tokens[max(place.context, place.start - CONTEXT) : place.start])
        self.until = Until(stops)
        self.written: dict[int, Write] = {}
        self.at = place.start  # the next position to spell
        self.text = ""
        self.tokens: list[Token] = []
        self.count = 0  # tokens that were written and belong to the text
        self.told = 0  # tokens told of
        self.spelled = 0  # characters, those that wait for a stop string included
        self.forwards = 0
        self.finish: str | None = None

    def take(self, step: Step) -> Delta:
        """What a step makes certain."""
        self.forwards = step.forwards
        for at in step.taken_back:
            self.written.pop(at, None)
        for write in step.writes:
            self.written[write.at] = write
        return self.advance(min(step.final, self.place.stop))

    def close(self, done: Done) -> Delta:
        """What is certain now that the row is finished."""
        self.forwards = max(self.forwards, done.forwards)
        if self.finish is not None:
            return Delta()
        delta = self.advance(self.place.stop)
        if self.finish is None:
            self.end(delta, "stop" if done.reason == "end" else "length")
        return delta

    def advance(self, final: int) -> Delta:
        """Spell what is final."""
        delta = Delta()
        while self.at < final and self.finish is None:
            write = self.written.get(self.at)
            token = self.place.tokens[self.at] if write is None else write.token
            if token == self.place.ends:
                self.end(delta, "stop")
                break
            self.count += write is not None
            self.at += 1
            self.show(delta, token, self.speller.add(token), write)
        return delta

    def show(self, delta: Delta, token: int, piece: str, write: Write | None) -> None:
        """Pass on the text of one token as far as stop strings allow."""
        self.tokens.append(Token(token, piece, self.spelled, write))
        self.spelled += len(piece)
        shown, found = self.until.add(piece)
        self.pass_on(delta, shown)
        if found:
            self.finish = delta.finish = "stop"
            self.tokens = self.tokens[: self.told] + [
                each for each in self.tokens[self.told :] if each.begin < len(self.text)
            ]
        self.tell(delta)

    def end(self, delta: Delta, reason: str) -> None:
        """No token follows."""
        rest = self.speller.close()
        if rest and self.tokens:
            self.tokens[-1].text += rest
        self.spelled += len(rest)
        shown, found = self.until.add(rest)
        self.pass_on(delta, shown)
        if not found:
            self.pass_on(delta, self.until.close())
        self.finish = delta.finish = "stop" if found else reason
        self.tell(delta)

    def pass_on(self, delta: Delta, text: str) -> None:
        self.text += text
        delta.text += text

    def tell(self, delta: Delta) -> None:
        """Tell of tokens whose text is out."""
        while self.told < len(self.tokens):
            token = self.tokens[self.told]
            held = self.speller.holds and token is self.tokens[-1]  # its text may grow
            waits = held or token.begin + len(token.text) > len(self.text)
            if waits and self.finish is None:
                return
            delta.tokens.append(token)
            self.told += 1

    @property
    def parts(self) -> list[str]:
        """What stands in each blank."""
        row = [self.written[at].token if at in self.written else token for at, token in enumerate(self.place.tokens)]
        return [self.spelling.between(row, start, stop) for start, stop in self.place.blanks]
