"""Text while it is written: whole characters, stop strings that never leak, log-probabilities, parts of blanks."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from models import TINY
from tokenizers import Tokenizer, decoders, models

from unveil import hub
from unveil.choices import Choices, with_options
from unveil.cli.write import fill, generate
from unveil.codecs.spelling import Spelling
from unveil.codecs.text import Text
from unveil.codecs.train import train_tokenizer
from unveil.nn.transformer import Transformer
from unveil.serve.answer import Answer, Place, Until
from unveil.serve.messages import Done, Step, Write

CORPUS = ["hello world 😀 日本語 naïve café\n    return x", "def f(x):\n    return x + 1"] * 3
MASK = "<|mask|>"


def byte_level() -> Text:
    text = train_tokenizer(CORPUS, 300)
    text.add_mask()
    return text


def sentence_piece() -> Text:
    """As Llama 2 spells: bytes for what has no piece, and the first space left out."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["▁", "▁Hello", "▁world", "a", "b", "é", "▁a", "▁▁"]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Text(tokenizer, special={"bos": "<s>", "eos": "</s>"})


def word_piece() -> Text:
    names = ["[UNK]", "[CLS]", "hello", "##ing", "world", ".", "'", "s", "n", "a", ",", "##s"]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return Text(tokenizer, special={"bos": "[CLS]"})


SPELLINGS = {each.__name__: Spelling(each()) for each in (byte_level, sentence_piece, word_piece)}


@pytest.mark.parametrize("name", SPELLINGS)
def test_pieces_join_to_what_decoding_at_once_gives(name):
    spelling, chance = SPELLINGS[name], random.Random(0)
    text = spelling.text
    everything = list(range(text.vocab))
    parts = [*text.encode("😀日é👨\u200d👩"), *everything[:5]]  # of characters, again and again
    for trial in range(400):
        pool = parts if trial % 3 == 0 and name == "byte_level" else everything
        context, ids = (chance.choices(pool, k=chance.randrange(most)) for most in (30, 60))
        while context and context[-1] in spelling.loose:  # what single bytes are depends on those that follow
            context.pop()
        before, after = spelling.after(), spelling.after(context)
        told = "".join(map(before.add, context))
        pieces = [after.add(each) for each in ids]
        assert told + "".join(pieces) + after.close() == text.decode([*context, *ids])


