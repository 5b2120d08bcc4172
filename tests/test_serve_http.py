"""The HTTP interface over a scripted engine: what is refused and how, and what stands around the routes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from toy_http import Toy, refused

from unveil.serve.body import depth_exceeds
from unveil.serve.journal import Journal
from unveil.serve.limits import Limits


@pytest.fixture(scope="module")
def toy():
    return Toy()


# Bodies


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected a JSON object"),
        (b"{", "not valid JSON"),
        (b"nonsense", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"prompt": "\xc3\x28"}', "not valid JSON"),
        (b'{"prompt": "\\ud800"}', "not valid JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "not valid JSON"),
        (b'{"prompt": "x", "temperature": -Infinity}', "not valid JSON"),
        (b'{"prompt": "x", "temperature": 1e999}', "temperature should be a finite number"),
        (b"[" * 100_000, "recursion limit"),
        (b"[" * 100 + b"]" * 100, "nested deeper than 32"),
        (b'{"prompt":' * 150 + b"1" + b"}" * 150, "nested deeper than 32"),
        (b"9" * 5000, "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b'"x"', "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b"{}", "prompt is missing"),
    ],
)
def test_bodies_that_make_no_sense(toy, body, said):
    assert said in refused(toy.raw(body), 400)
    assert toy.post().status_code == 200


def test_brackets_in_strings_do_not_nest(toy):
    assert toy.post(prompt="[{" * 50 + '\\"' * 20, max_tokens=2).status_code == 200


def depth(value) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(depth, inside), default=0)


def test_depth_is_counted_as_it_is():
    chance = random.Random(0)

    def made(left: int):
        if not left or chance.random() < 0.2:
            return chance.choice([1, '[{"]\\', None, "a\\", '"'])
        if chance.random() < 0.5:
            return [made(left - 1) for _ in range(chance.randrange(3))]
        return {chance.choice('ab[{"\\'): made(left - 1) for _ in range(chance.randrange(3))}

    for _ in range(1000):
        value = made(8)
        for most in (1, 2, 3, 5):
            assert depth_exceeds(json.dumps(value).encode(), most) == (depth(value) > most)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": [' + b"[]," * 300_000 + b"[]]}",
        b'{"prompt": [' + b"[1]," * 200_000 + b"[1]]}",
        b'{"messages": [' + b"{}," * 300_000 + b"{}]}",
        b'{"prompt": "' + b'\\"' * 450_000 + b'"}',
        b"{" + b",".join(b'"k%d": 1' % i for i in range(70_000)) + b"}",
        b'{"prompt": "' + b"[[" * 400_000 + b'", "blanks": true}',
        b'{"prompt": "[[' + b" " * 800_000 + b'", "blanks": true}',
    ],
    ids=lambda body: body[:16].decode(),
)
def test_bodies_made_to_take_long(toy, body):
    began = time.process_time()
    refused(toy.raw(body, "chat/completions" if b"messages" in body[:20] else "completions"), 400)
    assert time.process_time() - began < 3


def test_ten_megabytes(toy):
    found = toy.raw(b'{"prompt": "' + b"a" * 10_000_000 + b'"}')
    assert f"more than {1 << 20} bytes" in refused(found, 413)
    chunks: Iterator[bytes] = (b"a" * 100_000 for _ in range(100))  # no content-length
    found = toy.http.post("/v1/completions", content=chunks, headers={"content-type": "application/json"})
    refused(found, 413)
    assert toy.post().status_code == 200


def test_a_body_that_is_too_long_in_tokens(toy):
    refused(toy.post(prompt="x" * 900_000), 400, "prompt", "context_length_exceeded")
    refused(toy.post(prompt="x y " * 200), 400, "prompt", "context_length_exceeded")
    refused(toy.post(prompt=[5] * 300), 400, "prompt", "context_length_exceeded")
    assert "more than the model's 256" in refused(toy.post(max_tokens=256), 400, "prompt", "context_length_exceeded")
    refused(toy.chat("x y " * 200), 400, "messages", "context_length_exceeded")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_other_content_types(toy, kind):
    found = toy.http.post("/v1/completions", content=b'{"prompt": "x"}', headers={"content-type": kind})
    assert "application/json" in refused(found, 415)


# Fields


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("temperature", -0.1, "greater than or equal to 0"),
        ("temperature", 3, "less than or equal to 2"),
        ("temperature", "1", "valid number"),
        ("top_p", 0, "greater than 0"),
        ("top_p", 1.5, "less than or equal to 1"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**53, "less than or equal"),
        ("seed", 1.5, "valid integer"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("max_tokens", 5000, "the most here is 4096"),
        ("n", 0, "greater than or equal to 1"),
        ("n", 17, "the most here is 16"),
        ("logprobs", 21, "less than or equal to 20"),
        ("logprobs", True, "valid integer"),
        ("stop", ["a", "b", "c", "d", "e"], "expected a text, or up to 4"),
        ("stop", [""], "of 1 to 256 characters"),
        ("stop", "", "of 1 to 256 characters"),
        ("prompt", 5, "expected a text, a list of texts"),
        ("prompt", [], "expected a text, a list of texts"),
        ("prompt", [1, "a"], "expected a text, a list of texts"),
        ("prompt", [[]], "expected a text, a list of texts"),
        ("prompt", [-1], "this model's tokens are 0 to 300"),
        ("prompt", [301], "this model's tokens are 0 to 300"),
        ("prompt", [300], "the mask token 300"),
        ("decoder", "nope", "no decoder called 'nope'; there are: ahd"),
        ("decoder", "threshold(tau=2", "expected name(option=value"),
        ("decoder", "tspd(sensor='/etc/passwd')", "names a file"),
        ("cache", "nope", "no cache called 'nope'"),
        ("guide", "nope", "no guide called 'nope'"),
        ("block", 0, "greater than or equal to 1"),
        ("block", 257, "this model's context has 256"),
        ("steps", 10**9, "less than or equal to 10000"),
        ("stream_mode", "other", "'text' or 'denoise'"),
        ("stream_mode", "denoise", "needs stream"),
        ("stream_options", {"include_usage": True}, "needs stream"),
        ("best_of", 2, "not supported"),
        ("presence_penalty", 0.5, "not supported"),
        ("frequency_penalty", -0.5, "not supported"),
        ("logit_bias", {"5": 1.0}, "not supported"),
        ("response_format", {"type": "xml"}, "json_schema"),
        ("echo", "yes", "valid boolean"),
    ],
)
def test_values_that_do_not_fit(toy, field, value, said):
    assert said in refused(toy.post(**{field: value}), 400, field)
    assert toy.post().status_code == 200


def test_unknown_fields(toy):
    message = refused(toy.post(tools=[]), 400, "tools")
    assert "unknown field 'tools'; there are: model, max_tokens" in message
    assert "prompt" in message
    message = refused(toy.chat(prompt="x"), 400, "prompt")
    assert "messages" in message
    found = toy.post(stream=True, stream_options={"x": 1})
    assert "unknown field 'x' in stream_options; there are: include_usage" in refused(found, 400, "stream_options")
    assert len(refused(toy.post(**{"y" * 10_000: 1}), 400)) < 1000


def test_neutral_values_and_nulls(toy):
    found = toy.post(
        best_of=1, presence_penalty=0, frequency_penalty=0.0, logit_bias={}, user="me", suffix=None, stop=None, n=None,
        seed=None, logprobs=None, stream=None, response_format={"type": "text"}, max_tokens=2,
    )  # fmt: skip
    assert found.status_code == 200
    assert toy.link.orders[-1].schema is None


def test_models_by_name(toy):
    assert toy.post(model="toy").status_code == 200
    refused(toy.post(model="gpt-4"), 404, "model", "model_not_found")
    listed = toy.http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert listed["data"] == [toy.http.get("/v1/models/toy").json()]
    about = listed["data"][0]["unveil"]
    assert (about["attention"], about["context_length"], about["chat"], about["autoregressive"]) == (
        "leader",
        256,
        True,
        True,
    )
    assert {"confidence", "threshold"} <= {each["name"] for each in about["decoders"]}
    assert "sensor" not in next(each["options"] for each in about["decoders"] if each["name"] == "tspd")
    refused(toy.http.get("/v1/models/a/b"), 404, "model", "model_not_found")


def test_routes_that_are_not_there(toy):
    assert "/v1/nope" in refused(toy.http.get("/v1/nope"), 404)
    found = toy.http.delete("/v1/models")
    refused(found, 405)
    assert found.headers["allow"] == "GET"
    refused(toy.http.get("/docs"), 404)


# Around the routes


def test_keys():
    toy = Toy(Limits(keys=frozenset({"sesame", "second-key"})))
    for header in ("", "sesame", "Bearer", "Bearer ", "Bearer sesam", "Bearer sesame2", "Basic sesame", "Bearer ÿ"):
        head = {"authorization": header.encode("latin-1")}
        found = toy.http.get("/v1/models", headers=head)
        refused(found, 401, None, "invalid_api_key")
        assert found.headers["www-authenticate"] == "Bearer"
    refused(toy.post(), 401)
    refused(toy.raw(b"{"), 401)
    refused(toy.http.get("/metrics"), 401)
    for key in ("sesame", "second-key"):
        assert toy.http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert toy.raw(b'{"prompt": "x"}', authorization=f"bearer {key}").status_code == 200
    assert toy.http.get("/health").status_code == 200
    assert toy.http.get("/").status_code == 200
    described = toy.http.get("/openapi.json").json()
    assert described["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert "security" in described["paths"]["/v1/completions"]["post"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("a.localhost", 200),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[", 403),
    ],
)
def test_names_that_others_give_to_this_machine(toy, host, status):
    for client in (TestClient(toy.app, base_url="http://127.0.0.1:8000"), TestClient(toy.app, "http://[::1]:8000")):
        assert client.get("/v1/models", headers={"host": host}).status_code == status
    keyed = TestClient(Toy(Limits(keys=frozenset({"k"}))).app, base_url="http://127.0.0.1:8000")
    head = {"host": host, "authorization": "Bearer k"}
    assert keyed.get("/v1/models", headers=head).status_code == 200


def test_security_headers(toy):
    for found in (toy.http.get("/"), toy.post(), toy.raw(b"{"), toy.http.get("/nope"), toy.http.get("/health")):
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["x-frame-options"] == "DENY"
        assert found.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in found.headers["content-security-policy"]
        assert "access-control-allow-origin" not in found.headers
        assert "server" not in found.headers
    page = toy.http.get("/").headers["content-security-policy"]
    assert page.startswith("default-src 'self';")
    assert "unsafe" not in page
    assert toy.post().headers["cache-control"] == "no-store"


def test_other_origins():
    origin = {"origin": "https://a.example", "access-control-request-method": "POST"}
    asked = {**origin, "access-control-request-headers": "authorization,content-type"}
    closed = Toy().http.options("/v1/completions", headers=asked)
    assert "access-control-allow-origin" not in closed.headers
    toy = Toy(Limits(cors=("https://a.example",), keys=frozenset({"k"})))
    found = toy.http.options("/v1/completions", headers=asked)
    assert found.status_code == 200
    assert found.headers["access-control-allow-origin"] == "https://a.example"
    found = toy.http.options("/v1/completions", headers={**asked, "origin": "https://b.example"})
    assert "access-control-allow-origin" not in found.headers


def test_no_page():
    toy = Toy(Limits(page=False))
    refused(toy.http.get("/"), 404)
    refused(toy.http.get("/page/index.html"), 404)


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/..%2fapp.py"])
def test_nothing_but_the_page_is_served(toy, path):
    assert toy.http.get(path).status_code in (404, 405)


def test_metrics(tmp_path):
    journal = Journal(tmp_path / "log")
    toy = Toy(journal=journal)
    toy.post(max_tokens=6)
    toy.post(max_tokens=0)
    toy.http.get("/a/b/c")
    toy.http.get("/d")
    told = toy.http.get("/metrics").text
    for line in (
        'unveil_requests_total{route="/v1/completions",status="200"} 1.0',
        'unveil_requests_total{route="/v1/completions",status="400"} 1.0',
        'unveil_requests_total{route="other",status="404"} 2.0',
        "unveil_completion_tokens_total 6.0",
        "unveil_forwards_total 6.0",
        "unveil_request_seconds_count 1.0",
        "unveil_first_commit_seconds_count 1.0",
        "unveil_tokens_per_forward_sum 1.0",
        "unveil_memory_bytes 7.0",
        "unveil_up 1.0",
        "unveil_queue_requests 0.0",
        "unveil_running_requests 0.0",
        "unveil_engine_restarts_total 0.0",
        "unveil_log_lines_dropped_total 0.0",
    ):
        assert line in told.splitlines()
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in log] == ["answer", "request", "request"]
    assert log[0]["completion_tokens"] == 6
    assert "def" not in (tmp_path / "log").read_text()


def test_the_document_is_true_to_the_limits():
    found = Toy(Limits(max_tokens=77, max_n=3)).app.openapi()
    for name in ("Completion", "Chat"):
        fields = found["components"]["schemas"][name]["properties"]
        assert fields["max_tokens"]["anyOf"][0]["maximum"] == 77
        assert fields["n"]["anyOf"][0]["maximum"] == 3
        assert not found["components"]["schemas"][name]["additionalProperties"]
    assert "422" not in json.dumps(found)
