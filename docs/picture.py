"""Draw docs/demo.svg: a few steps of a blank being filled by the embedded model."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel

from unveil.attention import FULL
from unveil.canvas import Canvas
from unveil.codecs.blanks import parse
from unveil.hub import load
from unveil.watch.frames import frames
from unveil.watch.terminal import Painter

SOURCE = "def read_lines(path):[[10]]\n    with open(path) as file:\n        return[[6]]"
SHARES = (0.0, 0.4, 0.7, 1.0)  # of the steps: when the stills are taken


def main() -> None:
    model, text = load("stdlib-dlm")
    _, row = next(parse(SOURCE, text.encode, text.start_id, 8).rows(model.mask_id))
    canvas = Canvas.filling([torch.tensor(row)], model.mask_id, torch.zeros(1, dtype=torch.long), FULL)
    seen = list(frames(model, canvas, "confidence"))
    stills = {round(share * (len(seen) - 1)) for share in SHARES}
    console, painter = Console(record=True, width=66, force_terminal=True, color_system="truecolor"), Painter(text)
    for number, frame in enumerate(seen):
        painter.learn(frame)
        if number in stills:
            console.print(Panel(painter.line(frame, 0), subtitle=f"after {frame.forwards} forwards"))
    # Fonts are not fetched from elsewhere: the page's own monospace will do.
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="unveil fill"), flags=re.DOTALL)
    Path(__file__).with_name("demo.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
