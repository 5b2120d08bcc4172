"""The official client, as it is, against a real server: completions, chats, streams, infilling, and what goes wrong."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import openai
import pytest
from pydantic import BaseModel
from talking import checkpoint, serving

from unveil.codecs.text import Text

MODEL, KEY = "talker", "sesame"
HI = [{"role": "user", "content": "hello"}]
LONG = 240  # tokens; two such answers do not fit into the memory of the server at once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("served") / MODEL)


@pytest.fixture(scope="module")
def server(folder):
    options = ["--memory", "150kB", "--queue", "2", "--max-tokens", "500", "--max-n", "4", "--threads", "1"]
    with serving(folder, *options, UNVEIL_API_KEYS=KEY) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def text(folder):
    return Text.load(folder)


def complete(client, prompt="def f(x):", **more):
    return client.completions.create(model=MODEL, prompt=prompt, **{"max_tokens": 16, **more})


def fine(client) -> None:
    """A normal request is answered."""
    assert complete(client, max_tokens=3).usage.completion_tokens <= 3


def test_models(client):
    listed = client.models.list().data
    assert [each.id for each in listed] == [MODEL]
    about = client.models.retrieve(MODEL).unveil
    assert (about["attention"], about["block"], about["chat"], about["autoregressive"]) == ("leader", 8, True, True)
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' here; there is 'talker'"):
        client.models.retrieve("gpt-4")


def test_a_completion(client, text):
    found = complete(client, stop=None)
    assert found.object == "text_completion"
    assert found.model == MODEL
    choice = found.choices[0]
    assert choice.index == 0
    assert choice.finish_reason in ("stop", "length")
    assert choice.text
    usage = found.usage
    assert usage.prompt_tokens == 1 + len(text.encode("def f(x):"))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.forwards >= 1
    assert usage.tokens_per_forward == pytest.approx(usage.completion_tokens / usage.forwards, abs=1e-4)


def test_seeds_and_several_answers(client):
    hot = {"temperature": 1.0, "top_p": 0.95, "seed": 7}
    four = complete(client, n=4, **hot).choices
    assert [each.index for each in four] == [0, 1, 2, 3]
    assert [each.text for each in complete(client, n=4, **hot).choices] == [each.text for each in four]
    assert len({each.text for each in four}) > 1
    # The answer of index i is the one of seed + i, alone or in company.
    assert [each.seed for each in four] == [7, 8, 9, 10]
    assert complete(client, **{**hot, "seed": 9}).choices[0].text == four[2].text
    several = complete(client, prompt=["def", "hello", "def"], **hot)
    assert [each.index for each in several.choices] == [0, 1, 2]
    assert several.choices[1].text == complete(client, prompt="hello", **{**hot, "seed": 8}).choices[0].text
    unseeded = {complete(client, temperature=1.0).choices[0].text for _ in range(3)}
    assert len(unseeded) > 1


def test_prompts_as_tokens(client, text):
    ids = [text.start_id, *text.encode("def f(x):")]
    assert complete(client, prompt=ids).choices[0].text == complete(client).choices[0].text
    both = complete(client, prompt=[ids, text.encode("hello")])
    assert both.choices[0].text == complete(client).choices[0].text


def test_streams_say_what_answers_say(client):
    hot = {"temperature": 1.0, "seed": 3, "n": 2, "max_tokens": 40}
    whole = complete(client, **hot)
    said, finished, usage = {0: "", 1: ""}, {}, None
    for chunk in complete(client, stream=True, stream_options={"include_usage": True}, **hot):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said[choice.index] += choice.text
            finished[choice.index] = choice.finish_reason or finished.get(choice.index)
    assert said == {each.index: each.text for each in whole.choices}
    assert finished == {each.index: each.finish_reason for each in whole.choices}
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_chats(client):
    asked = {"model": MODEL, "messages": HI, "temperature": 0.8, "seed": 2, "max_tokens": 24}
    found = client.chat.completions.create(**asked)
    assert found.object == "chat.completion"
    message = found.choices[0].message
    assert message.role == "assistant"
    pieces = list(client.chat.completions.create(stream=True, **asked))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == message.content
    assert pieces[-1].choices[0].finish_reason == found.choices[0].finish_reason
    # What a client got may be part of what it sends next.
    again = client.chat.completions.create(
        model=MODEL, messages=[*HI, message, {"role": "user", "content": "x"}], max_completion_tokens=4
    )
    assert again.usage.prompt_tokens > found.usage.prompt_tokens


def test_logprobs(client):
    found = complete(client, logprobs=3, max_tokens=12, temperature=1.0, seed=1).choices[0]
    scores = found.logprobs
    assert "".join(scores.tokens) == found.text
    assert all(-50 < logp <= 0 for logp in scores.token_logprobs)
    for logp, best in zip(scores.token_logprobs, scores.top_logprobs, strict=True):
        assert 1 <= len(best) <= 4
        assert max(best.values()) >= logp - 1e-4
        assert sum(map(math.exp, best.values())) < 1 + 1e-3
    assert scores.text_offset == [len("".join(scores.tokens[:i])) for i in range(len(scores.tokens))]
    greedy = complete(client, logprobs=1, max_tokens=12).choices[0].logprobs
    assert greedy.token_logprobs == pytest.approx([max(best.values()) for best in greedy.top_logprobs])
    chat = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=6, logprobs=True, top_logprobs=2)
    for score in chat.choices[0].logprobs.content:
        assert score.logprob == pytest.approx(score.top_logprobs[0].logprob)
        assert len(score.top_logprobs) == 2
        assert bytes(score.bytes) is not None


def test_stop_strings(client):
    whole = complete(client, max_tokens=40).choices[0].text
    stop = whole[10:13]
    before = whole[: whole.index(stop)]
    found = complete(client, max_tokens=40, stop=[stop, "never"])
    assert found.choices[0].text == before
    assert found.choices[0].finish_reason == "stop"
    said = ""
    for chunk in complete(client, max_tokens=40, stop=stop, stream=True):
        said += chunk.choices[0].text
        assert before.startswith(said), "the stop string leaked"
    assert said == before


def test_infilling(client):
    found = complete(client, suffix=" + 1", max_tokens=5)
    assert found.usage.completion_tokens == 5
    assert found.choices[0].finish_reason == "length"
    echoed = complete(client, suffix=" + 1", max_tokens=5, echo=True).choices[0].text
    assert echoed == "def f(x):" + found.choices[0].text
    asked = {"prompt": "def [[3]](x):[[]] + 1", "max_tokens": 4, "temperature": 1.0, "seed": 5}
    filled = complete(client, extra_body={"blanks": True}, **asked)
    choice = filled.choices[0]
    assert len(choice.blanks) == 2
    assert filled.usage.completion_tokens == 7
    assert choice.text == f"def {choice.blanks[0]}(x):{choice.blanks[1]} + 1"
    said = "".join(
        chunk.choices[0].text for chunk in complete(client, extra_body={"blanks": True}, stream=True, **asked)
    )
    assert said == choice.text


def test_our_options(client):
    plain = complete(client, max_tokens=24)
    assert plain.usage.tokens_per_forward == 1
    fast = complete(client, max_tokens=24, extra_body={"decoder": "threshold(tau=0.001)", "block": 8})
    assert fast.usage.forwards < plain.usage.forwards
    assert fast.usage.tokens_per_forward > 1.5
    one = complete(client, max_tokens=24, extra_body={"decoder": "confidence", "cache": "causal", "block": 1})
    assert one.usage.forwards == 24 or one.choices[0].finish_reason == "stop"
    held = complete(client, max_tokens=8, extra_body={"guide": "eos(policy='never')"})
    assert held.usage.completion_tokens == 8
    assert complete(client, max_tokens=24, extra_body={"steps": 2, "cache": "recompute"}).usage.forwards < 24


def test_every_step(client, server):
    body = {"prompt": "def [[3]](x):[[4]]", "blanks": True, "stream": True, "stream_mode": "denoise", "logprobs": None}
    with client.completions.with_streaming_response.create(
        model=MODEL, extra_body=body, prompt=body["prompt"]
    ) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    canvas, *steps, done = [json.loads(line) for line in lines[:-1]]
    tokens = [token["text"] for token in canvas["choices"][0]["tokens"]]
    blank = [at for at, token in enumerate(canvas["choices"][0]["tokens"]) if token["blank"]]
    for step in steps:
        for write in step["choices"][0]["written"]:
            tokens[write["at"]] = write["text"]
    assert all(tokens[at] for at in blank)
    assert done["choices"][0]["finish_reason"] == "length"
    assert done["usage"]["completion_tokens"] == 7
    assert len(done["choices"][0]["blanks"]) == 2


def test_json_answers(client):
    shape = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "pair", "schema": shape}}
    for _ in range(2):
        found = client.chat.completions.create(model=MODEL, messages=HI, response_format=form, max_tokens=40)
        content = json.loads(found.choices[0].message.content)
        assert 0 <= content["a"] <= 9
        assert content["b"] in ("x", "y")
        assert found.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="from left to right"):
        complete(client, suffix="x", extra_body={"response_format": form})


class Pair(BaseModel):
    letter: Literal["x", "y"]
    sure: bool


def test_the_client_s_own_parsing(client):
    asked = {"model": MODEL, "messages": HI, "response_format": Pair, "max_tokens": 60}
    found = client.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(found, Pair)
    with client.chat.completions.stream(**asked) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        assert Pair.model_validate_json(said) == stream.get_final_completion().choices[0].message.parsed == found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_tokens": 501}, "the most here is 500"),
        ({"n": 5}, "the most here is 4"),
        ({"temperature": -1}, "temperature should be"),
        ({"seed": -1}, "seed should be"),
        ({"extra_body": {"decoder": "nope"}}, "no decoder called 'nope'; there are"),
        ({"extra_body": {"decoder": "edit", "cache": "dual"}}, "dual cache"),
        ({"extra_body": {"block": 3, "decoder": "tspd(noise=(1,))"}}, "noise is"),
        ({"extra_body": {"tools": []}}, "unknown field 'tools'"),
        ({"prompt": "x" * 2000}, "the most that is taken here is 512"),
        ({"prompt": [10**6]}, "this model's tokens are"),
        ({"logprobs": 50}, "less than or equal to 20"),
        ({"best_of": 3}, "not supported"),
    ],
)
def test_wrong_requests(client, more, said):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **more)
    assert said in caught.value.message
    assert caught.value.type == "invalid_request_error"
    if "prompt" not in more:
        with pytest.raises(openai.BadRequestError):
            complete(client, stream=True, **more)
    fine(client)


def test_other_errors(client, server):
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.AuthenticationError, match="expected a key"):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="unknown field 'input'"):
        client.post("/completions", body={"input": "x"}, cast_to=object)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="x")
    fine(client)


def test_a_full_queue(client, server):
    """One answer runs, two wait, and a fourth is told to come back."""
    key = {"Authorization": f"Bearer {KEY}"}

    def ask(number: int):
        try:
            return complete(client, max_tokens=LONG, prompt=[number] * 20, extra_body={"guide": "eos(policy='never')"})
        except openai.RateLimitError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(3, 9)))
    refused = [each for each in found if isinstance(each, openai.RateLimitError)]
    assert 1 <= len(refused) <= 4
    for error in refused:
        assert error.code == "queue_full"
        assert int(error.response.headers["retry-after"]) >= 1
    answered = [each for each in found if not isinstance(each, openai.RateLimitError)]
    assert all(each.usage.completion_tokens == LONG for each in answered)
    assert server.metric("unveil_queue_requests", **key) == 0
    # The client comes back by itself when it is told to.
    patient = client.with_options(max_retries=5)
    with ThreadPoolExecutor(5) as pool:
        again = list(pool.map(lambda i: complete(patient, max_tokens=40, prompt=[i] * 20), range(3, 8)))
    assert len(again) == 5


def test_a_client_that_goes_away_frees_its_slot(client, server):
    key = {"Authorization": f"Bearer {KEY}"}
    left = server.metric("unveil_abandoned_requests_total", **key)
    stream = complete(client, max_tokens=LONG, stream=True, extra_body={"guide": "eos(policy='never')"})
    next(iter(stream))
    assert server.metric("unveil_running_requests", **key) == 1
    stream.close()
    server.until("unveil_abandoned_requests_total", left + 1, **key)
    server.until("unveil_running_requests", 0, **key)
    server.until("unveil_memory_bytes", 0, **key)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.15).completions.create(
            model=MODEL, prompt="x", max_tokens=LONG, extra_body={"guide": "eos(policy='never')"}
        )
    server.until("unveil_abandoned_requests_total", left + 2, **key)
    server.until("unveil_running_requests", 0, **key)
    fine(client)


def test_what_is_said_does_not_depend_on_company(client):
    hot = {"temperature": 1.0, "max_tokens": 30}
    alone = [complete(client, seed=seed, **hot).choices[0].text for seed in range(3)]
    patient = client.with_options(max_retries=5)
    with ThreadPoolExecutor(3) as pool:
        crowd = list(pool.map(lambda seed: complete(patient, seed=seed, **hot).choices[0].text, range(3)))
    assert crowd == alone


@pytest.mark.anyio
async def test_the_asynchronous_client(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HI, max_tokens=5, stream=True)
        said = [chunk.choices[0].delta.content async for chunk in stream]
        whole = await client.chat.completions.create(model=MODEL, messages=HI, max_tokens=5)
        assert "".join(said) == whole.choices[0].message.content


@pytest.fixture
def anyio_backend():
    return "asyncio"
