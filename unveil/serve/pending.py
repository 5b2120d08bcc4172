"""A request on its way: from the queue to its last token, its time limit, its client going away, and what it took."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.types import Receive

from .answer import Answer, Delta
from .errors import Gone, Problem, wrong
from .link import Behind, Full, Lost, Stream
from .messages import Admitted, Done, Event, Step
from .plan import Plan, Service

BEGUN = "X-Unveil-Begun"  # the header of an error that came when an engine was at it already


class Pending:
    """One request and its answers. `open` it, read `events` to the end, and `close` it in any case."""

    def __init__(self, service: Service, plan: Plan, began: float):
        """`began` is when the request came, by time.perf_counter."""
        self.service, self.plan, self.began = service, plan, began
        self.created = int(time.time())
        self.answers = [Answer(service.spelling, place, plan.stops) for place in plan.places]
        self.deadline = began + service.limits.timeout
        self.stream: Stream | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.reused: list[int] = []
        self.waits_for_first = True
        self.gone = self.late = self.counted = False

    @property
    def id(self) -> str:
        return self.plan.order.id

    @property
    def model(self) -> str:
        return self.plan.order.adapter or self.service.link.ready.name

    async def open(self) -> None:
        """Ask the engine and wait until it takes the request. Problem where it does not."""
        if self.gone:
            raise Gone
        try:
            self.stream = self.service.link.submit(self.plan.order)
        except Full as error:
            wait = max(1, math.ceil(error.wait))
            raise Problem(429, str(error), code="queue_full", headers={"Retry-After": str(wait)}) from None
        except Lost:
            raise self.lost() from None
        self.timer = asyncio.get_running_loop().call_later(self.deadline - time.perf_counter(), self.expire)
        event = await self.next()
        assert isinstance(event, Admitted)
        self.reused = event.reused

    async def begin(self, request: Request) -> None:
        """`open`, unless the client goes away before."""
        try:
            async with watched(request.receive, self.leave):
                await self.open()
        except (Problem, Gone, asyncio.CancelledError):
            self.close()
            raise

    async def events(self) -> AsyncIterator[list[tuple[Step | Done, Delta]]]:
        """Every event of rows that are being written, with what it makes certain of the row's answer.

        Those that have come by the time they are asked for are given together.
        """
        assert self.stream is not None
        more = True
        while more:
            found: list[tuple[Step | Done, Delta]] = []
            try:
                more = self.take(await self.next(), found)
                while more and self.stream.ready:
                    more = self.take(await self.next(), found)
            except Problem:
                if found:
                    yield found
                raise
            yield found
        self.count()

    def take(self, event: Event | None, found: list[tuple[Step | Done, Delta]]) -> bool:
        """Put an event with what it makes certain into `found`; False at the end. Problem where a row has failed."""
        assert self.stream is not None
        if isinstance(event, Step | Done):
            answer = self.answers[event.row]
            if answer.finish is not None:  # its end was seen here before the engine knew
                answer.forwards = max(answer.forwards, event.forwards)
            elif isinstance(event, Done):
                if event.reason in ("failed", "cancelled"):
                    raise self.failed(event)
                found.append((event, answer.close(event)))
            else:
                if self.waits_for_first and event.writes:
                    self.waits_for_first = False
                    self.service.metrics.first.observe(time.perf_counter() - self.began)
                found.append((event, answer.take(event)))
                if answer.finish is not None:
                    self.stream.cancel(event.row)
        return event is not None and any(answer.finish is None for answer in self.answers)

    async def next(self) -> Event | None:
        """The next event; None at the end. Problem where there will be none, Gone where nobody waits for it."""
        assert self.stream is not None
        try:
            return await anext(self.stream, None)
        except Behind as error:
            raise Problem(503, str(error), code="read_too_slowly") from None
        except Lost:
            if self.gone:
                raise Gone from None
            if self.late:
                seconds = self.service.limits.timeout
                raise Problem(504, f"the request took longer than {seconds:g} s", code="timeout") from None
            raise self.lost() from None
        except ValueError as error:
            raise wrong(" ".join(str(error).split())) from None

    def lost(self) -> Problem:
        """There is no engine to answer."""
        link = self.service.link
        reason = "the server is shutting down" if link.closing else "the engine stopped and is being started again"
        begun = {BEGUN: "true"} if self.reused else {}
        return Problem(503, reason, code="engine_unavailable", headers={"Retry-After": "2", **begun})

    def failed(self, event: Done) -> Problem:
        """The engine gave up on a row."""
        self.service.journal.write("failure", id=self.id, error="engine", reason=event.reason)
        return Problem(500, f"something went wrong here; the server's log knows it as {self.id}")

    def expire(self) -> None:
        """The time is over: its rows are cancelled now."""
        self.late = True
        self.close()

    def leave(self) -> None:
        """The client went away: its rows are cancelled now."""
        if not self.counted:
            self.service.metrics.left.inc()
        self.gone = True
        self.close()

    def close(self) -> None:
        """Nothing more is read."""
        if self.timer is not None:
            self.timer.cancel()
        if self.stream is not None:
            self.stream.close()

    # What it took

    @property
    def usage(self) -> dict:
        """Tokens and passes, all rows together. A prompt counts once, however many answers it has."""
        prompt, written = sum(self.plan.prompts), sum(answer.count for answer in self.answers)
        forwards = sum(answer.forwards for answer in self.answers)
        first = {place.prompt: row for row, place in reversed(list(enumerate(self.plan.places)))}
        reused = sum(self.reused[row] for row in first.values()) if self.reused else 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "forwards": forwards,
            "tokens_per_forward": round(written / forwards, 4) if forwards else 0.0,
            "prompt_tokens_details": {"cached_tokens": reused},
        }

    def count(self) -> None:
        """Add what it took to the server's counters, once."""
        if self.counted:
            return
        self.counted = True
        metrics, usage, seconds = self.service.metrics, self.usage, time.perf_counter() - self.began
        metrics.prompt_tokens.inc(usage["prompt_tokens"])
        metrics.tokens.inc(usage["completion_tokens"])
        metrics.forwards.inc(usage["forwards"])
        metrics.total.observe(seconds)
        if usage["forwards"]:
            metrics.rate.observe(usage["tokens_per_forward"])
        self.service.journal.write(
            "answer",
            id=self.id,
            rows=len(self.answers),
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            forwards=usage["forwards"],
            seconds=round(seconds, 4),
        )


@contextlib.asynccontextmanager
async def watched(receive: Receive, leave: Callable[[], None]) -> AsyncIterator[None]:
    """Call `leave` if the client goes away meanwhile."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def finished(pending: Pending, request: Request) -> None:
    """Wait for all answers; Gone where the client goes away before."""
    try:
        async with watched(request.receive, pending.leave):
            await pending.open()
            async for _ in pending.events():
                pass
    finally:
        pending.close()
