"""Tokenise documents once into a memory-mapped file, and split them into training and held-out documents."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np

from ..codecs.text import Text
from .order import Packed, Stream
from .sources import Document, read

LAYOUT = "1"  # part of the cache key: raise it when the files below change
SOME = 4_000_000  # characters tokenised at a time
CHUNK = (512, 16_384)  # least and most characters of the chunks of a lone document
Unit = Literal["tokens", "characters"]
"""What shares of the text are counted in. Characters do not depend on a tokenizer, which can then be trained on one
side; tokens are what the models were split by that say nothing of it."""
StreamT = TypeVar("StreamT", bound=Stream, covariant=True)


@dataclass(frozen=True)
class Corpus(Generic[StreamT]):
    """The two sides of the data; no document is on both."""

    train: StreamT
    held_out: StreamT
    names: list[str]  # of all documents
    folder: Path | None = None  # where its files lie

    @property
    def tokens(self) -> int:
        return self.train.tokens + self.held_out.tokens


def prepare(
    sources: str | Sequence[str],
    text: Text,
    *,
    held_out: float = 0.02,
    seed: int = 0,
    field: str = "text",
    close: bool = False,
    by: Unit = "tokens",
    cache: str | os.PathLike[str] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Corpus[Packed]:
    """Tokenise `sources` (see `read`), or find them tokenised, and hold out about this share of the text.

    A document is its tokens after `text.start_id`, and before the end-of-text token where that is another token, or
    always with `close`. A lone document is first divided at ends of lines into about 200 chunks, which are then the
    documents. Equal documents go to the same side, at least one document to each (`held_out=0` holds out nothing).
    `by` says whether the share is counted in tokens or in characters.
    The files lie under `cache`, by default $UNVEIL_CACHE/data or ~/.cache/unveil/data, in a folder named by a hash of
    contents, names and tokenizer. `report` is told characters done and characters in all while it works.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"the held-out share lies in [0, 1), not {held_out}")
    root = default_cache() if cache is None else Path(cache)
    key, characters = _key(_documents(sources, field), text, close)
    folder = root / key
    if not _whole(folder):
        _tokenise(_documents(sources, field), text, close, folder, sum(characters), report)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    data = np.memmap(folder / "tokens.bin", dtype=about["dtype"], mode="r")
    offsets, digests = np.load(folder / "offsets.npy"), np.load(folder / "digests.npy")
    sizes = np.diff(offsets) if by == "tokens" else np.array(characters)
    away = split([bytes(row) for row in digests], sizes, held_out, seed)
    names = about["names"]
    train, rest = (Packed(data, offsets, names, np.flatnonzero(side)) for side in (~away, away))
    return Corpus(train, rest, names, folder)


def training_texts(
    sources: str | Sequence[str], *, held_out: float = 0.02, seed: int = 0, field: str = "text"
) -> Iterator[str]:
    """The documents that `prepare` does not hold out by characters: what a new tokenizer may read."""
    found = [(_digest(document, document.text), len(document.text)) for document in _documents(sources, field)]
    away = split([content for content, _ in found], np.array([size for _, size in found]), held_out, seed)
    return (document.text for document, held in zip(_documents(sources, field), away, strict=True) if not held)


def default_cache() -> Path:
    return Path(os.environ.get("UNVEIL_CACHE", "~/.cache/unveil")).expanduser() / "data"


def digest(*parts: str) -> bytes:
    """16 bytes that stand for these texts."""
    made = blake2b(digest_size=16)
    for part in parts:
        made.update(f"{len(part)}:".encode() + part.encode())
    return made.digest()


