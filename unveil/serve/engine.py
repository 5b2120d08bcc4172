"""Continuous batching: requests come and go between steps, and one round of passes serves all that run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from ..codecs.text import Text
from ..denoiser import Denoiser
from ..nn.grow import bare
from ..together import answers
from .cohort import Cohort, Member, Request
from .memory import Network, spare
from .messages import Admitted, Cancel, Done, Drained, Event, Load, Ready, Refusal, Submit
from .orders import Orders
from .prefixes import Prefill, Prefixes, settled
from .seats import seated
from .threads import Threads

FAULTS = (ValueError, RuntimeError, AssertionError, LookupError, TypeError, ArithmeticError, AttributeError, OSError)
TELL = 0.5  # seconds between two reports of the load
SHORT = 32  # positions of a prompt that are computed with the first prediction rather than before it
CHUNK = 1024  # positions of prompts computed in one round: what runs beside them is not held up for longer


class Engine:
    """All requests of one model. Synchronous: `step` makes one round of passes and says what came of it.

    Requests are admitted in the order they came, as soon as what the first in the queue may take at most is free:
    nobody overtakes, so a large request waits for those before it to finish and for nobody who came later.
    """

    def __init__(
        self,
        model: Denoiser,
        *,
        name: str,
        start_id: int | None = None,
        memory: int | None = None,
        text: Text | None = None,
        threads: int | None = None,
    ):
        """`memory` is bytes for keys, values and logits of requests; None: a share of what the machine has free.

        `threads` of the processor are used where they are faster than one; None: their number is left as it is.
        """
        parameter = next(model.parameters())
        self.model, self.name, self.start_id, self.text = model, name, start_id, text
        self.device, self.dtype = parameter.device, str(parameter.dtype).removeprefix("torch.")
        self.network = Network.of(model)
        self.memory = spare(self.device) if memory is None else memory
        self.queue: deque[Request] = deque()
        self.requests: dict[str, Request] = {}  # admitted and not done
        self.fresh: list[Member] = []  # rows that begin at the next step
        self.prefills: list[Prefill] = []
        self.cohorts: list[Cohort] = []
        self.tasks: dict[Member, Prefill | Cohort] = {}  # where each row is
        attention = model.attention
        self.prefixes = Prefixes((attention.kind == "block" and attention.block) or 1, self.network.position)
        self.orders = Orders(model, self.network, self.memory, text)
        self.events: list[Event] = []  # to be told by the next step
        self.parameters = sum(p.numel() for p in bare(model).parameters())
        self.threads = Threads(threads) if threads and threads > 1 else None
        self.rounds = self.passes = self.tokens = self.reused = 0
        self.draining = False
        self.last = 0.0  # when the load was told

    def ready(self) -> Ready:
        attention = self.model.attention
        return Ready(
            name=self.name,
            mask_id=self.model.mask_id,
            eos_id=self.model.eos_id,
            start_id=self.start_id,
            attention=attention.kind,
            block=attention.block,
            context=self.model.context_length,
            vocab=self.network.vocab,
            parameters=self.parameters,
            device=self.device.type,
            dtype=self.dtype,
            memory=self.memory,
        )

    @property
    def idle(self) -> bool:
        """Has nothing to do and nothing to say?"""
        return not (self.queue or self.requests or self.events)

    @property
    def used(self) -> int:
        """Bytes set aside for what runs."""
        return sum(each.bytes for each in (*self.fresh, *self.prefills, *self.cohorts))

    # Orders

    def submit(self, order: Submit) -> None:
        """Put a request into the queue; one that is wrong is refused by the next step."""
        try:
            if self.draining:
                raise ValueError("the server is about to stop and takes no new requests")
            if order.id in self.requests or any(each.id == order.id for each in self.queue):
                raise ValueError(f"a request called {order.id!r} is running already; expected an id of its own")
            request = self.orders.request(order)
        except FAULTS as error:
            self.events.append(Refusal(order.id, sentence(error)))
            return
        self.queue.append(request)

    @torch.inference_mode()
    def cancel(self, order: Cancel) -> None:
        """Forget a request or one row of it. What is not known, or is done, is no mistake."""
        now = time.perf_counter()
        for request in [each for each in self.queue if each.id == order.id]:
            gone = [m for m in request.members if order.row is None or m.index == order.row]
            request.members = [member for member in request.members if member not in gone]
            waited = now - request.arrived
            self.events += [Done(request.id, m.index, "cancelled", 0, 0.0, waited) for m in gone]
            if not request.members:
                self.queue.remove(request)
        if order.id in self.requests:
            for member in list(self.requests[order.id].members):
                if order.row is None or member.index == order.row:
                    self.dismiss(member, "cancelled")

    def drain(self) -> None:
        """Take nothing more."""
        self.draining = True

    # One round

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One pass for everything that runs, and what came of it."""
        self.admit()
        self.gather()
        for prefill in self.prefills:
            prefill.plan(max(CHUNK // len(self.prefills), SHORT), self.device)
        tasks = [task for task in (*self.prefills, *self.cohorts) if task.asked is not None]
        if tasks:
            self.rounds += 1
            for task, logits in zip(tasks, self.computed(tasks), strict=True):
                if logits is None:
                    continue
                if isinstance(task, Prefill):
                    self.fill(task)
                else:
                    self.serve(task, logits)
        return self.report()

    def admit(self) -> None:
        """Let requests in, in order, as long as there is room for the first of the queue."""
        while self.queue:
            request = self.queue[0]
            wanted = sum(member.bytes for member in request.members)
            if self.used + wanted > self.memory:
                return
            self.queue.popleft()
            request.admitted = time.perf_counter()
            self.requests[request.id] = request
            for member in request.members:
                self.prepare(member)
            self.prefixes.shrink(self.memory - self.used)
            self.events.append(Admitted(request.id, [member.reused for member in request.members]))

    def prepare(self, member: Member) -> None:
        """Let a row begin at once, or compute its prompt first, less what was computed for others."""
        attention = self.model.attention
        if not member.reuses:
            self.fresh.append(member)
            return
        stop = settled(member, attention)
        prompt = member.tokens[:stop]
        store, member.reused = self.prefixes.begin(prompt, stop)
        self.reused += member.reused
        if stop - member.reused <= SHORT:
            member.seat = replace(member.seat, store=store, known=member.reused)
            self.fresh.append(member)
            return
        for prefill in self.prefills:
            if prefill.at == member.reused and prefill.prompt == prompt:
                prefill.members.append(member)
                self.tasks[member] = prefill
                return
        prefill = Prefill(member, attention, store, member.reused, stop)
        self.prefills.append(prefill)
        self.tasks[member] = prefill

    def gather(self) -> None:
        """Begin cohorts of the rows that are new and of those that have finished a block; others of these go on."""
        found = seated(self.fresh, self.cohorts, self.model.attention)
        self.fresh = found.held
        moved = {id(member) for group in (*found.groups, found.held) for member in group}
        self.cohorts = [each for each in self.cohorts if not any(id(member) in moved for member in each.members)]
        for member in found.held:
            self.tasks.pop(member, None)
        for cohort in found.going:
            self.proceed(cohort)
        for members in found.groups:
            self.begin(members)

    def proceed(self, cohort: Cohort) -> None:
        """Ask for the next pass."""
        try:
            if not cohort.proceed():
                self.hear(cohort)
        except FAULTS as error:
            self.fail(cohort, error)

    def begin(self, members: Sequence[Member]) -> None:
        try:
            cohort = Cohort(self.model, members, self.orders.decoder(members[0].request))
            going = cohort.proceed()
        except FAULTS as error:
            if len(members) == 1:
                self.dismiss(members[0], "failed", sentence(error))
            for member in members[1:] and members:
                member.again()
                self.begin([member])
            return
        for member in members:
            self.tasks[member] = cohort
        self.cohorts.append(cohort)
        if not going:
            self.hear(cohort)

    def computed(self, tasks: Sequence[Prefill | Cohort]) -> list[Tensor | None]:
        """The logits of each pass; None for those that failed."""
        asks = [task.asked for task in tasks if task.asked is not None]
        try:
            with self.threads.suited(asks) if self.threads else nullcontext():
                found, passes = answers(self.model, asks)
            self.passes += passes
            return list(found)
        except FAULTS:
            return [self.tried(task) for task in tasks]

    def tried(self, task: Prefill | Cohort) -> Tensor | None:
        """The logits of one pass by itself, to find out whose pass it was that failed."""
        assert task.asked is not None
        try:
            found, passes = answers(self.model, [task.asked])
            self.passes += passes
            return found[0]
        except FAULTS as error:
            self.fail(task, error)
            return None

    def fill(self, prefill: Prefill) -> None:
        """A part of a prompt is computed; with the last one its rows may begin."""
        if not prefill.hear():
            return
        self.prefills.remove(prefill)
        self.prefixes.keep(prefill.prompt, prefill.store, 0)
        for member in prefill.members:
            member.seat = replace(member.seat, store=prefill.store, known=prefill.stop)
            del self.tasks[member]
        self.fresh += prefill.members
        self.prefixes.shrink(self.memory - self.used)

    def serve(self, cohort: Cohort, logits: Tensor) -> None:
        """Hand a cohort its logits, and ask for its next pass."""
        try:
            if cohort.hear(logits):
                self.hear(cohort)
                cohort.sweep()
                if cohort.living and not cohort.rests and not cohort.proceed():
                    self.hear(cohort)
        except FAULTS as error:
            self.fail(cohort, error)

    def hear(self, cohort: Cohort) -> None:
        """Say what a step changed, and let go of rows that are done."""
        steps, done = cohort.told()
        self.tokens += sum(len(step.writes) for step in steps)
        self.events += steps
        for row, reason in done:
            member = cohort.members[row]
            assert member is not None
            kept = cohort.exact(member)
            if kept is not None:
                self.prefixes.keep(*kept)
            self.dismiss(member, reason)
        self.prefixes.shrink(self.memory - self.used)

    def fail(self, task: Prefill | Cohort, error: BaseException) -> None:
        """Dismiss a row whose pass or step failed. Of several each begins anew alone: it was the fault of one."""
        members = [member for member in task.members if member is not None]
        if len(members) == 1:
            self.dismiss(members[0], "failed", sentence(error))
            return
        if isinstance(task, Cohort):
            self.cohorts.remove(task)
        else:
            self.prefills.remove(task)
        for member in members:
            del self.tasks[member]
            member.again()
            self.fresh.append(member)

    def dismiss(self, member: Member, reason: str, message: str = "") -> None:
        """A row is done with."""
        request, task = member.request, self.tasks.pop(member, None)
        now = time.perf_counter()
        waited = request.admitted - request.arrived
        self.events.append(
            Done(request.id, member.index, reason, member.forwards, now - request.admitted, waited, message)
        )
        request.members.remove(member)
        if not request.members:
            del self.requests[request.id]
        if isinstance(task, Cohort):
            task.close(member)
            if not task.living:
                self.cohorts.remove(task)
            return
        if task is None:
            self.fresh = [other for other in self.fresh if other is not member]
            return
        task.members.remove(member)
        if not task.members:
            self.prefills.remove(task)

    def report(self) -> list[Event]:
        """What is to be told, and the load now and then."""
        now, idle = time.perf_counter(), not (self.queue or self.requests)
        found, self.events = self.events, []
        if (found and idle) or (not idle and now - self.last > TELL):
            self.last = now
            found.append(self.load())
        if self.draining and idle:
            found.append(Drained())
        return found

    def load(self) -> Load:
        running = sum(len(request.members) for request in self.requests.values())
        counts = self.rounds, self.passes, self.tokens, self.reused
        return Load(len(self.queue), running, self.used, self.prefixes.bytes, *counts)


def sentence(error: BaseException) -> str:
    """What went wrong, in one line."""
    words = " ".join(str(error.strerror if isinstance(error, OSError) else error).split())
    return words if isinstance(error, ValueError) else f"{type(error).__name__}: {words}"
