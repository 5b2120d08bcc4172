"""The HTTP side of the engine's process: starts it, speaks with it, and starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from .journal import Journal, say
from .messages import Admitted, Cancel, Done, Drain, Drained, Event, Load, Order, Ready, Refusal, Step, Submit
from .messages import line as spelled
from .messages import read as understood

CHUNK = 1 << 18  # bytes taken from the pipe at once
LONGEST = 1 << 26  # bytes; no event comes near it
DEATHS, MINUTE = 3, 60.0  # so many within so many seconds, and it is not started again
PAUSE = 0.25  # seconds before the first new start, four times as many before the next
# Threads that spin while they wait for each other starve whoever shares the cores with them, which is this process.
# For a millisecond they may (GNU OpenMP: so many turns), which takes them from product to product within a pass and
# mostly to the next pass, where waking them took a sixth of the throughput; then they sleep.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "100000"}
IDLE = Load(waiting=0, running=0, memory=0, kept=0, rounds=0, passes=0, tokens=0, reused=0)


class Lost(Exception):
    """The request will not be answered: the engine's process is gone or going."""


class Behind(Lost):
    """The request was given up because its reader left too much unread."""


class Full(Exception):
    """As many requests wait as may wait; `wait` estimates the seconds until those have left the queue."""

    def __init__(self, waiting: int, wait: float):
        super().__init__(f"the queue is full: {waiting} requests wait; try again in {wait:.0f} s")
        self.wait = wait


class Stream:
    """The events of one request: an asynchronous iterator of Admitted, Step and Done that ends when every row is done.

    Iterating raises ValueError where the engine refuses the request, Lost where its process goes away. Closing it
    early, best by `async with`, cancels the request.
    """

    def __init__(self, link: Link, order: Submit):
        self.link, self.order = link, order
        self.left = set(range(len(order.rows)))  # rows that are not done
        self.queued = True
        self.events: deque[tuple[Event, int]] = deque()
        self.held = 0  # bytes of the events that nobody has read
        self.error: Exception | None = None
        self.reader: asyncio.Future[None] | None = None  # done when there is news for whoever waits

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        while not self.events:
            if self.error is not None:
                raise self.error
            if not self.left:
                self.close()
                raise StopAsyncIteration
            self.reader = asyncio.get_running_loop().create_future()
            await self.reader
        event, size = self.events.popleft()
        self._hold(-size)
        return event

    @property
    def ready(self) -> bool:
        """Is there an event already?"""
        return bool(self.events)

    def cancel(self, row: int | None = None) -> None:
        """Write no more of a row, or of any; the rows still end with Done."""
        if self.left if row is None else row in self.left:
            self.link.send(Cancel(self.order.id, row))

    def close(self) -> None:
        """Nobody reads any further: what is not done is cancelled."""
        if self.link.streams.pop(self.order.id, None) is not None:
            self.cancel()
        self._forget()
        self.error = self.error or Lost("the stream is closed")
        self._wake()

    async def aclose(self) -> None:
        """`close`, under the name that asynchronous generators give it."""
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Called by the link

    def put(self, event: Admitted | Step | Done, size: int) -> None:
        """One more event for the reader; `size` bytes."""
        if isinstance(event, Admitted):
            self.queued = False
        elif event.row not in self.left:
            raise ValueError(f"an event speaks of the row {event.row} of {self.order.id!r}, which is not being written")
        elif isinstance(event, Done):
            self.left.discard(event.row)
        self.events.append((event, size))
        self._hold(size)
        self._wake()

    def fail(self, error: Exception) -> None:
        """The reader gets the error next, whatever else waits for it."""
        self.error = error
        self.link.streams.pop(self.order.id, None)
        self._forget()
        self._wake()

    def _wake(self) -> None:
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    def _forget(self) -> None:
        self._hold(-self.held)
        self.events.clear()

    def _hold(self, size: int) -> None:
        self.held += size
        self.link.held += size


