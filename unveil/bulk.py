"""Many prompts to many answers, in shards that are whole or missing, so that a stopped job can be taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from .canvas import Canvas
from .codecs.spelling import Spelling
from .codecs.text import Text
from .denoiser import Denoiser
from .sample import Passes, prepare, writer
from .together import together
from .whole import put

ABOUT = "job.json"
POISON = (  # what a row can do to its own answer
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """What is asked, and how: whatever changes an answer or a shard. A folder belongs to one job."""

    model: str
    source: str  # a digest of the rows
    length: int = 64  # tokens to write
    decoder: str = "threshold"
    cache: str | None = None  # None: causal where that is exact, else recompute
    guide: str | None = None
    block: int | None = None  # None: the model's own, or one block
    steps: int | None = None
    chat: bool = False  # prompts go into the chat template; rows of messages always do
    seed: int = 0
    shard: int = 64  # rows that are decoded and written together

    def __post_init__(self):
        if self.length < 1 or self.shard < 1:
            raise ValueError(f"a job writes at least 1 token and 1 row a shard, got {self.length} and {self.shard}")


@dataclass(frozen=True)
class Shard:
    """Rows that follow each other in the source; `number` counts from 0."""

    number: int
    rows: tuple[Row, ...]


def identified(rows: Iterable[tuple[str, Row]]) -> Iterator[Row]:
    """The rows with an `id` each: their own, or where they stand. ValueError for one that comes twice."""
    known: set[str] = set()
    for name, row in rows:
        mark = row.get("id", name)
        if not isinstance(mark, str | int):
            raise ValueError(f"{name}: an id is a text or a whole number, not {json.dumps(mark, default=str)}")
        if str(mark) in known:
            raise ValueError(f"{name}: the id {mark} comes twice, and each answer is found by its id")
        known.add(str(mark))
        yield {**row, "id": mark}


def survey(rows: Iterable[Row]) -> tuple[str, int]:
    """What tells these rows from others, and how many they are."""
    found, number = blake2b(digest_size=16), 0
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        number += 1
    return found.hexdigest(), number


def begun(out: Path, job: Job) -> bool:
    """Is the folder this job's already? ValueError when it holds another job, or something else."""
    told = asdict(job)
    if (out / ABOUT).is_file():
        found = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        if apart := [f"{n} ({found.get(n)!r} there, {told[n]!r} here)" for n in told if found.get(n) != told[n]]:
            raise ValueError(f"{out} holds the shards of another job; it differs in {', '.join(apart)}")
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and is no folder of shards: give another name")
    return False


def claim(out: Path, job: Job) -> None:
    """Make the folder this job's, or find that it is. ValueError as in `begun`."""
    if not begun(out, job):
        out.mkdir(parents=True, exist_ok=True)
        put(out / ABOUT, json.dumps(asdict(job), indent=2).encode() + b"\n")


def missing(out: Path, rows: Iterable[Row], size: int) -> Iterator[Shard]:
    """The shards that are still to be written, in order."""
    left = iter(rows)
    for number in count():
        shard = Shard(number, tuple(islice(left, size)))
        if not shard.rows:
            return
        if not (out / answers_name(number)).is_file():
            yield shard


def answers_name(number: int) -> str:
    return f"part-{number:06d}.jsonl"


def errors_name(number: int) -> str:
    return f"errors-{number:06d}.jsonl"


def keep(out: Path, number: int, answers: bytes, errors: bytes) -> None:
    """Write a shard. The errors come first: it counts as done when its answers are there."""
    if errors:
        put(out / errors_name(number), errors)
    put(out / answers_name(number), answers)


def encode(rows: Iterable[Row]) -> bytes:
    """Lines of JSON, as they are written. What JSON has no word for becomes a text, half a letter its escape."""
    said = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    return "".join(said).encode("utf-8", "backslashreplace")


def decode(content: bytes) -> tuple[Row, ...]:
    """The rows that `encode` wrote."""
    return tuple(json.loads(line) for line in content.split(b"\n") if line)


