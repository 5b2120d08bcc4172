"""JSON by a schema: whatever a model wants, what is written is valid or begins something valid."""

from __future__ import annotations

import json

import pytest
import torch
from documents import NAME, PERSON, SCHEMAS, beginnings, judged, network, tokenizer
from torch import Tensor

from unveil import hub, spec
from unveil.canvas import Canvas
from unveil.codecs.text import Text
from unveil.sample import denoise, prepare, writer
from unveil.serve.constraint import Constrained, fits
from unveil.serve.engine import Engine
from unveil.serve.grammar import Document, check, compiled, vocabulary
from unveil.serve.messages import Done, Refusal, Row, Step, Submit
from unveil.together import together

LOOKS = {
    "full": ("full", None, "recompute", None),
    "dual": ("full", None, "dual", 8),
    "delayed": ("full", None, "delayed", 16),
    "block": ("block", 4, "causal", 8),
    "leader": ("leader", 8, "causal", 8),
    "autoregressive": ("leader", 8, "causal", 1),
}


@pytest.fixture(scope="module")
def text() -> Text:
    return tokenizer()


def written(text: Text, model, schema: dict, given, length: int = 40, decoder: str = "threshold(tau=0.3)", **options):
    """The canvas when done, and what each row wrote."""
    seeds = torch.arange(len(given)) + options.pop("seed", 0)
    canvas = Canvas.answering(given, length, model.mask_id, seeds)
    rule = Constrained(spec.build("decoders", decoder), text, schema)
    for _ in denoise(model, canvas, rule, **options):
        pass
    return canvas, [row[len(start) :].tolist() for row, start in zip(canvas.rows(), given, strict=True)]


@pytest.mark.parametrize("look", LOOKS)
def test_every_text_is_valid_or_begins_a_valid_one(text, look):
    kind, block, cache, size = LOOKS[look]
    finished = cases = 0
    for number in range(list(LOOKS).index(look) % 2, len(SCHEMAS), 2):
        schema, model = list(SCHEMAS.values())[number], network(text, kind, block, seed=number)
        hot = f"threshold(tau={(0.0, 0.3)[number // 2 % 2]}, temperature={(0, 1.0, 3.0)[number % 3]})"
        given = beginnings(text, 5, seed=number)
        _, rows = written(text, model, schema, given, 36, hot, cache=cache, block=size, seed=number)
        for ids in rows:
            finished += judged(text, schema, ids)
            cases += 1
    assert cases >= 35
    assert 10 < finished < cases


FITTING = [name for name in spec.names("decoders") if fits(spec.build("decoders", name))]


@pytest.mark.parametrize(
    "decoder", [*FITTING, "threshold(sub=3)", "threshold(extrapolate=True)", "origin(kind='margin')"]
)
def test_with_every_decoder_that_fits(text, decoder):
    model = network(text, "block", 4, seed=3)
    _, rows = written(text, model, PERSON, beginnings(text, 2), 24, decoder, cache="causal", block=8, steps=4)
    for ids in rows:
        judged(text, PERSON, ids)
    assert {"confidence", "threshold", "entropy_bound", "klass", "random", "margin", "hierarchy"} <= set(FITTING)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_batch_of_unequal_rows_writes_what_each_row_writes_alone(text, look, temperature):
    kind, block, cache, size = LOOKS[look]
    model, given = network(text, kind, block, seed=5), beginnings(text, 3, seed=8)
    assert len({len(row) for row in given}) == 3
    how = {"decoder": f"threshold(tau=0.2, temperature={temperature})", "cache": cache, "block": size}
    _, batch = written(text, model, SCHEMAS["nested"], given, 30, seed=4, **how)
    assert len({tuple(ids) for ids in batch}) > 1
    for row, start in enumerate(given):
        assert written(text, model, SCHEMAS["nested"], [start], 30, seed=4 + row, **how)[1] == [batch[row]]


def test_together_writes_what_each_canvas_writes_alone(text):
    model, given = network(text, "leader", 8, seed=6), beginnings(text, 3, seed=9)

    def job(row: int):
        canvas = Canvas.answering([given[row]], 24, model.mask_id, torch.tensor([row]))
        rule = Constrained(
            spec.build("decoders", "threshold(tau=0.1)"), text, SCHEMAS[("nested", "object", "date")[row]]
        )
        return canvas, prepare(model, canvas, rule, cache="causal", block=8)

    jobs = [job(row) for row in range(3)]
    for _ in together(model, jobs):
        pass
    for row, (canvas, _) in enumerate(jobs):
        alone = job(row)
        for _ in together(model, [alone]):
            pass
        assert (alone[0].tokens == canvas.tokens).all()


def test_a_seed_repeats_its_text_and_another_does_not(text):
    model, given = network(text), beginnings(text, 1)
    hot = "threshold(temperature=2.0)"
    one, again, other = (written(text, model, NAME, given, 12, hot, seed=s)[1] for s in (1, 1, 2))
    assert one == again != other


