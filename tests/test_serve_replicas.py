"""Two replicas behind Ray Serve: the official client, a death of an engine and of a replica, new replicas, the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from talking import TOP, checkpoint

openai = pytest.importorskip("openai")
cluster = pytest.importorskip("unveil.serve.replicas.cluster")

HI = [{"role": "user", "content": "hello"}]
ENDLESS = {"extra_body": {"guide": "eos(policy='never')"}}


class Replicated:
    """`unveil serve --ray` in a process of its own."""

    def __init__(self, place: Path):
        self.family: list[tuple[int, str]] = []  # every process, once it was told to end
        self.place, self.folder = place, checkpoint(place / "talker")
        self.config = place / "serve.toml"
        self.settle(port=0)
        with open(place / "errors", "w") as told:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=told, cwd=TOP, env=self.env)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rpartition(":")[2])

    @property
    def errors(self) -> str:
        return (self.place / "errors").read_text()

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1"}

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "unveil", "serve", "--config", str(self.config), "--json"]

    def settle(self, **more: int | str) -> None:
        """Write the file that everything is in."""
        lines = {"model": str(self.folder), "ray": True, "replicas": "2", "busy": 4, "threads": 1, "memory": "64MB"}
        lines |= {"log": str(self.place / "log"), "drain": 60, "max_tokens": 500, **more}
        self.config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))

    def below(self) -> list[tuple[int, str]]:
        """Every process that came of it, with what it is called."""
        table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in table.splitlines()[1:]]
        found = {self.process.pid}
        for _ in range(6):
            found |= {int(pid) for pid, parent, _ in rows if int(parent) in found}
        return [(int(pid), name) for pid, _, name in rows if int(pid) in found and int(pid) != self.process.pid]

    def end(self) -> list[tuple[int, str]]:
        """Tell it to end, once; every process that there was."""
        if not self.family:
            self.family = self.below()
            self.process.terminate()
        return self.family

    def called(self, part: str) -> list[int]:
        return [pid for pid, name in self.below() if part in name]

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in (self.place / "log").read_text().splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Replicated(tmp_path_factory.mktemp("r"))
    yield found
    below = found.end()
    assert len(below) > 5
    try:
        assert found.process.wait(300) == 0, found.errors
        assert "Traceback" not in found.errors
        wait(lambda: not left(below))
        assert cluster.running(found.port) is None
    finally:
        print(found.errors)
        found.process.kill()
        found.process.stdout.close()
        for pid, _ in below:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as found:
        yield found


def left(processes: list[tuple[int, str]]) -> list[str]:
    found = [name for pid, name in processes if alive(pid)]
    print("left:", found)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait(until, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def complete(client, prompt="def f(x):", **more):
    return client.completions.create(model="talker", prompt=prompt, **{"max_tokens": 16, **more})


def test_the_client_gets_what_one_engine_says(server, client):
    assert [each.id for each in client.models.list().data] == ["talker"]
    whole = complete(client, temperature=1.0, seed=3, n=2, max_tokens=40)
    said = {0: "", 1: ""}
    for chunk in complete(client, temperature=1.0, seed=3, n=2, max_tokens=40, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.text
    assert said == {each.index: each.text for each in whole.choices}
    chat = {"model": "talker", "messages": HI, "max_tokens": 12}
    found = client.chat.completions.create(**chat)
    pieces = list(client.chat.completions.create(stream=True, **chat))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == found.choices[0].message.content
    assert complete(client, suffix=" + 1", max_tokens=5).usage.completion_tokens == 5
    # The same beginning goes to the same replica, which has it computed.
    complete(client, prompt="hello world " * 8, max_tokens=4)
    again = complete(client, prompt="hello world " * 8, max_tokens=4)
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_errors_have_their_shape(server, client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4' here"):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.BadRequestError, match="the most here is 500"):
        complete(client, max_tokens=501)
    with pytest.raises(openai.BadRequestError, match="no decoder called 'nope'"):
        complete(client, stream=True, extra_body={"decoder": "nope"})
    wrong = httpx.post(
        f"{server.url}/v1/completions", content=b"{", timeout=60, headers={"content-type": "application/json"}
    )
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_json")
    text = httpx.post(f"{server.url}/v1/completions", content=b"{}", timeout=60)
    assert (text.status_code, text.headers["x-content-type-options"]) == (415, "nosniff")
    large = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x" * 2_000_000}, timeout=60)
    assert (large.status_code, list(large.json())) == (413, ["error"])
    host = httpx.get(f"{server.url}/v1/models", headers={"host": "evil.example"}, timeout=60)
    assert host.json()["error"]["code"] == "wrong_host"
    assert "unveil" in httpx.get(server.url, timeout=60).text
    assert httpx.get(f"{server.url}/health", timeout=60).json() == {"status": "ok"}


def metric(server, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=300).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def test_a_client_that_goes_away_frees_its_slot(server, client):
    assert metric(server, "unveil_replicas") == 2
    stream = complete(client, max_tokens=480, stream=True, **ENDLESS)
    next(iter(stream))
    assert metric(server, "unveil_running_requests") == 1
    stream.close()
    wait(lambda: metric(server, "unveil_running_rows") == 0)
    assert metric(server, "unveil_abandoned_requests_total") == 1


class Crowd:
    """Clients that ask one after the other, with and without streams, until they are told to stop."""

    def __init__(self, client, size: int = 2):
        self.client, self.over, self.failed, self.answered = client, threading.Event(), [], 0
        self.threads = [threading.Thread(target=self.ask, args=[number]) for number in range(size)]

    def ask(self, number: int) -> None:
        count = 0
        while not self.over.is_set():
            count += 1
            try:
                found = complete(self.client, prompt=f"{number} {count} def", seed=count, stream=bool(number % 2))
                if number % 2:
                    assert [chunk.choices[0].finish_reason for chunk in found][-1]
                self.answered += 1
            except openai.APIError as error:
                self.failed.append(error)

    def __enter__(self) -> Crowd:
        for each in self.threads:
            each.start()
        wait(lambda: self.answered > 4)
        return self

    def __exit__(self, *_: object) -> None:
        before = self.answered
        wait(lambda: self.answered > before + 4 or self.failed)
        self.over.set()
        for each in self.threads:
            each.join(300)


def test_a_dead_engine_costs_what_was_streaming_and_nothing_else(server, client):
    """Two requests that begin alike are on one engine: the stream breaks off, the other is answered elsewhere."""
    before = {pid: ticks(pid) for pid in server.called("unveil.serve.worker")}
    stream = iter(complete(client, max_tokens=480, stream=True, **ENDLESS))
    next(stream)
    with ThreadPoolExecutor() as threads:
        whole = threads.submit(complete, client, max_tokens=480, **ENDLESS)
        wait(lambda: any(ticks(pid) > spent + 5 for pid, spent in before.items()))
        os.kill(max(before, key=lambda pid: ticks(pid) - before[pid]), signal.SIGKILL)
        with pytest.raises(openai.APIError, match="engine"):
            list(stream)
        assert whole.result().usage.completion_tokens == 480
    wait(lambda: server.events().count("died") == 1)
    wait(lambda: server.events().count("ready") == 3)
    assert len(server.called("unveil.serve.worker")) == 2


def ticks(pid: int) -> int:
    """Of processor time, that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_dead_replica_comes_back(server, client):
    replicas = server.called(":ServeReplica:")
    assert len(replicas) == 2
    with Crowd(client) as crowd:
        os.kill(replicas[0], signal.SIGKILL)
        wait(lambda: len(set(server.called(":ServeReplica:")) - set(replicas)) == 1)
        wait(lambda: metric(server, "unveil_replicas") == 2)
    assert len(crowd.failed) <= 1, crowd.failed  # the stream that had begun
    assert metric(server, "unveil_up") == 2


def test_new_replicas_one_after_the_other(server, client):
    before = server.called("unveil.serve.worker")
    with pytest.raises(openai.BadRequestError, match="the most here is 500"):
        complete(client, max_tokens=501)
    server.settle(port=server.port, max_tokens=700)
    with Crowd(client) as crowd:
        done = subprocess.run(server.command, cwd=TOP, env=server.env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["replaced"]
    assert not crowd.failed
    wait(lambda: not [pid for pid in before if alive(pid)])
    assert len(server.called("unveil.serve.worker")) == 2
    assert complete(client, max_tokens=501).usage.completion_tokens <= 501


def test_what_waits_is_answered_before_the_end(server, client):
    stream = iter(complete(client, max_tokens=100, stream=True, **ENDLESS))
    next(stream)
    server.end()
    last = list(stream)[-1]
    assert last.choices[0].finish_reason == "length"
