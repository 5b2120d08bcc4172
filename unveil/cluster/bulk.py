"""A job of many rows on Ray Data: actors with a model each answer its shards, and this process writes them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from .. import bulk, hub
from ..bulk import Answering, Job, Row

T = TypeVar("T", bound=NamedTuple)
RETRIES = 3  # how often a shard is begun again after its actor has died; then its rows are tried one by one
IN_FLIGHT = 2  # shards that an actor has been given, so that it need not wait for the next


@dataclass(frozen=True)
class Pool:
    """The actors: how many, growing from `least` to `most` with the work, and what each one reserves."""

    least: int = 1
    most: int | None = None  # None: as many as the cluster has room for
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self):
        if not 1 <= self.least <= (self.most or self.least):
            raise ValueError(f"a pool grows from at least 1 actor to no fewer, got {self.least} to {self.most}")
        if not (self.cpus >= 0 and self.gpus >= 0 and self.cpus + self.gpus > 0):
            raise ValueError(f"an actor reserves a part of a CPU or GPU, got {self.cpus} CPUs and {self.gpus} GPUs")

    def room(self) -> int:
        """How many such actors the cluster has room for as it is now."""
        there = ray.cluster_resources()
        return int(min(there.get(name, 0.0) / each for name, each in (("CPU", self.cpus), ("GPU", self.gpus)) if each))

    def fitted(self) -> ActorPoolStrategy:
        """The pool as Ray Data takes it. ValueError where the cluster has no room for its least."""
        room = self.room()
        if room < self.least:
            there = ray.cluster_resources()
            raise ValueError(
                f"{self.least} actors of {self.cpus:g} CPUs and {self.gpus:g} GPUs do not fit the "
                f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs that Ray has"
            )
        most = self.most or room
        return ActorPoolStrategy(min_size=self.least, max_size=most, max_tasks_in_flight_per_actor=IN_FLIGHT)


class Piece(NamedTuple):
    """A shard on its way to an actor, or one row of it."""

    number: int
    place: int  # of the row in its shard; -1 for a whole shard
    rows: bytes


class Answered(NamedTuple):
    """A piece on its way back."""

    number: int
    place: int
    answers: bytes = b""
    errors: bytes = b""
    refused: str = ""  # why the actor cannot answer any
    ended: int = 0  # how many actors have died at it, if it is given up


class Attempts:
    """How often each piece was begun, by whatever actor: its second time is the first one's death."""

    def __init__(self):
        self.begun: Counter[tuple[int, int]] = Counter()

    def begin(self, number: int, place: int) -> int:
        """How often it was begun before."""
        self.begun[number, place] += 1
        return self.begun[number, place] - 1


