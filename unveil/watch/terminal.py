"""Show a run in the terminal: tokens coloured by how sure the model was, blanks as dim blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text as Line

from ..codecs.text import Text
from .frames import Frame

BLANK = "░"
SURE, UNSURE = (60, 179, 113), (220, 80, 60)  # green and red; between them by way of yellow
UNKNOWN = "rgb(140,140,140)"


def colour(p: float) -> str:
    """A probability as an RGB style: red for 0, yellow for 1/2, green for 1; grey where there is none."""
    if math.isnan(p):
        return UNKNOWN
    middle = (214, 175, 54)
    low, high, share = (UNSURE, middle, 2 * p) if p < 0.5 else (middle, SURE, 2 * p - 1)
    r, g, b = (round(x + (y - x) * min(max(share, 0.0), 1.0)) for x, y in zip(low, high, strict=True))
    return f"rgb({r},{g},{b})"


class Painter:
    """Remembers how sure the model was of every token that it wrote."""

    def __init__(self, text: Text):
        self.text = text
        self.sure: list[dict[int, float]] = []

    def learn(self, frame: Frame) -> None:
        """Take over what a frame wrote and took back."""
        if not self.sure:
            self.sure = [{} for _ in frame.tokens]
        for known, written, gone in zip(self.sure, frame.written, frame.taken_back, strict=True):
            known.update(written)
            for at in gone:
                known.pop(at, None)

    def lines(self, frame: Frame) -> list[Line]:
        """Each row as styled text; what the latest step wrote is bold."""
        return [self.line(frame, row) for row in range(len(frame.tokens))]

    def line(self, frame: Frame, row: int) -> Line:
        tokens, blank = frame.tokens[row], set(frame.blanks[row])
        line, start = Line(), 0
        while start < len(tokens):
            stop = start
            while stop < len(tokens) and (stop in blank) == (start in blank):
                stop += 1
            if start in blank:
                line.append(BLANK * (stop - start), "dim")
            else:
                for at, piece in enumerate(self.text.pieces(tokens[start:stop]), start):
                    line.append(piece, self.style(frame, row, at))
            start = stop
        return line

    def style(self, frame: Frame, row: int, at: int) -> str:
        p = self.sure[row].get(at) if self.sure else None
        if p is None:
            return ""
        return ("bold " if at in frame.written[row] else "") + colour(p)


def play(frames: Iterable[Frame], text: Text, console: Console, title: str = "", titles: Sequence[str] = ()) -> Frame:
    """Show frames as they come and leave the last one standing; returns it. Nothing is shown on what is no terminal."""
    painter, last = Painter(text), None
    with Live(console=console, transient=True, auto_refresh=False, vertical_overflow="ellipsis") as live:
        for last in frames:
            painter.learn(last)
            if console.is_terminal:
                live.update(picture(painter, last, title, titles), refresh=True)
    assert last is not None
    if console.is_terminal:
        console.print(picture(painter, last, title, titles))
    return last


def picture(painter: Painter, frame: Frame, title: str, titles: Sequence[str]) -> Group:
    """One panel a row, titled, with what it cost underneath."""
    written = sum(len(known) for known in painter.sure)
    rate = f", {written / frame.forwards:.1f} tokens a forward" if frame.forwards else ""
    cost = f"{written} tokens, {frame.forwards} forwards{rate}"
    names = titles or [title] * len(frame.tokens)
    lines = painter.lines(frame)
    return Group(*(Panel(line, title=name or None, subtitle=cost) for line, name in zip(lines, names, strict=True)))
