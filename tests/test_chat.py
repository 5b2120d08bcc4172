"""`unveil chat`: piped and in a terminal, with a model whose answers mean nothing."""

import io
import json
import sys
from dataclasses import replace

import pytest
import torch
from models import TINY

from unveil import cli, hub
from unveil.attention import Attention
from unveil.cli.chat import answers
from unveil.codecs.text import Text
from unveil.codecs.train import train_tokenizer
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Transformer
from unveil.watch.frames import Frame

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A leader model with a chat template and room for 120 tokens."""
    made = train_tokenizer(["good morning user assistant\n"] * 20, 290, special=("<|im_end|>", "<|im_start|>"))
    text = Text(made.tokenizer, special={"eos": "<|im_end|>"}, template=TEMPLATE)
    mask = text.add_mask()
    torch.manual_seed(0)
    model = Transformer(replace(TINY, vocab=text.vocab, mask_id=mask, context=120, qk_norm=None))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(10)
    wrapped = Shifted(model)
    wrapped.attention = model.attention = Attention("leader", 4)
    place = tmp_path_factory.mktemp("chat") / "model"
    hub.save(wrapped, place, text)
    return place


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def talk(monkeypatch, capsys, folder):
    """Say lines to `unveil chat`: its exit code, its output and its errors."""
    monkeypatch.setenv("COLUMNS", "100")

    def command(lines: str, *words: str, place: str | None = None, terminal: bool = False) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", Terminal(lines) if terminal else io.StringIO(lines))
        monkeypatch.setattr(sys, "argv", ["unveil", "chat", place or str(folder), "--length", "8", *words])
        with pytest.raises(SystemExit) as found:
            cli.main()
        code = found.value.code
        return (code if isinstance(code, int) else 0), *capsys.readouterr()

    return command


def objects(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_piped_lines_are_questions_and_commands(talk):
    said = "good morning\n\n/seed 3\n/etc/hosts is a file\n/quit\nnever asked\n"
    code, out, err = talk(said)
    assert code == 0
    assert err == "the seed is 3\n"
    assert "\x1b" not in out
    found = objects(talk(said, "--json")[1])
    assert [(each["question"], each["seed"]) for each in found] == [("good morning", 0), ("/etc/hosts is a file", 3)]
    assert out == "".join(each["answer"] + "\n" for each in found)


def test_one_object_for_each_answer(talk):
    said = "good\nmorning\n/new\ngood\n/seed 5\n/new\ngood\n"
    code, out, _ = talk(said, "--json", "--temperature", "2")
    first, second, again, other = objects(out)
    assert code == 0
    assert first["question"] == again["question"] == "good"
    assert first["answer"] == again["answer"] != other["answer"]
    assert second["prompt_tokens"] > first["prompt_tokens"] == again["prompt_tokens"]
    assert (first["seed"], other["seed"]) == (0, 5)
    assert first["cache"] == "causal"
    assert first["block"] == 4
    for each in (first, second, again, other):
        assert 0 < each["tokens"] <= 8
        assert each["forwards"] > 0
        assert each["ended"] or each["tokens"] == 8


def test_old_turns_give_way_when_the_context_is_full(talk):
    code, out, err = talk("good morning\n" * 12, "--json")
    found = objects(out)
    assert code == 0
    assert len(found) == 12
    assert found[0]["dropped"] == 0
    assert found[-1]["dropped"] > 0
    assert all(each["prompt_tokens"] + 8 <= 120 for each in found)
    assert "oldest messages are left out" in err


def test_an_unknown_command_is_not_a_question(talk):
    code, out, err = talk("/help\n/seed\n/seed x\n/seed 9999999999999999999\n")
    assert (code, out) == (0, "")
    assert "no command called /help; there are: /new, /seed NUMBER, /quit" in err
    assert err.count("the seed is 0; /seed NUMBER sets another") == 3


def test_a_terminal_sees_the_answer_unveiled(talk, monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("TERM", "xterm")
    code, _, err = talk("good\n/new\n" + "good morning " * 40 + "\n", terminal=True)
    assert code == 0
    assert "/new to forget" in shown.getvalue()
    assert "\x1b[" in shown.getvalue()
    assert "░" in shown.getvalue()
    assert "forwards" in shown.getvalue()
    assert shown.getvalue().count("\n> ") == 4


def test_an_interrupted_answer_is_forgotten(talk, monkeypatch):
    from unveil.cli import chat

    real, count = chat.run, []

    def once(*given, **options):
        count.append(1)
        if len(count) == 1:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(chat, "run", once)
    code, out, err = talk("good\ngood\n", "--json")
    assert code == 0
    assert "interrupted; that question is forgotten" in err
    assert objects(out)[0]["prompt_tokens"] < 30


def test_a_model_without_a_template_needs_one(talk, tmp_path):
    code, out, err = talk("hello\n", place="stdlib-dlm")
    assert (code, out) == (2, "")
    assert "stdlib-dlm has no chat template" in err
    assert len(err.splitlines()) == 1
    (tmp_path / "chat.jinja").write_text("{{ messages[-1].content }}\nA:")
    code, out, _ = talk("hello\n", "--chat-template", str(tmp_path / "chat.jinja"), place="stdlib-dlm")
    assert code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--length", "0"], "--length is 0"),
        (["--length", "120"], "context holds 120, questions included"),
        (["--decoder", "psychic"], "no decoder called 'psychic'"),
        (["--chat-template", "nowhere.jinja"], "nowhere.jinja"),
        (["--cache", "dual"], "dual cache"),
        (["--length", "110"], "the question takes"),
    ],
)
def test_a_mistake_is_one_sentence(talk, words, said):
    code, _, err = talk("good morning and good morning\n", *words)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_frames_of_an_answer_end_with_its_text():
    def frame(row: list[int], blanks: list[int], written: dict[int, float]) -> Frame:
        return Frame(1, [row], [blanks], [written], [[]])

    seen = [
        frame([5, 6, 9, 9, 9, 9], [2, 3, 4, 5], {}),
        frame([5, 6, 9, 7, 0, 9], [2, 5], {3: 0.5, 4: 0.9}),
        frame([5, 6, 8, 7, 0, 9], [5], {2: 0.4}),
        frame([5, 6, 8, 7, 0, 1], [], {5: 0.4}),
    ]
    found = list(answers(seen, 2, 0))
    assert [each.tokens[0] for each in found] == [[9, 9, 9, 9], [9, 7, 0, 9], [8, 7]]
    assert [each.blanks[0] for each in found] == [[0, 1, 2, 3], [0, 3], []]
    assert [each.written[0] for each in found] == [{}, {1: 0.5, 2: 0.9}, {0: 0.4}]
    assert len(list(answers(seen, 2, None))) == 4
