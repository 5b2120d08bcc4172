"""What stands before replicas, with replicas that are scripted: which one is asked, and what is said when they die."""

from __future__ import annotations

import asyncio
import json
import os
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("ray.serve")

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from unveil.serve.errors import said
from unveil.serve.journal import Journal
from unveil.serve.limits import Limits
from unveil.serve.pending import BEGUN
from unveil.serve.replicas import cluster, front
from unveil.serve.replicas.affinity import beginning, preferred
from unveil.serve.replicas.pool import Pool
from unveil.serve.replicas.replica import Began
from unveil.serve.replicas.router import Affinity, Wish

DEATH = ActorDiedError()
EVENTS = [(b"content-type", b"text/event-stream")]
WHOLE = [Began("b", 200, [(b"content-type", b"application/json")]), b'{"id": 1}']


def without(replica: str, begun: bool = False) -> list:
    """A replica that has no engine, or whose engine died of it."""
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"2")]
    headers += [(BEGUN.lower().encode(), b"true")] * begun
    return [Began(replica, 503, headers), json.dumps(said(503, "gone", code="engine_unavailable")).encode()]


class Stream:
    """An answer as it comes from a replica: pieces, errors, or None to wait for ever."""

    def __init__(self, script: list):
        self.script, self.left = list(script), asyncio.Event()

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.script:
            raise StopAsyncIteration
        found = self.script.pop(0)
        if found is None:
            await self.left.wait()
            raise RequestCancelledError("x")
        if isinstance(found, Exception):
            raise found
        return found

    def cancel(self):
        self.left.set()


class Toy:
    """A front with answers to come, one for each time that a replica is asked."""

    counted = Pool.counted
    metrics = Pool.metrics

    def __init__(self, *scripts: list, **limits):
        self.scripts, self.wishes, self.asked, self.streams = list(scripts), [], [], []
        self.there, self.running, self.repeated = 2, 0, 0
        self.app = front.Front(self, Limits(**limits), Journal())

    def ask(self, asked, wish):
        self.asked.append(asked)
        self.wishes.append(wish)
        self.streams.append(Stream(self.scripts.pop(0)))
        return self.streams[-1]

    async def names(self):
        return ["a", "b"]

    def post(self, body=None, path="/v1/completions", **more):
        return self.send("POST", path, json={"prompt": "def"} if body is None else body, **more)

    def send(self, method, path, **more):
        async def sent():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **more)

        found = asyncio.run(sent())
        assert self.running == 0
        return found


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(front, "PAUSE", 0.001)
    monkeypatch.setattr(front, "LATE", 0.0)


def test_an_answer_passes_through_unchanged():
    toy = Toy(WHOLE)
    found = toy.post({"prompt": "def", "max_tokens": 3})
    assert (found.status_code, found.json(), found.headers["content-type"]) == (200, {"id": 1}, "application/json")
    asked = toy.asked[0]
    assert (asked.scope["path"], asked.scope["method"]) == ("/v1/completions", "POST")
    assert json.loads(asked.body) == {"prompt": "def", "max_tokens": 3}
    assert toy.wishes == [Wish(beginning(asked.body))]


def test_a_replica_that_dies_before_it_says_anything_costs_no_error():
    toy = Toy([DEATH], WHOLE)
    assert toy.post().json() == {"id": 1}
    toy = Toy([Began("a", 200, EVENTS), DEATH], [Began("b", 200, EVENTS), b"data: 1\n\n"])
    assert toy.post().text == "data: 1\n\n"
    assert toy.repeated == 1


def test_a_request_that_ends_two_replicas_is_not_tried_on_a_third():
    for scripts in ([[DEATH], [DEATH]], [without("a", True), without("b", True)], [[DEATH], without("b", True)]):
        toy = Toy(*scripts, WHOLE)
        found = toy.post()
        assert (found.status_code, found.json()["error"]["code"]) == (503, "engine_unavailable")
        assert "retry-after" in found.headers
        assert len(toy.asked) == 2


