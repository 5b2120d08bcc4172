"""An application over a scripted engine, and what errors have to look like."""

from __future__ import annotations

import json

from fastapi.testclient import TestClient
from toy_link import ToyLink, tokenizer

from unveil.serve.app import create
from unveil.serve.limits import Limits

TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
MASK = "<|mask|>"


class Toy:
    """An application with its engine."""

    def __init__(self, limits: Limits | None = None, template: str | None = TEMPLATE, journal=None, **ready):
        self.text = tokenizer(template)
        self.link = ToyLink(self.text, **ready)
        self.app = create(self.link, self.text, limits or Limits(), journal)
        self.http = TestClient(self.app, raise_server_exceptions=False)

    def post(self, path="completions", body=None, **more):
        return self.http.post(f"/v1/{path}", json=body if body is not None else {"prompt": "def", **more})

    def raw(self, content: bytes, path="completions", **headers):
        head = {"content-type": "application/json", **headers}
        return self.http.post(f"/v1/{path}", content=content, headers=head)

    def chat(self, content="hi", **more):
        return self.post("chat/completions", {"messages": [{"role": "user", "content": content}], **more})

    def events(self, path="completions", **more):
        """The events of a stream."""
        body = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "def"}
        found = self.post(path, {**body, "stream": True, **more})
        assert found.status_code == 200, found.text
        assert found.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def refused(found, status: int, param: str | None = ..., code: str | None = ...) -> str:
    """The message of an error of the right shape."""
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/json"
    assert found.headers["x-content-type-options"] == "nosniff"
    error = found.json()
    assert list(error) == ["error"]
    assert list(error["error"]) == ["message", "type", "param", "code"]
    assert param is ... or error["error"]["param"] == param
    assert code is ... or error["error"]["code"] == code
    message = error["error"]["message"]
    for ours in ("Traceback", 'File "', "/unveil/", "pydantic", "site-packages"):
        assert ours not in message
    return message