def test_a_bold_decoder_needs_fewer_passes_than_tokens(text):
    tokens, passes = 0, {0.0: 0, 1.1: 0}
    for seed in range(3):
        for tau in passes:
            model = network(text, "leader", 8, seed)
            canvas, rows = written(
                text, model, SCHEMAS["either"], beginnings(text, 1), 32, f"threshold({tau=})", cache="causal", block=8
            )
            passes[tau] += canvas.forwards
            tokens += sum(token != text.eos_id for token in rows[0]) if tau else 0
    assert passes[0.0] < passes[1.1] <= tokens + 3
    letters = torch.zeros(text.vocab + 3).index_fill(0, torch.tensor(text.encode("ab")), 9.0)
    canvas, _ = written(text, Stubborn(network(text), letters), {"type": "string"}, beginnings(text, 1), 32)
    assert canvas.forwards <= 2


def test_what_has_no_alternative_costs_no_pass(text):
    canvas, rows = written(text, network(text), SCHEMAS["const"], beginnings(text, 3), 40)
    assert canvas.forwards == 0
    assert all(judged(text, SCHEMAS["const"], ids) for ids in rows)
    canvas, rows = written(
        text, network(text, "leader", 8), SCHEMAS["const"], beginnings(text, 1), 40, block=8, cache="causal"
    )
    assert canvas.forwards <= 1
    assert judged(text, SCHEMAS["const"], rows[0])


@pytest.mark.parametrize("steps", [1, 3])
def test_out_of_steps_it_settles_for_what_may_come_next(text, steps):
    for kind, block, size in (("full", None, None), ("leader", 8, 8)):
        model, given = network(text, kind, block, seed=1), beginnings(text, 2)
        canvas, rows = written(text, model, SCHEMAS["nested"], given, 32, "confidence", steps=steps, block=size)
        assert canvas.forwards <= (steps + 1) * (32 // (size or 32))
        for ids in rows:
            judged(text, SCHEMAS["nested"], ids)


class Stubborn(torch.nn.Module):
    """Says the same of every position, however wrong."""

    def __init__(self, model, said: Tensor):
        super().__init__()
        self.mask_id, self.attention, self.eos_id, self.said = model.mask_id, model.attention, model.eos_id, said
        self.bos_id, self.context_length, self.shifted = 0, None, False

    def forward(self, tokens, context):
        return self.said.expand(len(context.read), -1).clone()


def test_no_logits_can_break_it(text):
    model = network(text)
    size = text.vocab + 3
    wants = [text.eos_id, text.mask_id, text.vocab + 1, text.tokenizer.token_to_id("<tool_call>"), text.encode("{")[0]]
    said = [torch.full((size,), -torch.inf).index_fill(0, torch.tensor([token]), 5.0) for token in wants]
    said += [torch.full((size,), torch.nan), torch.full((size,), -torch.inf), torch.zeros(size)]
    for logits in said:
        for decoder in ("threshold(tau=0)", "confidence(temperature=1.0)", "entropy_bound"):
            stub = Stubborn(model, logits)
            _, rows = written(text, stub, PERSON, beginnings(text, 1), 30, decoder, steps=9, block=15)
            judged(text, PERSON, rows[0])


def test_what_a_run_reports_goes_by_the_model_alone(text):
    model, seen = network(text), []
    model.register_forward_hook(lambda network, given, logits: seen.append(logits.clone()))
    canvas = Canvas.answering(beginnings(text, 2), 8, model.mask_id)
    for _ in denoise(model, canvas, Constrained(spec.build("decoders", "threshold"), text, PERSON)):
        told = canvas.latest.logits.clone()
        told[:, text.mask_id] = seen[-1][:, text.mask_id]
        assert torch.equal(told, seen[-1])


def test_a_blank_within_a_text(text):
    model, mask = network(text), text.mask_id
    row = torch.tensor([0, *text.encode("name: "), *[mask] * 30, *text.encode("\n")])
    canvas = Canvas.filling([row, row[3:]], mask, torch.arange(2))
    for _ in denoise(model, canvas, Constrained(spec.build("decoders", "confidence"), text, PERSON)):
        pass
    for ids, given in zip(canvas.rows(), (row, row[3:]), strict=True):
        assert (ids[given != mask] == given[given != mask]).all()
        judged(text, PERSON, ids[given == mask].tolist())
    two = torch.tensor([0, mask, 5, mask])
    with pytest.raises(ValueError, match="one blank, and here a row has several"):
        list(
            denoise(model, Canvas.filling([two], mask), Constrained(spec.build("decoders", "confidence"), text, PERSON))
        )


def test_tokens_have_the_bytes_that_the_tokenizer_writes(text):
    spelling = vocabulary(text)
    assert spelling.vocab_size == text.vocab
    for token in range(text.vocab):
        if not spelling.is_special_token(token):
            assert spelling.decode_bytes([token]).decode(errors="replace") == text.decode([token])
    document = Document(compiled({"type": "string"}), spelling, text.eos_id)
    assert all(document.take(token) for token in text.encode('"'))
    able = document.allowed(text.vocab + 3, text.mask_id)
    assert not able[[text.eos_id, text.mask_id]].any()
    assert not able[text.vocab :].any()
    assert able.sum() > 100
    whole = json.dumps("é日x", ensure_ascii=False)
    again = Document(compiled({"type": "string"}), spelling, text.eos_id)
    assert [again.take(token) for token in text.encode(whole)] == [True] * len(text.encode(whole))
    assert again.ended


def deep(levels: int) -> dict:
    found: dict = {}
    for _ in range(levels):
        found = {"items": found}
    return found


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "a JSON schema is an object, not a list"),
        ({"type": "person"}, "Invalid type: person"),
        ({"not": {}}, 'cannot be followed.*"not"'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"x-guidance": {"lenient": True}, "not": {}}, '"not"'),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable"),
        ({"$ref": "https://example.org/schema"}, "does not fetch"),
        ({"const": float("nan")}, "cannot be read"),
        ({"const": {1, 2}}, "cannot be read"),
        (deep(500), "cannot be read"),
        (deep(100_000), "cannot be read"),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}},
                                                "required": ["n"], "additionalProperties": False}}}, "Too many items"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_followed_is_one_sentence(text, schema, words, capfd):
    with pytest.raises(ValueError, match=words) as found:
        check(schema, text)
    assert "\n" not in str(found.value)
    assert capfd.readouterr() == ("", "")