def split(digests: Sequence[bytes], sizes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) True for the documents held out: in the order of a hash of seed and content until their share is reached.

    Equal documents stay together. ValueError when there are fewer than two different documents.
    """
    away = np.zeros(len(digests), dtype=bool)
    if share == 0:
        return away
    groups: dict[bytes, list[int]] = {}
    for i, content in enumerate(digests):
        groups.setdefault(blake2b(content, digest_size=16, key=str(seed).encode()).digest(), []).append(i)
    if len(groups) < 2:
        raise ValueError(
            "held-out text needs at least two different documents, and there is one: give more text or hold out 0"
        )
    target, held = share * float(sizes.sum()), 0
    weight = {mark: int(sizes[members].sum()) for mark, members in groups.items()}
    taken: list[bytes] = []
    for mark in sorted(groups)[:-1]:
        if held < target and weight[mark] <= target:  # a larger one would leave too little to train on
            taken.append(mark)
            held += weight[mark]
    for mark in taken or [min(sorted(groups), key=weight.__getitem__)]:
        away[groups[mark]] = True
    return away


def _documents(sources: str | Sequence[str], field: str) -> Iterator[Document]:
    """What `read` gives; a lone document as its chunks."""
    found = read(sources, field=field)
    first = list(islice(found, 2))
    if len(first) > 1:
        yield from chain(first, found)
        return
    alone = first[0]
    least, most = CHUNK
    for i, piece in enumerate(chunks(alone.text, min(max(len(alone.text) // 200, least), most))):
        yield Document(f"{alone.name}#{i}", piece)


def chunks(text: str, size: int) -> Iterator[str]:
    """Pieces of at most `size` characters, cut after the last end of line that fits, else after the last space."""
    start = 0
    while start < len(text):
        stop = start + size
        if stop < len(text):
            cut = text.rfind("\n", start, stop) + 1 or text.rfind(" ", start, stop) + 1
            stop = cut or stop
        if piece := text[start:stop].strip("\n"):
            yield piece
        start = stop


def _key(documents: Iterable[Document], text: Text, close: bool) -> tuple[str, list[int]]:
    """The folder's name, and how many characters each document has."""
    made, characters = blake2b(f"{LAYOUT} {text.fingerprint} {close}".encode(), digest_size=16), []
    for document in documents:
        made.update(_digest(document, document.name, document.text))
        characters.append(len(document.text))
    return made.hexdigest(), characters


def _digest(document: Document, *parts: str) -> bytes:
    """`digest` of these parts of the document, or ValueError when it is not text."""
    try:
        return digest(*parts)
    except UnicodeEncodeError as error:
        raise ValueError(f"{document.name} is not text: half a character at {error.start}") from error


def _whole(folder: Path) -> bool:
    """Is everything there, at the size it should have?"""
    if not all((folder / name).is_file() for name in ("about.json", "tokens.bin", "offsets.npy", "digests.npy")):
        return False
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return (folder / "tokens.bin").stat().st_size == about["tokens"] * np.dtype(about["dtype"]).itemsize


def _tokenise(
    documents: Iterator[Document],
    text: Text,
    close: bool,
    folder: Path,
    total: int,
    report: Callable[[int, int], None] | None,
) -> None:
    """Write the folder under another name, then rename it. `encode_many` works on all cores."""
    start, end = text.start_id, text.eos_id if close or text.eos_id != text.start_id else None
    front, back = ([] if mark is None else [mark] for mark in (start, end))
    dtype = np.dtype(np.uint16 if text.vocab <= 1 << 16 else np.uint32)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    names: list[str] = []
    digests: list[bytes] = []
    lengths: list[int] = []
    done = 0
    try:
        with open(draft / "tokens.bin", "wb") as file:
            while some := _some(documents):
                for document, ids in zip(some, text.encode_many([d.text for d in some]), strict=True):
                    ids = [*front, *ids, *back]
                    file.write(np.array(ids, dtype=dtype).tobytes())
                    names.append(document.name)
                    digests.append(digest(document.text))
                    lengths.append(len(ids))
                    done += len(document.text)
                if report:
                    report(done, total)
        np.save(draft / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
        np.save(draft / "digests.npy", np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1))
        about = {"dtype": dtype.name, "tokens": sum(lengths), "characters": done, "names": names}
        (draft / "about.json").write_text(json.dumps(about), encoding="utf-8")
        if folder.exists():
            if _whole(folder):  # another process was faster
                return
            shutil.rmtree(folder)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _some(documents: Iterator[Document]) -> list[Document]:
    """The next documents, until they are SOME characters."""
    found, size = [], 0
    while size < SOME and (document := next(documents, None)) is not None:
        found.append(document)
        size += len(document.text)
    return found
