"""Engines that fail, requests that take too long and clients that go away, over a scripted engine."""

from __future__ import annotations

import asyncio
import json

import pytest
from toy_http import Toy, refused

from unveil.serve.journal import Journal
from unveil.serve.limits import Limits
from unveil.serve.link import Behind, Full, Lost
from unveil.serve.messages import Admitted, Done


@pytest.fixture(scope="module")
def toy():
    return Toy()


def test_a_full_queue(toy):
    toy.link.error = Full(256, 3.2)
    found = toy.post()
    assert "256 requests wait" in refused(found, 429, None, "queue_full")
    assert found.headers["retry-after"] == "4"
    refused(toy.post(stream=True), 429)
    toy.link.error = None
    assert toy.post().status_code == 200


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [
        (Lost("the engine's process was ended by signal 9"), 503, "engine_unavailable"),
        (Behind("read too slowly"), 503, "read_too_slowly"),
        (ValueError("a block of 3; this model\ndecodes in multiples of 4"), 400, None),
    ],
)
def test_engines_that_fail(event, status, code):
    toy = Toy()
    toy.link.script = lambda order: iter([event])
    assert "signal" not in refused(toy.post(), status, None, code)
    refused(toy.post(stream=True), status, None, code)
    toy.link.script = lambda order: iter([Admitted(order.id, [0]), event])
    refused(toy.post(), status, None, code)
    events = toy.events()
    assert events[-1]["error"]["code"] == code
    assert toy.link.open == 0
    toy.link.script = toy.link.writes
    assert toy.post().status_code == 200


def test_an_engine_that_gives_up_on_a_row(tmp_path):
    toy = Toy(journal=Journal(tmp_path / "log"))
    toy.link.script = lambda order: iter(
        [Admitted(order.id, [0]), Done(order.id, 0, "failed", 1, 0.1, 0.0, "secret: CUDA error at /home/me/x.py")]
    )
    found = toy.post()
    message = refused(found, 500)
    assert "secret" not in message
    assert message.split()[-1] in (tmp_path / "log").read_text()


def test_a_bug_of_ours(tmp_path):
    toy = Toy(journal=Journal(tmp_path / "log"))

    def broken(order):
        raise ZeroDivisionError("secret text of a client")
        yield

    toy.link.script = broken
    found = toy.post()
    message = refused(found, 500)
    assert "secret" not in found.text
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    noted = next(line for line in log if line["event"] == "failure")
    assert noted["id"] in message
    assert noted["error"] == "ZeroDivisionError"
    assert "broken test_serve_failures.py" in noted["where"]
    assert "secret" not in (tmp_path / "log").read_text()
    assert next(line for line in log if line["event"] == "request")["status"] == 500


def test_a_request_that_takes_too_long():
    toy = Toy(Limits(timeout=0.1))
    toy.link.script = lambda order: iter([Admitted(order.id, [0]), 30.0])
    assert "longer than 0.1 s" in refused(toy.post(), 504, None, "timeout")
    assert toy.events()[-1]["error"]["code"] == "timeout"
    toy.link.script = lambda order: iter([30.0])  # in the queue
    refused(toy.post(stream=True), 504)
    assert toy.link.open == 0


def test_a_server_that_is_going_down():
    toy = Toy()
    toy.link.error, toy.link.closing = Lost("x"), True
    found = toy.post()
    assert "shutting down" in refused(found, 503)
    assert found.headers["retry-after"]
    assert toy.http.get("/health").json() == {"status": "draining"}
    toy.link.closing, toy.link.alive = False, False
    found = toy.http.get("/health")
    assert (found.status_code, found.json()) == (503, {"status": "starting"})
    toy.link.lost.over = True
    assert toy.http.get("/health").json() == {"status": "down"}
    assert toy.metric("unveil_up") == 0


def ask(app, body: dict, leave_after: float) -> list[dict]:
    """Ask as a client that goes away; what was sent to it."""
    sent: list[dict] = []
    pending = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive():
        if pending:
            return pending.pop()
        await asyncio.sleep(leave_after)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "POST",
        "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "server": ("x", 80), "client": ("y", 1), "scheme": "http",
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 5))
    return sent


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("events", [[30.0], [None, 30.0]])
def test_a_client_that_goes_away(stream, events):
    toy = Toy()
    toy.link.script = lambda order: (Admitted(order.id, [0]) if each is None else each for each in events)
    sent = ask(toy.app, {"prompt": "x", "stream": stream}, 0.05)
    assert toy.link.open == 0
    assert sent[0]["status"] == (200 if stream and len(events) == 2 else 499)
    assert toy.metric("unveil_abandoned_requests_total") == 1
    toy.link.script = toy.link.writes
    assert toy.post().status_code == 200
    assert toy.metric("unveil_abandoned_requests_total") == 1


def test_a_slow_body(monkeypatch):
    monkeypatch.setattr("unveil.serve.body.PATIENCE", 0.05)
    toy = Toy()
    sent: list[dict] = []

    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/completions",
        "raw_path": b"/v1/completions", "query_string": b"", "root_path": "", "server": ("x", 80), "client": ("y", 1),
        "headers": [(b"content-type", b"application/json")], "scheme": "http",
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(toy.app(scope, receive, send), 5))
    assert sent[0]["status"] == 408
