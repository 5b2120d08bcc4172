"""The link to the engine's process, and what becomes of requests when it, their readers or the disk fail."""

import asyncio
import json
import os
import signal
import time

import pytest
import scripted

from unveil.serve.journal import Journal
from unveil.serve.link import Behind, Full, Link, Lost
from unveil.serve.messages import Admitted, Done, Row, Step, Submit


def order(name: str, blanks: int = 4, rows: int = 1, decoder: str = "confidence") -> Submit:
    return Submit(name, [Row([0, *[scripted.MASK] * blanks], seed) for seed in range(rows)], decoder)


async def read(stream) -> list:
    async with stream:
        return [event async for event in stream]


def linked(test, folder, *words, **options):
    """Run a test's coroutine with a link to a scripted engine."""

    async def inside():
        link = Link(scripted.command(folder, *words), **options)
        await link.start()
        try:
            async with asyncio.timeout(20):
                return await test(link)
        finally:
            await link.stop()

    return asyncio.run(inside())


async def until(true, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def test_events_of_many_requests_reach_their_readers(tmp_path):
    async def test(link):
        assert link.ready == scripted.READY
        assert link.alive
        found = await asyncio.gather(*(read(link.submit(order(f"r{i}", i + 1, rows=i % 2 + 1))) for i in range(8)))
        for i, events in enumerate(found):
            assert isinstance(events[0], Admitted)
            assert {event.id for event in events} == {f"r{i}"}
            assert sum(isinstance(event, Step) for event in events) == (i + 1) * (i % 2 + 1)
            assert sum(isinstance(event, Done) for event in events) == i % 2 + 1
        assert not link.streams
        assert link.held == 0
        await until(lambda: link.load.running == 0 and link.load.tokens > 0)

    linked(test, tmp_path)


def test_a_refusal_is_the_engines_own_sentence(tmp_path):
    async def test(link):
        with pytest.raises(ValueError, match="no decoder called 'wrong'"):
            await read(link.submit(order("a", decoder="wrong")))
        assert len(await read(link.submit(order("b")))) == 6

    linked(test, tmp_path)


def test_a_closed_stream_frees_its_slot(tmp_path):
    async def test(link):
        streams = [link.submit(order(f"long{i}", 3000)) for i in range(scripted.SLOTS)]
        for stream in streams:
            await anext(stream)
        waiting = link.submit(order("short"))
        await until(lambda: link.load.waiting == 1)
        streams[0].close()
        assert len(await read(waiting)) == 6
        await until(lambda: link.load.running == 1)
        reader = asyncio.create_task(read(streams[1]))
        await asyncio.sleep(0.05)
        reader.cancel()
        await until(lambda: link.load.running == 0)
        assert not link.streams

    linked(test, tmp_path)


def test_the_queue_has_an_end(tmp_path):
    async def test(link):
        running = [link.submit(order(f"long{i}", 3000)) for i in range(scripted.SLOTS)]
        await until(lambda: link.running == scripted.SLOTS)
        queued = [link.submit(order(f"queued{i}")) for i in range(3)]
        with pytest.raises(Full, match="3 requests wait") as found:
            link.submit(order("one more"))
        assert 1 <= found.value.wait <= 60
        queued[0].close()
        queued[0] = link.submit(order("in its place"))
        for stream in running:
            stream.close()
        assert [len(await read(stream)) for stream in queued] == [6, 6, 6]

    linked(test, tmp_path, queue=3)


def test_a_slow_reader_is_given_up_and_blocks_nobody(tmp_path):
    async def test(link):
        slow = link.submit(order("slow", 3000, decoder="flood"))
        assert len(await read(link.submit(order("quick")))) == 6
        await until(lambda: not link.streams)
        assert link.held == 0
        with pytest.raises(Behind, match="read too slowly"):
            await anext(slow)
        await until(lambda: link.load.running == 0)

    linked(test, tmp_path, backlog=1 << 20)


@pytest.mark.parametrize("how", ["kill", "crash", "garbage", "nonsense"])
def test_a_death_is_told_at_once_and_survived(tmp_path, how, capfd):
    log = tmp_path / "log.jsonl"

    async def test(link):
        streams = [link.submit(order(f"r{i}", 3000)) for i in range(4)]
        await anext(streams[0])
        first = link.process.pid
        began = time.monotonic()
        if how == "kill":
            os.kill(first, signal.SIGKILL)
        else:
            streams.append(link.submit(order("nonsense", decoder=how)))
        for stream in streams:
            with pytest.raises(Lost, match="the engine's process"):
                await read(stream)
        assert time.monotonic() - began < 2
        with pytest.raises(Lost, match="started again"):
            link.submit(order("too early"))
        await until(lambda: link.alive)
        assert link.process.pid != first
        assert link.restarts == 1
        assert len(await read(link.submit(order("next")))) == 6

    linked(test, tmp_path, journal=Journal(log))
    events = [json.loads(text)["event"] for text in log.read_text().splitlines()]
    assert [event for event in events if event != "garbage"] == ["ready", "died", "ready"]
    assert "starting it again" in capfd.readouterr().err


def test_after_three_deaths_it_stays_down(tmp_path):
    async def test(link):
        os.kill(link.process.pid, signal.SIGKILL)
        reason = await link.lost
        assert "3 times within 60 s" in reason
        assert not link.alive
        with pytest.raises(Lost):
            link.submit(order("late"))

    linked(test, tmp_path, "fragile")


@pytest.mark.parametrize(
    ("word", "error", "sentence"),
    [("unloadable", ValueError, "there is no such model"), ("stillborn", Lost, "status 4 before its model")],
)
def test_a_model_that_cannot_be_loaded(tmp_path, word, error, sentence):
    async def test(link):
        raise AssertionError("it should not start")

    with pytest.raises(error, match=sentence):
        linked(test, tmp_path, word)


def test_draining_lets_what_runs_finish(tmp_path):
    async def test(link):
        streams = [link.submit(order(f"r{i}", 20)) for i in range(4)]
        await anext(streams[0])
        draining = asyncio.create_task(link.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(Lost, match="shutting down"):
            link.submit(order("late"))
        assert [len(events) for events in await asyncio.gather(*map(read, streams))] == [21, 22, 22, 22]
        assert await draining
        assert link.restarts == 0

    linked(test, tmp_path)


def test_draining_gives_up_in_the_end(tmp_path):
    async def test(link):
        stream = link.submit(order("long", 3000))
        await anext(stream)
        assert not await link.drain(0.1)
        with pytest.raises(Lost, match="shutting down"):
            await read(stream)

    linked(test, tmp_path)


def test_a_full_disk_drops_lines_of_the_log_and_no_more(capfd):
    journal = Journal("/dev/full")
    for _ in range(3):
        journal.write("request", status=200)
    assert journal.dropped == 3
    assert capfd.readouterr().err.count("no space left") == 1
    journal.close()
