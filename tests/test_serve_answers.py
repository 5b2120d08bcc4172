"""What the HTTP interface tells of a scripted engine: completions, chats, infilling, log-probabilities, streams."""

from __future__ import annotations

import json

import pytest
from toy_http import MASK, Toy, refused

from unveil.serve.limits import Limits
from unveil.serve.messages import Admitted, Done, Step, Write


@pytest.fixture(scope="module")
def toy():
    return Toy()


def test_a_completion(toy):
    found = toy.post(max_tokens=4, seed=7).json()
    assert list(found) == ["id", "object", "created", "model", "choices", "usage"]
    assert found["object"] == "text_completion"
    assert found["choices"] == [
        {"index": 0, "text": " return x + 1", "logprobs": None, "finish_reason": "length", "seed": 7}
    ]
    prompt = 1 + len(toy.text.encode("def"))
    assert found["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 4,
        "total_tokens": prompt + 4,
        "forwards": 4,
        "tokens_per_forward": 1.0,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    order = toy.link.orders[-1]
    assert order.rows[0].tokens == [toy.text.start_id, *toy.text.encode("def"), *[toy.text.mask_id] * 4]
    assert (order.decoder, order.cache, order.full, order.ends, order.top) == ("confidence", None, False, True, None)


def test_prompts_of_every_kind(toy):
    ids = toy.text.encode("def")
    for prompt, rows in {"def": 1, ("def", "x"): 2, tuple(ids): 1, (tuple(ids), (5,)): 2}.items():
        given = json.loads(json.dumps(prompt))
        found = toy.post(prompt=given, n=2, seed=10, max_tokens=2).json()
        assert [choice["index"] for choice in found["choices"]] == list(range(2 * rows))
        assert [row.seed for row in toy.link.orders[-1].rows] == list(range(10, 10 + 2 * rows))
    assert toy.link.orders[-1].rows[0].tokens[: len(ids)] == ids  # nothing is put before tokens
    refused(toy.post(prompt=["x"] * 65), 400, "n")
    refused(toy.post(prompt=["x"] * 33, n=2), 400, "n")


def test_special_tokens_in_a_prompt_are_text(toy):
    spoken = f"a {MASK} b <|endoftext|>"
    found = toy.post(prompt=spoken, echo=True, max_tokens=2).json()
    assert found["choices"][0]["text"].startswith(spoken)
    assert toy.link.orders[-1].rows[0].tokens.count(toy.text.mask_id) == 2
    toy.post(prompt="a", suffix=MASK, max_tokens=2)
    assert toy.link.orders[-1].rows[0].tokens.count(toy.text.mask_id) == 2
    toy.chat(MASK, max_tokens=2)
    assert toy.link.orders[-1].rows[0].tokens.count(toy.text.mask_id) == 2


def test_options_reach_the_engine(toy):
    toy.post(temperature=0.5, top_p=0.9, decoder="threshold(tau=0.3)", cache="recompute", block=4, steps=2, full=True)
    order = toy.link.orders[-1]
    assert order.decoder == "threshold(tau=0.3, temperature=0.5, top_p=0.9)"
    assert (order.cache, order.block, order.steps, order.guide, order.full) == ("recompute", 4, 2, None, True)
    toy.post(guide="eos(policy='stop')")
    assert toy.link.orders[-1].guide == "eos(policy='stop')"


def test_defaults_of_the_server():
    sensor = "tspd(sensor='/home/me/sensor.safetensors')"
    toy = Toy(Limits(decoder=sensor, cache="causal", block=2, steps=3))
    toy.post()
    order = toy.link.orders[-1]
    assert (order.decoder, order.cache, order.block, order.steps) == (sensor, "causal", 2, 3)
    shown = toy.http.get("/v1/models").json()["data"][0]["unveil"]["defaults"]
    assert shown == {"decoder": "tspd(sensor='...')", "cache": "causal", "block": 2, "steps": 3}
    toy.post(decoder=shown["decoder"], temperature=1)  # as it is shown, it may be asked for
    assert toy.link.orders[-1].decoder == "tspd(sensor='/home/me/sensor.safetensors', temperature=1.0)"
    toy.post(suffix="x")
    order = toy.link.orders[-1]
    assert (order.cache, order.block, order.full) == (None, None, True)


def test_suffix(toy):
    found = toy.post(suffix=" + 1", max_tokens=3, echo=True).json()
    assert found["choices"][0]["text"] == "def return x +"
    order = toy.link.orders[-1]
    mask = toy.text.mask_id
    assert order.rows[0].tokens == [0, *toy.text.encode("def"), mask, mask, mask, *toy.text.encode(" + 1")]
    assert (order.full, order.ends) == (True, False)
    assert found["usage"]["prompt_tokens"] == len(order.rows[0].tokens) - 3
    assert "both ways" in refused(toy.post(suffix="x", full=False), 400, "full")
    blocks = Toy(attention="block")
    assert "cannot see what follows" in refused(blocks.post(suffix="x"), 400, "suffix")
    assert "cannot see what follows" in refused(blocks.post(prompt="[[2]]", blanks=True), 400)
    refused(blocks.post(full=True), 400, "full")
    whole = Toy(attention="full")
    whole.post(suffix="x", full=False)
    assert not whole.link.orders[-1].full


def test_blanks(toy):
    found = toy.post(prompt="def[[2]](x):[[]]\n", blanks=True, max_tokens=2).json()
    choice = found["choices"][0]
    assert choice["text"] == "def return x(x): + 1\n"
    assert choice["blanks"] == [" return x", " + 1"]
    assert found["usage"]["completion_tokens"] == 4
    order = toy.link.orders[-1]
    assert (order.full, order.ends, order.rows[0].tokens.count(toy.text.mask_id)) == (True, False, 4)
    for text, said in {
        "none": "no blank",
        "[[2-5]]": "a fixed number",
        "[[0]]": "at least 1",
        "[[-3]]": "no lower bound",
        "[[5000]]": "the most here is 4096",
        "[[250]] and more text": "more than the model's context",
        "[[" + "9" * 5000 + "]]": "",
        "[[" + " " * 3000: "no blank",
    }.items():
        assert said in refused(toy.post(prompt=text, blanks=True), 400)
    for name, value in {"suffix": "x", "stop": "x", "logprobs": 1, "echo": True}.items():
        assert "does not go with blanks" in refused(toy.post(prompt="[[2]]", blanks=True, **{name: value}), 400, name)
    refused(toy.post(prompt=[5], blanks=True), 400, "prompt")


def test_logprobs(toy):
    found = toy.post(max_tokens=3, logprobs=2, echo=True).json()["choices"][0]
    scores = found["logprobs"]
    assert "".join(scores["tokens"]) == found["text"] == "def return x +"
    assert scores["tokens"][-3:] == [" return", " x", " +"]
    assert scores["token_logprobs"][-3:] == [-0.25] * 3
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][-1] == {" +": -0.25, toy.text.decode([9]): -1.5}
    assert scores["text_offset"][-3:] == [3, 10, 12]
    assert toy.link.orders[-1].top == 2
    none = toy.post(max_tokens=1, logprobs=0).json()["choices"][0]["logprobs"]
    assert none["top_logprobs"] == [{" return": -0.25}]
    reply = toy.chat(max_tokens=2, logprobs=True, top_logprobs=1).json()["choices"][0]
    first = reply["logprobs"]["content"][0]
    assert first == {
        "token": " return",
        "logprob": -0.25,
        "bytes": list(b" return"),
        "top_logprobs": [{"token": " return", "logprob": -0.25, "bytes": list(b" return")}],
    }
    assert "needs logprobs" in refused(toy.chat(top_logprobs=1), 400, "top_logprobs")