class Engine:
    """What an actor holds: a loaded model, or the reason why there is none."""

    def __init__(self, job: Job, model: str, device: str, threads: int, attempts: Any):
        self.refused, self.attempts = "", attempts
        torch.set_num_threads(threads)
        try:
            network, text = hub.load(model, device=device)
            self.answering = Answering(network, text, job)
        except (OSError, ValueError) as error:
            self.refused = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One piece, as Ray Data hands it over: a column for each field."""
        return packed([self.answered(piece) for piece in unpacked(Piece, batch)])

    def answered(self, piece: Piece) -> Answered:
        back = Answered(piece.number, piece.place)
        if self.refused:
            return back._replace(refused=self.refused)
        before: Any = ray.get(self.attempts.begin.remote(piece.number, piece.place))
        if before > RETRIES:
            return back._replace(ended=before)
        answers, errors = self.answering.answered(bulk.decode(piece.rows))
        return back._replace(answers=bulk.encode(answers), errors=bulk.encode(errors))


def unpacked(kind: type[T], batch: Any) -> Iterator[T]:
    return map(kind, *(batch[name].tolist() for name in kind._fields))


def packed(found: Sequence[Answered]) -> dict[str, Any]:
    return {name: [getattr(each, name) for each in found] for name in Answered._fields}


def spread(
    job: Job,
    rows: Callable[[], Iterable[Row]],
    out: Path,
    *,
    model: str | None = None,
    device: str = "cpu",
    pool: Pool | None = None,
    report: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Do what is missing of a job on the Ray of `connection.joined`: rows answered now, and rows that could not be.

    The same shards with the same content as `bulk.local`, in whatever order they are finished. A shard whose actor dies
    is begun again, elsewhere if need be; after `RETRIES` times its rows are tried one by one, and a row that still
    takes its actors with it is set aside like any other that cannot be answered. `rows()` is read again where that
    happens. `model` is where the actors find it, if not under the job's own name; `report` is as for `bulk.local`.

    ValueError, with nothing written, for what the actors refuse, for a folder of another job and for a pool that does
    not fit. ConnectionError when Ray itself fails; what is written stays.
    """
    bulk.begun(out, job)
    done = failed = 0
    fatal: set[int] = set()  # the shards that no actor survived
    work = Work(job, str(model or job.model), device, pool or Pool())

    def written(number: int, answers: bytes, errors: bytes) -> None:
        nonlocal done, failed
        bulk.claim(out, job)
        bulk.keep(out, number, answers, errors)
        done, failed = done + answers.count(b"\n"), failed + errors.count(b"\n")
        if report:
            report(done, failed)

    for found in work.on(Piece(shard.number, -1, bulk.encode(shard.rows)) for shard in left(job, rows, out)):
        if found.ended:
            fatal.add(found.number)
        else:
            written(found.number, found.answers, found.errors)
    if fatal:
        for shard in singly(work, [each for each in left(job, rows, out) if each.number in fatal]):
            written(*shard)
    return done, failed


def singly(work: Work, shards: Sequence[bulk.Shard]) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, answers and errors of shards that no actor survived, their rows answered alone."""
    rows = {(shard.number, place): row for shard in shards for place, row in enumerate(shard.rows)}
    sizes, back = {shard.number: len(shard.rows) for shard in shards}, {shard.number: {} for shard in shards}
    for found in work.on(Piece(*key, bulk.encode([row])) for key, row in rows.items()):
        if found.ended:
            lost = RuntimeError(f"the process that answers this row ended, {found.ended} times")
            found = found._replace(errors=bulk.encode([bulk.reason(rows[found.number, found.place], lost)]))
        back[found.number][found.place] = found
        if len(back[found.number]) == sizes[found.number]:
            whole = [each for _, each in sorted(back.pop(found.number).items())]
            yield found.number, b"".join(each.answers for each in whole), b"".join(each.errors for each in whole)


def left(job: Job, rows: Callable[[], Iterable[Row]], out: Path) -> Iterator[bulk.Shard]:
    return bulk.missing(out, rows(), job.shard)


@dataclass(frozen=True)
class Work:
    """How pieces are answered."""

    job: Job
    model: str
    device: str
    pool: Pool

    def on(self, pieces: Iterable[Piece]) -> Iterator[Answered]:
        """Each piece, as it comes back. ValueError where the actors cannot answer any."""
        for found in self.through(list(pieces)):
            if found.refused:
                raise ValueError(found.refused)
            yield found

    def through(self, pieces: Sequence[Piece]) -> Iterator[Answered]:
        """The same pieces, through Ray Data. One block is one piece, so no more than that is lost with an actor."""
        if not pieces:
            return
        settings()
        threads = max(int(self.pool.cpus), 1)
        attempts = ray.remote(Attempts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        items = [piece._asdict() for piece in pieces]
        answered = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Engine,
            fn_constructor_args=(self.job, self.model, self.device, threads, attempts),
            batch_size=None,
            batch_format="numpy",
            compute=self.pool.fitted(),
            num_cpus=self.pool.cpus,
            num_gpus=self.pool.gpus,
        )
        try:
            for batch in answered.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                yield from unpacked(Answered, batch)
        except RayError as error:
            reason = str(error).strip().split("\n")[-1]
            raise ConnectionError(f"Ray gave the job up ({reason}); what is written stays, run it again") from error


def settings() -> None:
    """Ray Data for a job of this kind: actors may die as they begin, and only this process speaks."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = RETRIES
    context.actor_init_retry_on_errors = True
    context.actor_init_max_retries = RETRIES
