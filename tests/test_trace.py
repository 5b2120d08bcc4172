"""A trace is the run: what is read back is what was seen, and what is no trace is refused by its line."""

from __future__ import annotations

import json
import math
import time
from functools import partial

import pytest
import torch
from commands import command
from rich.console import Console
from toy import END, checkpoint, letters, network

from unveil.canvas import Canvas
from unveil.cli.replay import paced
from unveil.context import EVERYTHING
from unveil.decoders.confidence import Confidence
from unveil.denoiser import Denoiser
from unveil.watch.frames import Frame, frames
from unveil.watch.terminal import Painter, colour, play
from unveil.watch.trace import VERSION, Header, read, record

MASK = 15


class Fickle(Confidence):
    """Takes the row's first written token back in the second step of a block."""

    def write(self, canvas, seen):
        tokens = super().write(canvas, seen)
        if canvas.step == 1:
            mine = canvas.free & (tokens != MASK)
            tokens = torch.where(mine & (mine.cumsum(1) == 1), MASK, tokens)
        return tokens


class Ending(Denoiser):
    """Takes the end of the text for likeliest everywhere."""

    mask_id, eos_id = MASK, END

    def forward(self, tokens, ctx=EVERYTHING):
        logits = torch.zeros(tokens.shape[0] * ctx.over(tokens.shape[1]).width, 16)
        logits[:, END] = 5
        return logits if ctx.read is None else logits[ctx.read]


def canvas() -> Canvas:
    rows = [torch.tensor([1, 2, *[MASK] * 6, 3]), torch.tensor([4, MASK, MASK, MASK, MASK])]
    return Canvas.filling(rows, MASK, torch.arange(2))


def recorded(path, decoder="confidence", *, model=None, statistics=False, **options) -> list[Frame]:
    model, here = model or network(), canvas()
    choices = {"cache": "recompute", "guide": None, "block": None, "steps": None, **options}
    header = Header.of(here, model="toy", tokenizer=str(path.parent), decoder=str(decoder), **choices)
    return list(record(frames(model, here, decoder, statistics=statistics, **choices), path, header))


def same(one: Frame, other: Frame) -> None:
    for name in ("forwards", "tokens", "blanks", "taken_back", "block", "step"):
        assert getattr(one, name) == getattr(other, name), name
    assert other.seconds == pytest.approx(one.seconds, abs=1e-6)
    for ours, theirs in zip(one.written, other.written, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-6, nan_ok=True)
    assert len(one.said) == len(other.said)
    for ours, theirs in zip(one.said, other.said, strict=True):
        assert {at: said.best for at, said in ours.items()} == {at: said.best for at, said in theirs.items()}
        assert {at: said[1:] for at, said in theirs.items()} == {
            at: pytest.approx(said[1:], abs=1e-6) for at, said in ours.items()
        }


@pytest.mark.parametrize("decoder", ["confidence", "threshold(tau=0.5)", "random", Fickle()], ids=str)
@pytest.mark.parametrize("statistics", [False, True])
def test_what_is_read_back_is_what_was_seen(tmp_path, decoder, statistics):
    live = recorded(tmp_path / "run.jsonl", decoder, statistics=statistics, block=3)
    trace = read(tmp_path / "run.jsonl")
    again = list(trace.frames())
    assert len(again) == len(live)
    for one, other in zip(live, again, strict=True):
        same(one, other)
    assert again[-1].blanks == [[], []]
    assert any(any(row) for frame in again for row in frame.taken_back) == isinstance(decoder, Fickle)
    assert bool(again[1].said) == statistics
    assert trace.header.lengths == [9, 5]
    assert trace.header.rows[0][:2] == [1, 2]


def test_statistics_speak_of_every_position_that_was_read(tmp_path):
    live = recorded(tmp_path / "run.jsonl", statistics=True)
    assert [sorted(row) for row in live[1].said] == [[2, 3, 4, 5, 6, 7], [1, 2, 3, 4]]
    for before, frame in zip(live[:-1], live[1:], strict=True):
        assert [sorted(row) for row in frame.said] == before.blanks
        for said, written, tokens in zip(frame.said, frame.written, frame.tokens, strict=True):
            for at, p in written.items():
                assert said[at].best == tokens[at]
                assert said[at].confidence == pytest.approx(p)
            for one in said.values():
                assert 0 <= one.entropy <= math.log(16)
                assert one.gap >= 0


def test_what_no_pass_spoke_of_has_no_probability(tmp_path):
    live = recorded(tmp_path / "run.jsonl", model=Ending(), guide="eos(policy='stop')", block=2)
    silent = [(row, at) for frame in live for row, new in enumerate(frame.written) for at in new if math.isnan(new[at])]
    again = list(read(tmp_path / "run.jsonl").frames())
    assert silent, "the end was written to the end of a row without a pass"
    assert silent == [
        (row, at) for frame in again for row, new in enumerate(frame.written) for at in new if math.isnan(new[at])
    ]
    assert colour(math.nan) == "rgb(140,140,140)"
    painter = Painter(letters())
    for frame in again:
        painter.learn(frame)
        painter.lines(frame)


def test_a_trace_has_its_name_only_once_it_is_whole(tmp_path):
    path, model, here = tmp_path / "run.jsonl", network(), canvas()
    choices = {"cache": "recompute", "guide": None, "block": None, "steps": None}
    header = Header.of(here, model="toy", tokenizer="toy", decoder="confidence", **choices)
    run = record(frames(model, here, "confidence", **choices), path, header)
    next(run)
    next(run)
    assert not path.exists()
    (draft,) = tmp_path.iterdir()
    assert len(draft.read_text().splitlines()) == 2, "what has happened is in the file"
    run.close()
    assert not list(tmp_path.iterdir())