class Link:
    """One engine in a process of its own.

    `command` starts it; it speaks `messages` over its standard input and output. `queue` is how many requests may
    wait to be admitted, `backlog` the bytes of events that all readers together may leave unread: beyond it, the
    request of the slowest is given up.
    """

    ready: Ready  # of the engine started last; there after `start`

    def __init__(
        self, command: Sequence[str], *, queue: int = 256, backlog: int = 1 << 25, journal: Journal | None = None
    ):
        self.command, self.queue, self.backlog = list(command), queue, backlog
        self.journal = journal or Journal()
        self.streams: dict[str, Stream] = {}
        self.held = 0
        self.alive = False
        self.closing = False
        self.restarts = 0
        self.load = IDLE
        self.process: asyncio.subprocess.Process | None = None
        self.rest = b""  # of a line that is not whole yet
        self.deaths: deque[float] = deque(maxlen=DEATHS)
        self.admissions: deque[float] = deque(maxlen=64)
        self.drained = asyncio.Event()
        self.lost = asyncio.get_running_loop().create_future()  # the reason, once there is no hope left
        self.keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model. ValueError in the engine's own words where it cannot be, Lost where the process dies."""
        await self._launch()
        self.keeper = asyncio.create_task(self._keep())

    @property
    def waiting(self) -> int:
        """Requests that the engine has not admitted."""
        return sum(stream.queued for stream in self.streams.values())

    @property
    def running(self) -> int:
        """Requests admitted and not finished."""
        return sum(not stream.queued and bool(stream.left) for stream in self.streams.values())

    def submit(self, order: Submit) -> Stream:
        """Ask for a request to be answered. Full where too many wait, Lost where there is no engine to ask."""
        if self.closing:
            raise Lost("the server is shutting down")
        if not self.alive:
            raise Lost("the engine is being started again")
        if order.id in self.streams:
            raise ValueError(f"the request {order.id!r} is there already: ids are used once")
        if (waiting := self.waiting) >= self.queue:
            raise Full(waiting, self._patience(waiting))
        stream = self.streams[order.id] = Stream(self, order)
        self.send(order)
        return stream

    def _patience(self, waiting: int) -> float:
        """Seconds in which as many requests as wait now were admitted lately; a guess from 1 to 60."""
        if len(self.admissions) < 2:
            return 5.0
        pace = (time.monotonic() - self.admissions[0]) / len(self.admissions)
        return min(max(waiting * pace, 1.0), 60.0)

    def send(self, order: Order) -> None:
        """Say something to the engine. It is not waited for: what may pile up is bounded by the queue."""
        if self.alive and self.process is not None and self.process.stdin is not None:
            self.process.stdin.write(spelled(order))

    async def drain(self, seconds: float) -> bool:
        """Take nothing more and wait until everything taken is finished. False when that takes longer: what is not
        finished then is given up.
        """
        self.send(Drain())
        self.closing = True
        if not self.alive:
            return not self.streams
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.drained.wait()
        self._fail(Lost("the server is shutting down"))
        return self.drained.is_set()

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.closing = True
        if self.keeper is not None:
            self.keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.keeper
        self._fail(Lost("the server has stopped"))
        self.alive = False
        if self.process is not None:
            if self.process.stdin is not None:
                self.process.stdin.close()  # the end of its input tells it to stop
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self.process.wait()
            await self._bury(self.process)

    # The process

    async def _launch(self) -> None:
        """Start the process and wait until it is ready."""
        self.rest = b""
        # A session of its own: an interrupt from the keyboard is for the server, which lets the engine finish.
        self.process = process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=CHUNK,
            env={**({} if WAITING.keys() & os.environ.keys() else WAITING), **os.environ},
        )
        event = None
        try:
            for each in await self._hear(process):
                if event is None:
                    event = understood(each)
                else:
                    self._take(each)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            await self._bury(process)
            raise Lost("the engine's process does not speak as it should") from error
        if isinstance(event, Refusal):
            await self._bury(process)
            raise ValueError(event.message)
        if not isinstance(event, Ready):
            raise Lost(f"{ending(await self._bury(process))} before its model was loaded")
        self.ready, self.alive = event, True
        self.journal.write("ready", pid=process.pid, model=event.name, device=event.device)

    async def _keep(self) -> None:
        """Listen for as long as the server runs; start the process again when it dies."""
        while not self.closing:
            process = self.process
            assert process is not None
            reason = ""
            if self.alive:
                reason = await self._listen(process)
            status = await self._bury(process)
            self.alive, self.load = False, IDLE
            if self.closing:
                self._fail(Lost(f"{ending(status)} while the server was shutting down"))
                self.drained.set()
                return
            reason = f"{ending(status)}{reason}"
            self._fail(Lost(reason))
            self._mourn(reason, status)
            if self.lost.done():
                return
            await asyncio.sleep(PAUSE * 4 ** (len(self.deaths) - 1))
            self.restarts += 1
            try:
                await self._launch()
            except (ValueError, OSError, Lost) as error:
                say(str(error))

    def _mourn(self, reason: str, status: int) -> None:
        """Tell of a death, and give up after too many."""
        now = time.monotonic()
        self.deaths.append(now)
        while now - self.deaths[0] > MINUTE:
            self.deaths.popleft()
        self.journal.write("died", status=status, deaths=len(self.deaths))
        if len(self.deaths) == DEATHS:
            self.lost.set_result(f"{reason}; that is {DEATHS} times within {MINUTE:.0f} s, so it is not started again")
            self.journal.write("gave up", status=status)
        else:
            say(f"{reason}; starting it again")

    async def _listen(self, process: asyncio.subprocess.Process) -> str:
        """Take events until the pipe ends or says something that cannot be; what was wrong then, or ""."""
        try:
            while lines := await self._hear(process):
                for each in lines:
                    self._take(each)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.journal.write("garbage", error=type(error).__name__)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return " after saying something that cannot be understood"
        return ""

    async def _hear(self, process: asyncio.subprocess.Process) -> list[bytes]:
        """The next whole lines; none at the end."""
        assert process.stdout is not None
        while chunk := await process.stdout.read(CHUNK):
            *whole, self.rest = (self.rest + chunk).split(b"\n")
            if len(self.rest) > LONGEST:
                raise ValueError("the line does not end")
            if whole:
                return whole
        return []

    async def _bury(self, process: asyncio.subprocess.Process) -> int:
        """Its exit status; it is killed unless it is ending by itself."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                return await process.wait()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()

    # What it says

    def _take(self, text: bytes) -> None:
        event = understood(text)
        if isinstance(event, Load):
            self.load = event
        elif isinstance(event, Drained):
            self.drained.set()
        elif isinstance(event, Admitted | Refusal | Step | Done):
            stream = self.streams.get(event.id)
            if stream is not None:  # else it was closed, and the engine did not know yet
                self._give(stream, event, len(text))
        else:
            raise ValueError(f"{type(event).__name__} is not said here")

    def _give(self, stream: Stream, event: Admitted | Refusal | Step | Done, size: int) -> None:
        if isinstance(event, Refusal):
            stream.fail(ValueError(event.message))
            return
        if isinstance(event, Admitted):
            self.admissions.append(time.monotonic())
        stream.put(event, size)
        if self.held > self.backlog:
            slowest = max(self.streams.values(), key=lambda each: each.held)
            slowest.cancel()
            slowest.fail(Behind("the answer was read too slowly, and what was left unread grew too large"))
            self.journal.write("behind", request=slowest.order.id)

    def _fail(self, error: Lost) -> None:
        """Every request in flight gets the error; those that are finished may still be read."""
        for stream in [each for each in self.streams.values() if each.left]:
            stream.fail(error)


def ending(status: int) -> str:
    """How a process ended."""
    if status >= 0:
        return f"the engine's process ended with status {status}"
    name = signal.Signals(-status).name if -status in {each.value for each in signal.Signals} else "unknown"
    return f"the engine's process was ended by signal {-status} ({name})"