def test_one_without_an_engine_is_avoided_until_there_is_no_other():
    toy = Toy(without("a"), without("b"), without("a"), without("a"), WHOLE)
    assert toy.post().json() == {"id": 1}
    assert [wish.avoid for wish in toy.wishes] == [set(), {"a"}, {"a", "b"}, {"a", "b"}, {"a", "b"}]


def test_an_answer_that_breaks_off_ends_with_an_error():
    toy = Toy([Began("a", 200, EVENTS), b"data: 1\n\n", DEATH])
    lines = [line.removeprefix("data: ") for line in toy.post().text.split("\n\n") if line]
    assert lines[0] == "1"
    assert json.loads(lines[1])["error"]["code"] == "engine_unavailable"
    assert lines[2] == "[DONE]"


def test_limits():
    found = Toy([BackPressureError(num_queued_requests=3, max_queued_requests=3)], queue=3).post()
    assert (found.status_code, found.json()["error"]["code"]) == (429, "queue_full")
    assert found.headers["retry-after"] == "5"
    toy = Toy([None], timeout=0.05)
    found = toy.post()
    assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
    assert toy.streams[0].left.is_set(), "nobody waits for it"
    found = Toy(max_body=100).post({"prompt": "x" * 100})
    assert (found.status_code, found.headers["x-frame-options"]) == (413, "DENY")


def test_a_client_that_leaves_is_told_to_the_replica():
    toy = Toy([Began("a", 200, EVENTS), b"data: 1\n\n", None])

    async def left():
        told, sent = asyncio.Queue(), []
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b""}

        async def send(message):
            sent.append(message)
            if message.get("body"):
                told.put_nowait({"type": "http.disconnect"})

        async with asyncio.timeout(5):
            await toy.app(scope, told.get, send)
        assert [message.get("body") for message in sent] == [None, b"data: 1\n\n"]

    asyncio.run(left())
    assert toy.streams[0].left.is_set()
    assert toy.running == 0


def test_health_and_metrics():
    text = "# HELP unveil_up Can it\n# TYPE unveil_up gauge\nunveil_up 1.0\n"
    toy = Toy(*[[Began(name, 200, []), text.encode()] for name in "ab"])
    found = toy.send("GET", "/metrics").text
    assert 'unveil_up{replica="a"} 1.0' in found
    assert 'unveil_up{replica="b"} 1.0' in found
    assert found.count("# TYPE unveil_up gauge") == 1
    assert "unveil_replicas 2.0" in found
    assert [wish.only for wish in toy.wishes] == ["a", "b"]
    assert Toy([Began("a", 401, []), b"{}"]).send("GET", "/metrics").status_code == 401
    assert toy.send("GET", "/health").json() == {"status": "ok"}
    toy.there = 0
    assert toy.send("GET", "/health").status_code == 503


# Where requests go


def key(**body) -> bytes | None:
    return beginning(json.dumps(body).encode())


def test_prompts_that_begin_alike():
    start = "x" * 300
    assert key(prompt=start + "a") == key(prompt=start + "b") == key(prompt=[start + "c", "d"])
    assert key(prompt="a") != key(prompt="b")
    assert key(prompt=[1] * 90 + [2]) == key(prompt=[[1] * 90 + [3], [4]])
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    later = [*first, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]
    assert key(messages=first) == key(messages=later) != key(messages=first[1:])
    assert key(prompt="a", model="formal") != key(prompt="a"), "adapters compute other keys and values"
    nothing = [b"", b"{", b"[]", b"{}", b'{"prompt": []}', b'{"prompt": 1}', b'{"messages": [1]}', b'{"prompt": [[]]}']
    assert [beginning(each) for each in nothing] == [None] * len(nothing)