@pytest.mark.parametrize(
    ("name", "spoken"), [("byte_level", "a 😀 naïve 日本語 👨\u200d👩 \n z"), ("sentence_piece", "a😀é")]
)
def test_no_piece_is_half_a_character(name, spoken):
    speller = SPELLINGS[name].after()
    pieces = [speller.add(token) for token in SPELLINGS[name].text.encode(spoken)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + speller.close() == spoken


def test_what_follows_a_text_keeps_its_space():
    spelling = SPELLINGS["sentence_piece"]
    hello, world = (spelling.text.tokenizer.token_to_id(name) for name in ("▁Hello", "▁world"))
    assert spelling.text.decode([world]) == "world"
    assert spelling.after([hello]).add(world) == " world"
    assert spelling.after().add(world) == "world"
    assert spelling.alone(world) == " world"
    assert spelling.raw(world) == list(b" world")


def test_a_stretch_follows_what_stands_before_it():
    spelling = SPELLINGS["sentence_piece"]
    euro, (hello, world) = spelling.text.encode("€"), map(spelling.text.tokenizer.token_to_id, ("▁Hello", "▁world"))
    row = [hello, world, *euro, world, *euro, *euro]
    spoken = [(0, 1, "Hello"), (1, 2, " world"), (2, 5, "€"), (5, 6, " world"), (6, 12, "€€"), (9, 12, "€"), (2, 2, "")]
    assert [spelling.between(row, start, stop) for start, stop, _ in spoken] == [text for *_, text in spoken]


def test_unveil_generate_keeps_the_space_that_an_answer_begins_with(tmp_path, capsys):
    """Llama's tokenizers leave out the first space of a text, and what is written is not the beginning of one."""
    text = sentence_piece()
    mask, world = text.add_mask(), text.tokenizer.token_to_id("▁world")
    model = Transformer(replace(TINY, vocab=text.vocab, mask_id=mask, qk_norm=None)).eval()
    with torch.no_grad():
        for p in model.blocks.parameters():
            p.zero_()
        model.embed.weight.fill_(1)
        model.head.weight.zero_()
        model.head.weight[world] = 1
    place = hub.save(model, tmp_path / "worldly", text)
    assert text.decode([world]) == "world"
    generate(["Hello"], model=str(place), length=2, decoder="confidence", json=True)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["samples"][0]
    assert said["completion"] == " world world"
    assert said["text"] == "Hello world world"
    fill(["Hello[[1]]"], model=str(place), json=True)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["filled"][0]
    assert (said["text"], said["blanks"]) == ("Hello world", [" world"])


def test_single_bytes_wait_for_the_whole_run():
    spelling = SPELLINGS["sentence_piece"]
    of = spelling.text.tokenizer.token_to_id
    speller = spelling.after()
    euro = [of("<0xE2>"), of("<0x82>"), of("<0xAC>")]
    assert [speller.add(token) for token in [of("a"), *euro, of("b")]] == ["a", "", "", "", "€b"]
    assert [spelling.raw(token) for token in euro] == [[0xE2], [0x82], [0xAC]]
    assert spelling.alone(euro[0]) == "\ufffd"


def test_bytes_of_tokens():
    spelling = SPELLINGS["byte_level"]
    for spoken in ("hello", " 😀", "naïve"):
        raw = [spelling.raw(token) for token in spelling.text.encode(spoken)]
        assert bytes(byte for each in raw for byte in each).decode() == spoken
    assert spelling.raw(spelling.text.mask_id) == list(MASK.encode())
    assert spelling.alone(spelling.text.mask_id) == MASK
    assert spelling.raw(10**6) is None


def test_a_mask_in_a_text_is_text():
    text = byte_level()
    ids = text.encode(f"say {MASK} and <|endoftext|>")
    assert text.mask_id not in ids
    assert text.eos_id not in ids
    assert text.decode(ids) == f"say {MASK} and <|endoftext|>"
    text.template = "{% for m in messages %}<|endoftext|>{{ m.content }}{% endfor %}"
    ids = text.chat([{"role": "user", "content": f"{MASK}<|endoftext|>"}])
    assert text.mask_id not in ids
    assert ids.count(text.eos_id) == 1


# Stop strings


def cut(text: str, stops: list[str]) -> str:
    """Up to the stop string that is whole first, read one character after the other."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return text


def test_stop_strings_whatever_the_pieces():
    chance = random.Random(0)
    for _ in range(5000):
        text = "".join(chance.choices("abc", k=chance.randrange(30)))
        stops = ["".join(chance.choices("abc", k=chance.randrange(1, 5))) for _ in range(chance.randrange(5))]
        places = sorted({0, len(text), *(chance.randrange(len(text) + 1) for _ in range(chance.randrange(10)))})
        until, shown, whole = Until(stops), "", cut(text, stops)
        for start, end in pairwise(places):
            piece, found = until.add(text[start:end])
            shown += piece
            assert whole.startswith(shown), "a stop string leaked"
            if found:
                break
        else:
            shown += until.close()
        assert shown == whole


# Answers


def answer(text: Text, spoken: list[int], *, prompt: str = "def", stops=(), ends=True, blanks=0) -> Answer:
    given = text.encode(prompt)
    tokens = [*given, *[text.mask_id] * (blanks or len(spoken))]
    end = text.eos_id if ends else None
    return Answer(SPELLINGS["byte_level"], Place(tokens, len(given), len(given), len(tokens), 0, end), stops)


def steps(found: Answer, spoken: list[int], order: list[int]) -> list[Step]:
    """One token a step, in any order."""
    start, written, out = found.place.start, set(), []
    for number, index in enumerate(order, 1):
        written.add(index)
        final = next((i for i in range(len(spoken)) if i not in written), len(spoken))
        writes = [Write(start + index, spoken[index], -0.5 * (index + 1), [(1, -0.1)])]
        out.append(Step("r", 0, number, 1, number, writes, [], start + final))
    return out


def test_an_answer_in_any_order():
    text, chance = SPELLINGS["byte_level"].text, random.Random(0)
    pool = [*range(1, text.vocab - 1), *text.encode("😀 return") * 20]
    for _ in range(300):
        spoken = chance.choices(pool, k=chance.randrange(1, 20))
        order = chance.sample(range(len(spoken)), len(spoken))
        found = answer(text, spoken)
        deltas = [found.take(step) for step in steps(found, spoken, order)]
        deltas.append(found.close(Done("r", 0, "length", 99, 1.0, 0.0)))
        assert "".join(delta.text for delta in deltas) == found.text == text.decode(spoken)
        assert [delta.finish for delta in deltas if delta.finish] == ["length"]
        told = [token for delta in deltas for token in delta.tokens]
        assert [token.token for token in told] == spoken
        assert "".join(token.text for token in told) == found.text
        assert [token.begin for token in told] == [len("".join(t.text for t in told[:i])) for i in range(len(told))]
        assert [token.write.logp for token in told] == [-0.5 * (i + 1) for i in range(len(spoken))]
        assert (found.count, found.forwards) == (len(spoken), 99)


def test_a_token_that_is_taken_back_is_not_told():
    text = SPELLINGS["byte_level"].text
    first, second = text.encode("a")[0], text.encode("b")[0]
    found = answer(text, [first, second])
    start = found.place.start
    assert found.take(Step("r", 0, 1, 1, 1, [Write(start, first, -1.0)], [], start)).text == ""
    assert found.take(Step("r", 0, 2, 1, 2, [Write(start + 1, second, -1.0)], [start], start)).text == ""
    assert found.take(Step("r", 0, 3, 1, 3, [Write(start, second, -2.0)], [], start + 2)).text == "bb"
    assert [token.write.logp for token in found.tokens] == [-2.0, -1.0]


def test_the_end_of_a_text():
    text = SPELLINGS["byte_level"].text
    spoken = [*text.encode("ab"), text.eos_id, *text.encode("cd")]
    found = answer(text, spoken)
    for step in steps(found, spoken, list(range(len(spoken)))):
        found.take(step)
    assert (found.text, found.finish, found.count) == ("ab", "stop", 2)
    assert found.close(Done("r", 0, "end", 5, 1.0, 0.0)).text == ""
    full = answer(text, spoken, ends=False)
    for step in steps(full, spoken, list(range(len(spoken)))):
        full.take(step)
    assert full.close(Done("r", 0, "length", 5, 1.0, 0.0)).finish == "length"
    assert full.text == "abcd"


def test_a_stop_string_ends_an_answer():
    text = SPELLINGS["byte_level"].text
    spoken = text.encode("x = 1\n\nreturn x")
    found = answer(text, spoken, stops=["\n\nr", "never"])
    deltas = [found.take(step) for step in steps(found, spoken, list(range(len(spoken))))]
    assert found.text == "".join(delta.text for delta in deltas) == "x = 1"
    assert found.finish == "stop"
    told = [token for delta in deltas for token in delta.tokens]
    assert told == found.tokens
    assert all(token.begin < len("x = 1") for token in told)
    assert all("\n\nr" not in delta.text for delta in deltas)


def test_what_waits_for_a_stop_string_comes_in_the_end():
    text = SPELLINGS["byte_level"].text
    spoken = text.encode("return x")
    found = answer(text, spoken, stops=["x!"])
    shown = "".join(found.take(step).text for step in steps(found, spoken, list(range(len(spoken)))))
    assert shown == "return "
    assert found.close(Done("r", 0, "length", 1, 1.0, 0.0)).text == "x"


def test_parts_of_blanks():
    text = SPELLINGS["byte_level"].text
    mask, half = text.mask_id, text.encode("😀")[0]
    ids = text.encode("def ") + [mask] * 2 + text.encode("(x)") + [mask]
    at, last = ids.index(mask), len(ids) - 1
    place = Place(ids, len(ids) - 3, 0, len(ids), 0, blanks=((at, at + 2), (last, last + 1)))
    found = Answer(SPELLINGS["byte_level"], place)
    tokens = {at: text.encode("f")[0], at + 1: half, last: text.encode("x")[0]}
    writes = [Write(place, token, -1.0) for place, token in tokens.items()]
    delta = found.take(Step("r", 0, 1, 1, 1, writes, [], len(ids)))
    rest = found.close(Done("r", 0, "length", 1, 1.0, 0.0))
    row = [tokens.get(place, token) for place, token in enumerate(ids)]
    assert delta.text + rest.text == found.text == text.decode(row)
    assert found.parts == ["f\ufffd", "x"]
    assert found.count == 3


# Specs of strangers


@pytest.fixture(scope="module")
def decoding():
    return Choices("decoders")


def test_choices_agree_with_the_classes():
    from unveil import spec

    for kind in ("decoders", "caches", "guides"):
        known = Choices(kind)
        assert list(known.about) == spec.names(kind)
        for name in known.about:
            assert set(known.options[name]) == set(spec.options(spec.find(kind, name)))
            assert known.safe(name) == name


@pytest.mark.parametrize(
    "given",
    [
        "confidence",
        "threshold(tau=0.5, temperature=1)",
        "prophet(inner='threshold(tau=0.3)', anchor=(1, 2))",
        "saber(level=None)",
        "tspd(noise=(1.0, 2, 3))",
    ],
)
def test_specs_that_are_fine(decoding, given):
    from unveil import spec

    assert decoding.safe(given) == given
    spec.build("decoders", decoding.safe(given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nope", "no decoder called 'nope'; there are: ahd, confidence"),
        ("threshold(x=1)", "threshold has no option 'x'; its options are: temperature=0.0"),
        ("threshold(tau='high')", r"threshold\(tau='high'\) does not fit; expected float"),
        ("threshold(tau=1e999)", "does not fit; expected float, at most"),
        ("threshold(tau={[]: 1})", "does not fit"),
        ("threshold(sub=True)", "expected int"),
        ("ahd(history=100000)", "at most 1024"),
        ("focore(table='/etc/passwd')", "names a file"),
        ("prophet(inner=\"tspd(sensor='a')\")", "names a file"),
        ("(((", "expected name"),
        ("os.system('true')", "expected name"),
        ("threshold(**{})", "expected name"),
        ("threshold(0.5)", "expected name"),
        ("-" * 400, "expected name"),
        ("a" * 401, "401 characters"),
        ("threshold(tau=" + "(" * 300 + ")" * 300 + ")", "characters"),
        ("\x00", "expected name"),
    ],
)
def test_specs_that_are_not(decoding, given, said):
    with pytest.raises(ValueError, match=said):
        decoding.safe(given)


def test_options_over_a_spec(decoding):
    assert with_options("threshold", temperature=None, top_p=None) == "threshold"
    assert with_options("threshold", temperature=0.5, top_p=None) == "threshold(temperature=0.5)"
    assert with_options("threshold(temperature=2, tau=0.3)", temperature=0.5) == "threshold(tau=0.3, temperature=0.5)"
    assert decoding.shown("tspd(sensor='/home/a/b.safetensors', tau=0.5)") == "tspd(sensor='...', tau=0.5)"
