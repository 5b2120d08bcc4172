"""Conversations: what is given, what is learned, and the order of rows."""

import json

import pytest
import torch

from unveil.codecs.text import Text
from unveil.codecs.train import train_tokenizer
from unveil.data import Conversations, converse

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["add the two numbers", "which is larger", "name a colour"]


@pytest.fixture(scope="module")
def plain() -> Text:
    return train_tokenizer(WORDS, 280)


@pytest.fixture(scope="module")
def talker() -> Text:
    found = train_tokenizer(WORDS, 280, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    return Text(found.tokenizer, special={"eos": "<|im_end|>"}, template=TEMPLATE)


def write(tmp_path, rows) -> str:
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "chat.jsonl")


def pairs(n: int) -> list[dict]:
    return [{"prompt": f"add {i} and {i}", "response": " = " + "9" * i} for i in range(n)]


def test_prompts_are_given_and_padding_is_learned(plain, tmp_path):
    found = converse(write(tmp_path, pairs(3)), plain, held_out=0).train
    batch = found.windows(40)
    for i, (tokens, answer) in enumerate(zip(batch.tokens, batch.answer, strict=True)):
        prompt = [0, *plain.encode(f"add {i} and {i}")]
        response = [*plain.encode(" = " + "9" * i), 0]
        rest = 40 - len(prompt) - len(response)
        assert tokens.tolist() == [*prompt, *response, *[0] * rest]
        assert answer.tolist() == [False] * len(prompt) + [True] * (len(response) + rest)
    assert batch.documents is not None
    assert not batch.documents.any()
    assert torch.equal(batch.targets, batch.answer)


def test_padding_can_be_learned_in_part(plain, tmp_path):
    source = write(tmp_path, pairs(3))
    none, some = (converse(source, plain, held_out=0, pads=pads).train.windows(40) for pads in (0, 2))
    assert torch.equal(none.tokens, some.tokens)
    assert (some.answer.sum(1) - none.answer.sum(1)).tolist() == [2, 2, 2]
    last = [row.nonzero().max().item() for row in none.answer]
    assert all(none.tokens[i, k] == 0 and none.tokens[i, k - 1] != 0 for i, k in enumerate(last))


def test_every_response_of_a_conversation_is_a_row(talker, tmp_path):
    turns = [("user", "which"), ("assistant", "the larger"), ("user", "name it"), ("assistant", "a colour")]
    messages = [{"role": role, "content": content} for role, content in turns]
    found = converse(write(tmp_path, [{"messages": messages}]), talker, held_out=0).train
    assert len(found) == 2
    for (name, prompt, response), k in zip(found.conversations, (1, 3), strict=True):
        assert name == f"chat.jsonl#1.{k}"
        assert prompt == talker.chat(messages[:k])
        assert response == [*talker.encode(messages[k]["content"]), talker.eos_id]


def test_pairs_use_the_template_where_there_is_one(talker, tmp_path):
    source = write(tmp_path, [{"prompt": "which", "response": "this <|im_end|> one"}])
    ((_, prompt, response),) = converse(source, talker, held_out=0).train.conversations
    assert prompt == talker.chat([{"role": "user", "content": "which"}])
    assert response == [*talker.encode("this "), *talker.encode("<|im_end|>"), *talker.encode(" one"), talker.eos_id]


def test_rows_that_are_too_long_are_counted(plain, tmp_path):
    found = converse(write(tmp_path, pairs(30)), plain, held_out=0).train
    sizes = [len(prompt) + len(response) for _, prompt, response in found.conversations]
    assert found.skipped(30) == sum(size > 30 for size in sizes) > 0
    assert found.count(30) + found.skipped(30) == len(found) == 30
    assert found.windows(30).tokens.shape == (found.count(30), 30)
    with pytest.raises(ValueError, match=f"no conversation fits 4 tokens: the shortest of 30 has {min(sizes)}"):
        found.batch(0, 2, 4)


def test_order_is_a_function_of_seed_and_step(plain, tmp_path):
    found = converse(write(tmp_path, pairs(10)), plain, held_out=0).train
    steps = [found.batch(step, 5, 64, seed=1) for step in range(6)]
    for step in (5, 0, 3):
        again = found.batch(step, 5, 64, seed=1)
        assert torch.equal(again.tokens, steps[step].tokens)
        assert torch.equal(again.answer, steps[step].answer)
        assert (again.step, again.seed, again.ids.tolist()) == (step, 1, list(range(5 * step, 5 * step + 5)))
    epochs = [[row for step in steps[k : k + 2] for row in map(tuple, step.tokens.tolist())] for k in (0, 2, 4)]
    assert len({*epochs[0]}) == 10
    assert {*epochs[0]} == {*epochs[1]} == {*epochs[2]}
    assert epochs[0] != epochs[1]
    split = torch.cat([found.samples(first, 1, 64, seed=1).tokens for first in range(5)])
    assert torch.equal(split, steps[0].tokens)
    names = found.origins(range(10), 64, seed=1)
    assert sorted(names) == sorted(f"chat.jsonl#{i + 1}" for i in range(10))
    assert found.windows(64, limit=2).ids.tolist() == [0, 5]


def test_conversations_are_held_out_whole(talker, tmp_path):
    rows = []
    for i in range(40):
        turns = [("user", f"add {i}"), ("assistant", f"{i}"), ("user", "again"), ("assistant", f"{i + i}")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    found = converse(write(tmp_path, rows), talker, held_out=0.2)
    train, away = ({name.split(".")[1] for name, _, _ in side.conversations} for side in (found.train, found.held_out))
    assert not train & away
    assert len(train | away) == 40
    assert 0.15 < len(away) / 40 < 0.3
    assert len(found.held_out) == 2 * len(away)


BAD = [
    ({"text": "a"}, "chat.jsonl#1 should have messages, or prompt and response as texts; its fields are text"),
    ({"prompt": "a", "response": None}, "should have messages, or prompt and response"),
    ({"messages": "hello"}, "chat.jsonl#1: messages should be a list"),
    ({"messages": [{"role": "user"}]}, "messages should be a list of"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "no message has the role assistant"),
    ([1], "chat.jsonl#1 should be a JSON object, not a list"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_rows_are_named(talker, tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        converse(write(tmp_path, [row]), talker)


def test_bad_calls(plain, talker, tmp_path):
    with pytest.raises(ValueError, match="no such file or folder: nowhere.jsonl"):
        converse("nowhere.jsonl", plain)
    with pytest.raises(ValueError, match="no chat template"):
        converse(write(tmp_path, [{"messages": [{"role": "assistant", "content": "hi"}]}]), plain)
    with pytest.raises(ValueError, match="need an end-of-text token"):
        converse(write(tmp_path, pairs(2)), Text(plain.tokenizer))
    with pytest.raises(ValueError, match="at least two different documents"):
        converse(write(tmp_path, pairs(1)), plain)
    with pytest.raises(ValueError, match="no conversation fits 8 tokens"):
        Conversations([], 0).count(8)
    assert isinstance(converse(write(tmp_path, pairs(4)), talker).held_out, Conversations)