def test_what_is_no_trace_is_refused_by_its_line(tmp_path):
    path = tmp_path / "run.jsonl"
    recorded(path)
    lines = path.read_text().splitlines()

    def refused(*new: str) -> str:
        (tmp_path / "bad.jsonl").write_text("\n".join(new))
        with pytest.raises(ValueError, match=r"bad\.jsonl") as found:
            read(tmp_path / "bad.jsonl")
        return str(found.value)

    def changed(number: int, **fields) -> list[str]:
        return [*lines[:number], json.dumps({**json.loads(lines[number]), **fields}), *lines[number + 1 :]]

    assert "version 99" in refused(*changed(0, version=99))
    assert f"version {VERSION}" in refused(*changed(0, version=99))
    assert "format" in refused(*changed(0, format="another"))
    assert "line 1 is no JSON" in refused("", *lines)
    assert "line 3 is no JSON" in refused(*lines[:2], lines[2][:-9])
    assert "line 4 is the last" in refused(*lines[:4])
    assert "does not say its rows" in refused(json.dumps({"format": "unveil trace", "version": VERSION, "model": "m",
        "tokenizer": "t", "decoder": "d", "cache": "c", "guide": None, "block": None, "steps": None, "mask_id": 1,
        "seeds": [0], "lengths": [1]}), *lines[1:])  # fmt: skip
    assert "line 1: the lengths" in refused(*changed(0, lengths=[9, 6]))
    assert "no blank" in refused(*changed(0, rows=[[1], [2]], lengths=[1, 1]))
    assert "line 2: block" in refused(*changed(1, block="one"))
    assert "line 2: written should be 2 lists" in refused(*changed(1, written=[[]]))
    assert "line 2: written holds" in refused(*changed(1, written=[[[2, 3]], []]))
    assert "line 2: position 0 was no blank" in refused(*changed(1, written=[[[0, 3, 0.5]], []]))
    assert "line 2: position 8 was no blank" in refused(*changed(1, taken_back=[[8], []]))
    assert "after the end" in refused(*lines, lines[-1])
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "nothing.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read(tmp_path / "bad.jsonl")


def test_steps_are_shown_when_their_time_has_come():
    told = [Frame(i, [[1]], [[]], [{}], [[]], 1, i, 0.05) for i in range(4)]
    began = time.monotonic()
    assert list(paced(told, 1.0, None)) == told
    assert 0.2 <= time.monotonic() - began < 2
    began = time.monotonic()
    list(paced(told, 100.0, None))
    list(paced(told, 1.0, 0.0))
    assert time.monotonic() - began < 0.2


def test_a_trace_plays_like_the_run(tmp_path):
    live = recorded(tmp_path / "run.jsonl")
    pictures = []
    for shown in (live, read(tmp_path / "run.jsonl").frames()):
        console = Console(force_terminal=True, width=60)
        with console.capture() as drawn:
            play(shown, letters(), console, titles=["one", "two"])
        pictures.append(drawn.get())
    assert pictures[0] == pictures[1]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command in this process: its exit code, its output and its errors."""
    monkeypatch.chdir(tmp_path)

    return partial(command, monkeypatch, capsys)


def test_generate_and_fill_record_and_watch_replays(run, tmp_path):
    checkpoint(tmp_path / "toy")
    words = ["generate", "abc", "nm", "-m", "toy", "-l", "6", "-d", "threshold(tau=0.5)", "-t", "0.7", "--json"]
    code, out, _ = run(*words, "--trace", "run.jsonl", "--statistics")
    assert code == 0
    made = json.loads(out.splitlines()[-1])
    seen = json.loads(run("watch", "run.jsonl", "--json")[1].splitlines()[-1])
    assert seen["texts"] == [sample["text"] for sample in made["samples"]]
    assert (seen["forwards"], seen["tokens"]) == (made["forwards"], made["tokens"])
    assert seen["decoder"] == "threshold(tau=0.5, temperature=0.7)"
    assert run("watch", "run.jsonl")[1].splitlines() == "\n".join(seen["texts"]).splitlines()
    header = read(tmp_path / "run.jsonl").header
    assert header.tokenizer == str(tmp_path / "toy")
    assert header.seeds == [0, 1]
    code, out, _ = run("fill", "ab[[3]]cd", "-m", "toy", "--trace", "fill.jsonl", "--json")
    assert code == 0
    filled = json.loads(out.splitlines()[-1])["filled"][0]["text"]
    assert json.loads(run("watch", "fill.jsonl", "--json")[1])["texts"] == [filled]


def test_mistakes_are_one_sentence(run, tmp_path):
    checkpoint(tmp_path / "toy")
    recorded(tmp_path / "run.jsonl")
    for words, said in [
        (["watch", "nothing"], "no such file"),
        (["watch", "run.jsonl", "--speed", "0"], "speed is 0"),
        (["watch", "run.jsonl", "--pause", "-1"], "pause is -1"),
        (["watch", "run.jsonl", "-m", "no/such/place"], "no folder"),
        (["generate", "a", "-m", "toy", "--statistics"], "--trace"),
        (["generate", "a", "-m", "toy", "--trace", "run.jsonl"], "is there already"),
        (["generate", "a", "-m", "toy", "--trace", "no/run.jsonl"], "no folder no"),
        (["fill", "a[[2]]", "b[[2]]", "-m", "toy", "--trace", "new.jsonl"], "one at a time"),
    ]:
        code, _, err = run(*words)
        assert code == 2, words
        assert said in err
        assert len(err.strip().splitlines()) == 1