def test_a_stop_string(toy):
    found = toy.post(max_tokens=10, stop="+ 1").json()
    assert found["choices"][0]["text"] == " return x "
    assert found["choices"][0]["finish_reason"] == "stop"
    assert toy.link.cancelled[-1] == (found["id"], 0)
    assert toy.link.open == 0
    pieces = toy.events(max_tokens=10, stop=["never", "+ 1"])
    assert "".join(each["choices"][0]["text"] for each in pieces) == " return x "
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("+" not in each["choices"][0]["text"] for each in pieces)


def test_the_end_of_a_text(toy):
    spoken = [*toy.text.encode(" return"), toy.text.eos_id, 5, 5]
    link = Toy()
    link.link.spoken = spoken
    found = link.post(max_tokens=5).json()
    assert found["choices"][0]["text"] == " return"
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == len(spoken) - 3


def test_a_chat(toy):
    found = toy.chat("good day", max_tokens=3).json()
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["message"] == {"role": "assistant", "content": " return x +"}
    expected = toy.text.chat([{"role": "user", "content": "good day"}])
    assert toy.link.orders[-1].rows[0].tokens[:-3] == expected
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": " brief"}]},
        {"role": "user", "content": "x", "name": "me"},
        {"role": "assistant", "content": "y", "refusal": None},
        {"role": "user", "content": "z"},
    ]
    toy.post("chat/completions", {"messages": messages, "max_completion_tokens": 2})
    said = toy.text.decode(toy.link.orders[-1].rows[0].tokens[:-2], keep_special=True)
    assert "system: be brief\n" in said
    for wrong in ([], [{"role": "nobody", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 5}]):
        refused(toy.post("chat/completions", {"messages": wrong}), 400, "messages")
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    refused(toy.post("chat/completions", {"messages": picture}), 400, "messages")
    assert "different things" in refused(toy.chat(max_tokens=2, max_completion_tokens=3), 400, "max_tokens")
    mute = Toy(template=None)
    assert "/v1/completions" in refused(mute.chat(), 400, "messages")
    picky = Toy(template="{{ raise_exception('no system message, please') }}")
    assert "no system message, please" in refused(picky.chat(), 400, "messages")


