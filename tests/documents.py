"""JSON documents for tests: schemas, a tokenizer that spells them, models, and whether a text is one of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import jsonschema
import torch
from models import TINY
from torch import Tensor

from unveil.attention import Attention
from unveil.codecs.text import Text
from unveil.codecs.train import train_tokenizer
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Transformer
from unveil.serve.grammar import ANY_OBJECT, Document, compiled, vocabulary

NAME = {"type": "string", "maxLength": 10}
PERSON = {
    "type": "object",
    "properties": {"name": NAME, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS = {
    "object": ANY_OBJECT,
    "anything": {},
    "person": PERSON,
    "enum": {"enum": ["red", "green", 3, None, {"a": [True]}]},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": -5, "maximum": 99}, "maxItems": 3},
    "nested": {
        "type": "object",
        "properties": {
            "people": {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
            "ok": {"type": "boolean"},
        },
        "required": ["people", "ok"],
        "additionalProperties": False,
    },
    "either": {"anyOf": [NAME, {"type": "integer"}, {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 5}]},
    "const": {"const": {"a": [1, 2, {"b": None}], 'é "quoted"\n': "ü"}},
    "pattern": {"type": "string", "pattern": "^[a-z]{2,5}-[0-9]{3}$"},
    "date": {"type": "string", "format": "date"},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer"},
                    "left": {"$ref": "#/$defs/node"},
                    "right": {"$ref": "#/$defs/node"},
                },
                "required": ["v"],
                "additionalProperties": False,
            }
        },
    },
    "switch": {"type": ["boolean", "null"]},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, NAME], "items": False, "minItems": 2},
    "bag": {"type": "object", "properties": {"id": {"const": 7}}, "additionalProperties": {"type": "integer"}},
    "one of": {"oneOf": [{"type": "null"}, {"type": "object", "required": ["k"], "properties": {"k": NAME}}]},
}


def tokenizer() -> Text:
    """Byte-level, trained on JSON; it has an added token that is not special, and a mask."""
    rng = random.Random(0)

    def value(depth: int):
        kind = rng.randrange(7 if depth else 4)
        if kind < 2:
            return "".join(rng.choices(["ab", "name ", "é", "x\n", "red", "日", "-", "Zoë"], k=rng.randrange(4)))
        if kind < 4:
            return rng.choice([None, True, rng.randrange(2000), rng.random()])
        if kind < 5:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        return {rng.choice(["name", "age", "people", "v", "left"]): value(depth - 1) for _ in range(rng.randrange(4))}

    lines = [json.dumps(value(3), ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 2])) for _ in range(400)]
    made = train_tokenizer(lines, 420)
    made.tokenizer.add_tokens(["<tool_call>"])  # an added token that is not special
    made.add_mask()
    return Text(made.tokenizer, special=made.special)


def network(text: Text, kind: str = "full", block: int | None = None, seed: int = 0):
    """Random weights, large enough for tokens to matter; three rows of the head stand for no token at all."""
    torch.manual_seed(seed)
    model = Transformer(replace(TINY, vocab=text.vocab + 3, mask_id=text.mask_id)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(10)
    model.attention = Attention(kind, block)
    wrapped = Shifted(model) if kind == "leader" else model
    wrapped.attention, wrapped.eos_id = model.attention, text.eos_id
    return wrapped.eval()


def beginnings(text: Text, rows: int, seed: int = 0) -> list[Tensor]:
    draws = random.Random(seed)
    return [torch.tensor([0] + [draws.randrange(1, 400) for _ in range(draws.randrange(1, 9))]) for _ in range(rows)]


def judged(text: Text, schema: dict, ids: list[int]) -> bool:
    """Is it finished? Either way it is what it should be."""
    assert text.mask_id not in ids
    ended = text.eos_id in ids
    if ended:
        stop = ids.index(text.eos_id)
        assert set(ids[stop:]) == {text.eos_id}
        valid(text, schema, ids[:stop])
    else:
        valid(text, schema, completed(text, schema, ids))
    return ended


def valid(text: Text, schema: dict, ids: list[int]) -> None:
    found = json.loads(text.decode(ids, keep_special=True))
    jsonschema.validate(found, schema, format_checker=jsonschema.FormatChecker())


def completed(text: Text, schema: dict, ids: list[int]) -> list[int]:
    """The same text with an end found for it: a matcher of its own, a taste for closing brackets, and dice."""
    document = Document(compiled(schema), vocabulary(text), text.eos_id)
    for token in ids:
        assert document.take(token), text.decode(ids)
    ids, dice, closing = list(ids), random.Random(0), {text.encode(c)[0] for c in '"}]'}
    while not document.ended:
        able = document.allowed(text.vocab).nonzero()[0].tolist()
        token = text.eos_id if text.eos_id in able else dice.choice(sorted(closing & set(able)) or able)
        assert document.take(token)
        if token != text.eos_id:
            ids.append(token)
        assert len(ids) < 400
    return ids