class Answering:
    """A loaded model at work on shards; what it writes depends on the job and the shard alone."""

    def __init__(self, model: Denoiser, text: Text, job: Job):
        self.model, self.text, self.job = writer(model.eval()), text, job
        self.spelling = Spelling(text)
        look = self.model.attention
        self.block = look.block if job.block is None else job.block
        self.cache = job.cache or look.cache
        next(self.run(self.canvas([0], 0)))  # what the library will not decode is refused before a shard is begun

    def answered(self, rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
        """The rows with their `completion`, and those that could not be answered with their `error`."""
        ready: list[tuple[Row, list[int]]] = []
        errors: list[Row] = []
        for row in rows:
            try:
                ready.append((row, self.prompt(row)))
            except POISON as error:
                errors.append(reason(row, error))
        try:
            return [*self.decoded(ready)], errors
        except POISON:  # one of them, and nobody knows which
            answers = []
            for one in ready:
                try:
                    answers += self.decoded([one])
                except POISON as error:
                    errors.append(reason(one[0], error))
            return answers, errors

    def prompt(self, row: Row) -> list[int]:
        """A row's prompt as the model was trained to begin. ValueError for a row that has none, or too long a one."""
        text, job = self.text, self.job
        if "messages" in row:
            said = row["messages"]
            if not isinstance(said, list) or not said or not all(map(spoken, said)):
                raise ValueError('messages should be a list of {"role": ..., "content": ...}, both texts')
            ids = text.chat(said)
        elif not isinstance(row.get("prompt"), str):
            raise ValueError(f"expected a prompt as a text, or messages; its fields are {', '.join(sorted(row))}")
        elif job.chat:
            ids = text.chat([{"role": "user", "content": row["prompt"]}])
        else:
            ids = [*([] if text.start_id is None else [text.start_id]), *text.encode(row["prompt"])]
        limit = self.model.context_length
        if limit is not None and len(ids) + job.length > limit:
            raise ValueError(f"{len(ids)} tokens and {job.length} to write are more than the context of {limit}")
        return ids

    def decoded(self, ready: list[tuple[Row, list[int]]]) -> list[Row]:
        """Each on a canvas of its own, in the order they came; a row's draws are keyed by its id."""
        canvases = [self.canvas(ids, self.key(row)) for row, ids in ready]
        for _ in together(self.model, [(canvas, self.run(canvas)) for canvas in canvases]):
            pass
        answers = []
        for (row, ids), canvas in zip(ready, canvases, strict=True):
            written = canvas.rows()[0][len(ids) :].tolist()
            end = self.text.eos_id in written
            written = written[: written.index(self.text.eos_id)] if end else written
            completion = self.spelling.behind(self.before(row, ids), written)
            answers.append({**row, "completion": completion, "finish": "stop" if end else "length"})
        return answers

    def before(self, row: Row, ids: list[int]) -> list[int]:
        """What the answer goes on from; one to a conversation is a text of its own."""
        return [] if "messages" in row or self.job.chat else ids

    def key(self, row: Row) -> int:
        """A seed of the job's seed and the row's id."""
        content = f"{self.job.seed} {row['id']}".encode()
        return int.from_bytes(blake2b(content, digest_size=4).digest()) // 2

    def canvas(self, ids: list[int], seed: int) -> Canvas:
        device = next(self.model.parameters()).device
        prompt = torch.tensor(ids, dtype=torch.long, device=device)
        canvas = Canvas.answering([prompt], self.job.length, self.model.mask_id, torch.tensor([seed]))
        canvas.attention = self.model.attention
        return canvas

    def run(self, canvas: Canvas) -> Passes:
        job = self.job
        options = {"cache": self.cache, "guide": job.guide, "block": self.block, "steps": job.steps}
        return prepare(self.model, canvas, job.decoder, **options)


def spoken(turn: object) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def reason(row: Row, error: Exception) -> Row:
    return {**row, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def local(
    model: Denoiser,
    text: Text,
    job: Job,
    rows: Iterable[Row],
    out: Path,
    report: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Do what is missing of a job in this process: how many rows were answered now, and how many could not be.

    `report` is told both after every shard. ValueError, with nothing written, when `out` belongs to another job.
    """
    answering = Answering(model, text, job)
    claim(out, job)
    done = failed = 0
    for shard in missing(out, rows, job.shard):
        answers, errors = answering.answered(shard.rows)
        keep(out, shard.number, encode(answers), encode(errors))
        done, failed = done + len(answers), failed + len(errors)
        if report:
            report(done, failed)
    return done, failed


def totals(out: Path) -> dict[str, int]:
    """What a folder of shards holds."""
    counts = {}
    for name, pattern in (("rows", "part-*.jsonl"), ("errors", "errors-*.jsonl")):
        files = sorted(out.glob(pattern))
        counts[name] = sum(file.read_bytes().count(b"\n") for file in files)
        counts.setdefault("shards", len(files))
    return counts
