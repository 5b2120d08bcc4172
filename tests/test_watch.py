"""Frames say exactly what a run wrote, and how sure it was; the terminal and the page show it."""

import re

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from unveil.canvas import Canvas
from unveil.codecs.text import Text
from unveil.context import EVERYTHING, Context
from unveil.denoiser import Denoiser
from unveil.sample import denoise
from unveil.watch.curves import Chart, number, svg, thin, ticks
from unveil.watch.frames import frames
from unveil.watch.report import Report, Sample, marked, page, write
from unveil.watch.terminal import BLANK, Painter, colour, play

VOCAB, MASK = 12, 11


class Table(Denoiser):
    """Logits that depend on the position alone."""

    def __init__(self, length: int):
        super().__init__()
        self.mask_id = MASK
        self.rows = torch.randn(length, VOCAB, generator=torch.Generator().manual_seed(3)) * 3

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        at = ctx.over(tokens.shape[1]).positions(tokens.device).expand(len(tokens), -1)
        logits = self.rows[at]
        return logits if ctx.read is None else logits.flatten(0, 1)[ctx.read]


def letters() -> Text:
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate("abcdefghijk")} | {"<m>": MASK}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return Text(tokenizer, special={"mask": "<m>"})


def canvas() -> Canvas:
    rows = [torch.tensor([1, MASK, MASK, MASK, 2]), torch.tensor([MASK, 3, MASK])]
    return Canvas.filling(rows, MASK, torch.arange(2))


@pytest.mark.parametrize("decoder", ["confidence", "threshold(tau=0.5)", "random(temperature=0.7)"])
def test_frames_are_the_run(decoder):
    model = Table(8)
    seen = list(frames(model, canvas(), decoder))
    plain = list(denoise(model, other := canvas(), decoder))
    assert len(seen) == len(plain) + 1
    assert seen[0].forwards == 0
    assert seen[0].blanks == [[1, 2, 3], [0, 2]]
    assert seen[-1].blanks == [[], []]
    assert seen[-1].tokens == [row.tolist() for row in other.rows()]
    assert seen[-1].forwards == len(plain)
    written = [{at: p for frame in seen for at, p in frame.written[row].items()} for row in range(2)]
    assert sorted(written[0]) == [1, 2, 3]
    assert sorted(written[1]) == [0, 2]
    logits = model.rows.clone()
    logits[:, MASK] = -torch.inf
    for row, known in enumerate(written):
        for at, p in known.items():
            assert p == pytest.approx(float(logits[at].softmax(-1)[seen[-1].tokens[row][at]]), abs=1e-6)


def test_a_painter_shows_blanks_and_confidence():
    painter = Painter(letters())
    last = None
    for number_, frame in enumerate(frames(Table(8), canvas(), "confidence")):
        painter.learn(frame)
        if number_ == 0:
            assert painter.line(frame, 0).plain == "b" + BLANK * 3 + "c"
        last = frame
    assert last is not None
    line = painter.line(last, 0)
    assert BLANK not in line.plain
    assert len(line.plain) == 5
    assert any("rgb" in str(span.style) for span in line.spans)


def test_colours_run_from_red_by_yellow_to_green():
    assert colour(0) == "rgb(220,80,60)"
    assert colour(0.5) == "rgb(214,175,54)"
    assert colour(1) == colour(2) == "rgb(60,179,113)"


def test_play_draws_on_a_terminal_and_is_silent_elsewhere():
    shown, silent = Console(record=True, force_terminal=True, width=60), Console(force_terminal=False)
    with silent.capture() as nothing:
        play(frames(Table(8), canvas()), letters(), silent)
    assert nothing.get() == ""
    with shown.capture() as drawn:
        last = play(frames(Table(8), canvas()), letters(), shown, titles=["first", "second"])
    assert last.blanks == [[], []]
    assert "first" in drawn.get()
    assert "forwards" in drawn.get()


def test_charts_have_round_ticks_and_all_series():
    assert ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert ticks(3.0, 3.0)[0] < 3 < ticks(3.0, 3.0)[-1]
    assert number(1_250_000) == "1.25M"
    assert len(thin([(float(i), 1.0) for i in range(5000)])) <= 400
    chart = Chart("T <1>", "tokens", "nats", {"a": [(0, 1), (1, 0.5)], "b": [(0.5, 2)]}, {"parent": 0.7})
    drawn = svg(chart)
    assert drawn.count("<polyline") == 2
    assert "T &lt;1&gt;" in drawn
    assert 'class="c2 level"' in drawn
    assert svg(Chart("none", "", "", {})) == ""


def test_the_page_is_whole_and_escapes(tmp_path):
    frame_list, painter = list(frames(Table(8), canvas())), Painter(letters())
    for frame in frame_list:
        painter.learn(frame)
    filled = Sample("f", marked(frame_list[-1], painter, letters()), "a<b")
    chart = Chart("Loss", "tokens", "nats", {"loss": [(0, 1.0), (10, 0.5)]})
    report = Report("A & B", "lead", ["", "nats"], [["parent", "1.0"]], [chart], [filled], ["unveil list"])
    text = page(report)
    assert "A &amp; B" in text
    assert "a&lt;b" in text
    assert "<script" not in text
    assert not re.search(r"(src|href)=", text)
    assert text.count('class="written"') == 3
    assert "prefers-color-scheme: dark" in text
    assert write(report, tmp_path / "r.html").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