def test_json_answers(toy):
    shape = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": shape, "strict": True}}
    assert toy.chat(response_format=form).status_code == 200
    assert toy.link.orders[-1].schema == shape
    assert toy.post(response_format={"type": "json_object"}).status_code == 200
    assert toy.link.orders[-1].schema == {"type": "object"}
    for more in ({"suffix": "x"}, {"prompt": "[[2]]", "blanks": True}, {"full": True}):
        assert "from left to right" in refused(toy.post(response_format=form, **more), 400, "response_format")
    for bad in ({"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}):
        form["json_schema"]["schema"] = bad
        refused(toy.chat(response_format=form), 400, "response_format")
    body = json.dumps({"prompt": "x", "response_format": form}).replace('"pattern": "("', '"maximum": 1e999')
    refused(toy.raw(body.encode()), 400, "response_format")


# Streams


def test_a_stream_in_order(toy):
    pieces = toy.events(max_tokens=6, n=2, stream_options={"include_usage": True})
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"]["completion_tokens"] == 12
    assert all(each["usage"] is None for each in pieces[:-1])
    assert {each["object"] for each in pieces} == {"text_completion"}
    for index in (0, 1):
        mine = [each["choices"][0] for each in pieces[:-1] if each["choices"][0]["index"] == index]
        assert "".join(each["text"] for each in mine) == toy.post(max_tokens=6).json()["choices"][0]["text"]
        assert [each["finish_reason"] for each in mine][-1] == "length"
    echoed = toy.events(max_tokens=2, echo=True, logprobs=0)
    assert "".join(each["choices"][0]["text"] for each in echoed) == "def return x"
    tokens = [token for each in echoed for token in each["choices"][0]["logprobs"]["tokens"]]
    assert "".join(tokens) == "def return x"


def test_a_chat_stream(toy):
    pieces = toy.events("chat/completions", max_tokens=8, logprobs=True)
    assert pieces[0]["object"] == "chat.completion.chunk"
    assert [each["choices"][0]["delta"].get("role") for each in pieces][:2] == ["assistant", None]
    said = "".join(each["choices"][0]["delta"]["content"] for each in pieces)
    assert said == toy.chat(max_tokens=8).json()["choices"][0]["message"]["content"]
    scores = [score for each in pieces for score in each["choices"][0]["logprobs"]["content"]]
    assert bytes(byte for score in scores for byte in score["bytes"]).decode(errors="replace") == said


def test_every_step(toy):
    events = toy.events(
        prompt="def[[2]](x)[[1]]", blanks=True, stream_mode="denoise", seed=3, stream_options={"include_usage": True}
    )
    canvas, *steps, done = events
    row = canvas["choices"][0]
    assert canvas["object"] == "unveil.canvas"
    assert (row["index"], row["mask_id"], row["seed"]) == (0, toy.text.mask_id, 3)
    blanks = [at for at, token in enumerate(row["tokens"]) if token["blank"]]
    assert len(blanks) == 3
    assert "".join(token["text"] for token in row["tokens"]) == "def(x)"
    assert [step["object"] for step in steps] == ["unveil.step"] * 3
    first = steps[0]["choices"][0]
    assert first["written"] == [
        {"at": blanks[0], "token": toy.link.spoken[0], "text": " return", "logprob": -0.25, "top": []}
    ]
    assert (first["block"], first["step"], first["forwards"], first["taken_back"]) == (1, 1, 1, [])
    assert first["seconds"] >= 0
    assert done["object"] == "unveil.done"
    assert done["choices"][0]["text"] == "def return x(x) +"
    assert done["choices"][0]["blanks"] == [" return x", " +"]
    assert done["usage"]["forwards"] == 3
    told = toy.events("chat/completions", stream_mode="denoise", logprobs=True, top_logprobs=2, max_tokens=2)
    assert len(told[1]["choices"][0]["written"][0]["top"]) == 2
    stopped = toy.events(stream_mode="denoise", stop=" +", max_tokens=9)
    assert stopped[-1]["choices"][0]["text"] == " return x"
    assert stopped[-1]["choices"][0]["finish_reason"] == "stop"


def test_what_is_taken_back_is_told():
    toy = Toy()

    def script(order):
        yield Admitted(order.id, [0])
        at = order.rows[0].tokens.index(toy.text.mask_id)
        yield Step(order.id, 0, 1, 1, 1, [Write(at, 5, -1.0), Write(at + 1, 6, -1.0)], [], at)
        yield Step(order.id, 0, 2, 1, 2, [], [at], at)
        yield Step(order.id, 0, 3, 1, 3, [Write(at, 7, None)], [], at + 2)
        yield Done(order.id, 0, "length", 3, 0.1, 0.0)

    toy.link.script = script
    events = toy.events(stream_mode="denoise", max_tokens=2)
    assert events[2]["choices"][0]["taken_back"] == [events[1]["choices"][0]["written"][0]["at"]]
    assert events[-1]["choices"][0]["text"] == toy.text.decode([7, 6])
    assert events[3]["choices"][0]["written"][0]["logprob"] is None
    found = toy.post(max_tokens=2, logprobs=0).json()["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [None, -1.0]
    assert found["top_logprobs"][0] is None