def test_a_replica_that_goes_moves_its_own_prompts_alone():
    names = [f"replica{i}" for i in range(5)]
    keys = [str(i).encode() for i in range(2000)]
    before = {each: preferred(each, names) for each in keys}
    shares = [list(before.values()).count(name) for name in names]
    assert min(shares) > 300, "about equal parts"
    after = {each: preferred(each, names[1:]) for each in keys}
    assert all(after[each] == before[each] for each in keys if before[each] != names[0])
    assert preferred(b"x", names) == preferred(b"x", names[::-1])


def test_the_router():
    replicas = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in "abc"]
    loads: dict[str, int] = {}
    router = Affinity.__new__(Affinity)
    router.initialize_state(busy=4)
    router._replica_queue_len_cache = SimpleNamespace(get=lambda place: loads.get(place.unique_id))

    def ranks(wish: Wish | None) -> list[str]:
        context = SimpleNamespace(should_backoff=False)
        pending = SimpleNamespace(args=["request", wish], routing_context=context)
        found = asyncio.run(router.choose_replicas(replicas, pending))
        assert context.should_backoff
        return ["".join(sorted(each.replica_id.unique_id for each in rank)) for rank in found]

    wish = Wish(b"def")
    best = preferred(b"def", "abc")
    others = "abc".replace(best, "")
    assert ranks(wish) == [best, others]
    loads[best] = 3
    assert ranks(wish) == [best, others]
    loads[best] = 4
    assert ranks(wish) == ["abc"], "too busy: whoever has the fewest"
    assert ranks(Wish()) == ranks(None) == ["abc"]
    assert ranks(Wish(only="b")) == ["b"]
    assert best not in ranks(Wish(b"def", frozenset(best)))[0]
    assert sorted("".join(ranks(Wish(b"def", frozenset("abc"))))) == ["a", "b", "c"]


def test_what_ray_serve_is_told():
    fixed = cluster.planned(cluster.Wanted(2, 2, busy=3), queue=9, drain=4)
    assert (fixed.num_replicas, fixed.max_ongoing_requests, fixed.max_queued_requests) == (2, 6, 9)
    assert fixed.ray_actor_options["num_cpus"] == 0, "in a Ray of our own nothing is counted"
    assert fixed._deployment_config.max_surge_percent == 1, "one more, up to a hundred: Ray Serve rounds up"
    moving = cluster.planned(cluster.Wanted(1, 4, busy=3, cpus=2, gpus=1, address="a:1"), queue=9, drain=4)
    scale = moving._deployment_config.autoscaling_config
    assert (scale.min_replicas, scale.max_replicas, scale.target_ongoing_requests) == (1, 4, 3)
    assert moving.ray_actor_options == {"num_cpus": 2, "num_gpus": 1}


def test_the_reason_why_replicas_do_not_start():
    told = "The deployment failed to start 2 times:\nTraceback (most recent call last):\n  File x\n"
    told += "ray.exceptions.RayTaskError(ValueError): ray::ServeReplica()\n    raise ValueError\nValueError: no room"
    assert cluster.reason(told) == "no room"
    assert cluster.reason("it is unhappy") == "it is unhappy"


def test_a_server_is_found_by_its_port(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cluster.running(8000) is None
    with cluster.noted(8000, cluster.Running(os.getpid(), "127.0.0.1:1", "unveil-8000")):
        assert cluster.running(8000) == cluster.Running(os.getpid(), "127.0.0.1:1", "unveil-8000")
        assert cluster.note(8000).parent.stat().st_mode & 0o77 == 0
        assert cluster.running(8001) is None
    assert cluster.running(8000) is None
    cluster.note(8000).write_text(json.dumps({"pid": 2**22 + 1, "address": "a", "name": "b"}))
    assert cluster.running(8000) is None, "it has died"
    cluster.note(8000).write_text("{")
    assert cluster.running(8000) is None


def test_drain():
    async def drained():
        pool = Pool.__new__(Pool)
        pool.running = 1
        assert not await pool.drain(0.05)
        asyncio.get_running_loop().call_later(0.05, setattr, pool, "running", 0)
        assert await pool.drain(5)

    asyncio.run(drained())