def test_a_schema_with_an_unfit_decoder_or_tokenizer_is_one_sentence(text):
    for name in set(spec.names("decoders")) - set(FITTING):
        with pytest.raises(ValueError, match=f"the {name.replace('_', '')} decoder .* works with: .*threshold"):
            Constrained(spec.build("decoders", name), text, PERSON)
    bare = Text(text.plain)
    with pytest.raises(ValueError, match="a token that ends a text"):
        check(PERSON, bare)
    for schema in SCHEMAS.values():
        check(schema, text)


def test_the_embedded_model_writes_json():
    model, text = hub.load("stdlib-dlm")
    start = torch.tensor([text.start_id, *text.encode("import json\n\nUSER = json.loads('")])
    canvas, rows = written(text, model, PERSON, [start], 45, "threshold", cache="causal", block=9)
    assert judged(text, PERSON, rows[0])
    assert canvas.forwards < 45


def test_rows_that_nobody_waits_for_any_more_leave_the_others_alone(text):
    model, given = network(text, "leader", 8, seed=4), beginnings(text, 3, seed=8)
    how = {"cache": "causal", "block": 8}
    canvas = Canvas.answering(given, 32, model.mask_id, torch.arange(3))
    rule = Constrained(spec.build("decoders", "threshold(tau=0.2)"), text, SCHEMAS["nested"])
    for step, _ in enumerate(denoise(model, canvas, rule, **how)):
        if step == 3:
            canvas.close(torch.tensor([1]))
    for row in (0, 2):
        alone = written(text, model, SCHEMAS["nested"], [given[row]], 32, "threshold(tau=0.2)", seed=row, **how)[1]
        assert canvas.rows()[row].tolist()[len(given[row]) :] == alone[0]


def test_the_engine_writes_json_among_other_requests(text):
    model, given = network(text, "leader", 8, seed=6), beginnings(text, 4, seed=2)
    engine = Engine(model, name="tiny", start_id=text.start_id, memory=1 << 30, text=text)
    for number, start in enumerate(given):
        rows = [Row(start.tolist() + [model.mask_id] * 30, seed) for seed in range(2)]
        shape = [PERSON, None, SCHEMAS["nested"], SCHEMAS["const"]][number]
        engine.submit(Submit(str(number), rows, "threshold(tau=0.2)", block=8, schema=shape))
    engine.submit(Submit("wrong", rows, "wino", schema=PERSON))
    written, reasons = {}, {}
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Step):
                written.setdefault((event.id, event.row), {}).update({write.at: write.token for write in event.writes})
            elif isinstance(event, Done):
                reasons[event.id, event.row] = event.reason, event.message
            elif isinstance(event, Refusal):
                reasons[event.id, 0] = "refused", event.message
    assert reasons.pop(("wrong", 0))[0] == "refused"
    assert len(reasons) == 8
    for (id_, row), (reason, message) in reasons.items():
        assert reason in ("end", "length"), message
        shape = [PERSON, None, SCHEMAS["nested"], SCHEMAS["const"]][int(id_)]
        ids = [token for _, token in sorted(written[id_, row].items())]
        if shape is not None:
            assert judged(text, shape, ids) == (reason == "end")


def test_an_autoregressive_parent_writes_json():
    loaded, text = hub.load("stdlib-ar")
    start = torch.tensor([text.start_id, *text.encode("USER = json.loads('")])
    model = writer(loaded)
    canvas, rows = written(text, model, PERSON, [start], 40, "confidence", cache="causal")
    assert judged(text, PERSON, rows[0])
    assert canvas.forwards < 40
