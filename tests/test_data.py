"""Reading documents, the tokenised corpus and the order of batches."""

import builtins
import json
import lzma
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unveil.codecs.text import Text
from unveil.codecs.train import train_tokenizer
from unveil.data import Packed, corpus, prepare, read
from unveil.data.order import shuffle

STORIES = [f"Story {i}: " + " ".join(str(i * k % 97) for k in range(5 + i % 40)) + "\n" for i in range(120)]


@pytest.fixture(scope="module")
def text() -> Text:
    return train_tokenizer(STORIES, 300)


@pytest.fixture(scope="module")
def two(text) -> Text:
    """Its beginning and end are different tokens."""
    found = train_tokenizer(STORIES, 300, special=("<s>", "</s>"))
    return Text(found.tokenizer, special={"bos": "<s>", "eos": "</s>"})


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": s, "id": i}) + "\n" for i, s in enumerate(STORIES)))
    return str(path)


@pytest.fixture
def ready(stories, text, tmp_path):
    return prepare(stories, text, held_out=0.1, cache=tmp_path / "cache")


def packed(lengths) -> Packed:
    """Documents whose tokens are 0, 1, 2, ... through all of them."""
    offsets = np.cumsum([0, *lengths])
    names = [f"d{i}" for i in range(len(lengths))]
    return Packed(np.arange(offsets[-1], dtype=np.uint16), offsets, names, np.arange(len(lengths)))


# Sources


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\r\ntwo\n".encode("utf-8-sig"))
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(b"x<|endoftext|>\n\ny\n<|endoftext|>\n"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.json").write_text(json.dumps(["p", {"text": "q"}]))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.txt").write_text("not data")
    found = [(d.name, d.text) for d in read([str(tmp_path)])]
    top = tmp_path.name
    assert found == [
        (f"{top}/a.txt", "one\r\ntwo\n"),
        (f"{top}/b.txt.xz#0", "x"),
        (f"{top}/b.txt.xz#1", "y"),
        (f"{top}/deep/c.json#0", "p"),
        (f"{top}/deep/c.json#1", "q"),
    ]
    assert [d.text for d in read(str(tmp_path / "README.md"))] == ["not data"]
    assert [d.text for d in read([str(tmp_path / "a.txt"), str(tmp_path / "deep")])] == ["one\r\ntwo\n", "p", "q"]


def test_rows(stories, tmp_path):
    assert [d.text for d in read(stories)] == STORIES
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"body": STORIES, "n": range(len(STORIES))}), tmp_path / "s.parquet")
    assert [d.text for d in read(str(tmp_path / "s.parquet"), field="body")] == STORIES
    with pytest.raises(ValueError, match=r"s.parquet has no field 'text': its fields are body, n"):
        list(read(str(tmp_path / "s.parquet")))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="bad.parquet is not a parquet file"):
        list(read(str(tmp_path / "bad.parquet")))


def test_the_standard_library():
    documents = list(read("stdlib"))
    names = [d.name for d in documents]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not [n for n in names if "site-packages" in n or "/tests/" in n or n.startswith(("test/", "/"))]
    assert sum(len(d.text) for d in documents) > 5_000_000


BAD = {
    "empty.txt": (b"", "empty.txt is empty: it holds no text"),
    "space.txt": (b" \n\t\n", "space.txt is empty"),
    "marks.txt": (b"<|endoftext|>\n<|endoftext|>", "marks.txt is empty"),
    "zero.txt": (b"abc\0def", "zero.txt is binary, not text: byte 3 is zero"),
    "latin.txt": ("caf\xe9 au lait".encode("latin-1"), "latin.txt is not UTF-8 text: .* at byte 3"),
    "model.safetensors": (b"\x08\0\0\0\0\0\0\0{}", "is binary, not text"),
    "bad.txt.xz": (b"not xz", "bad.txt.xz is not a valid .xz file"),
    "cut.txt.xz": (lzma.compress(b"some text")[:-9], "cut.txt.xz is not a valid .xz file"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "broken.jsonl, line 2, is not valid JSON"),
    "field.jsonl": (b'{"story": "a", "id": 1}\n', "field.jsonl#1 has no field 'text': its fields are id, story"),
    "number.jsonl": (b'{"text": 3}\n', "number.jsonl#1: field 'text' should be a text, not a int"),
    "list.jsonl": (b"[1]\n", "list.jsonl#1 should be a text or a JSON object, not a list"),
    "object.json": (b'{"text": "a"}', "object.json should hold a JSON list"),
    "broken.json": (b"[", "broken.json is not valid JSON"),
    "none.json": (b"[]", "none.json is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path, name):
    data, message = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read(str(tmp_path / name)))


def test_bad_sources(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file or folder: books/a.txt .*stdlib.*OWNER/NAME"):
        list(read("books/a.txt"))
    with pytest.raises(ValueError, match="no such file or folder: stdlb"):
        list(read("stdlb"))
    with pytest.raises(ValueError, match=r"is a folder without any \.txt, \.jsonl, \.json, \.parquet file"):
        list(read(str(tmp_path)))
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] in ("datasets", "pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"someone/stories is no file.*pip install 'unveil\[train\]'"):
        list(read("someone/stories"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="needs pyarrow"):
        list(read(str(tmp_path)))


class Table:
    """What reading needs of a data set of the hub."""

    column_names = ("body", "id")

    def select_columns(self, names):
        return [dict.fromkeys(names, "told")]


def test_hub_data(monkeypatch):
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        if name == "no/such":
            raise FileNotFoundError("not on the hub\nand more")
        return Table()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert [(d.name, d.text) for d in read("some/one:part", field="body")] == [("some/one:part#0", "told")]
    assert asked == [("some/one", "part", "train")]
    with pytest.raises(ValueError, match="some/one has no field 'text': its fields are body, id"):
        list(read("some/one"))
    with pytest.raises(ValueError, match="no/such is no file or folder here, nor a data set .*: not on the hub$"):
        list(read("no/such"))


# The tokenised corpus


def test_documents_are_framed(stories, text, two, tmp_path):
    def tokens(tokenizer, **options):
        whole = prepare(stories, tokenizer, held_out=0, cache=tmp_path, **options)
        assert whole.held_out.tokens == len(whole.held_out) == 0
        return [whole.train.document(i).tolist() for i in range(len(whole.train))]

    assert tokens(text) == [[0, *text.encode(s)] for s in STORIES]
    assert tokens(text, close=True) == [[0, *text.encode(s), 0] for s in STORIES]
    assert tokens(two) == [[0, *two.encode(s), 1] for s in STORIES]
    assert tokens(Text(two.tokenizer, special={"eos": "</s>"})) == [[1, *two.encode(s)] for s in STORIES]
    assert tokens(Text(two.tokenizer)) == [two.encode(s) for s in STORIES]


def test_second_call_hits_the_cache(stories, text, tmp_path, monkeypatch):
    told = []
    cache = tmp_path / "cache"
    first = prepare(stories, text, cache=cache, report=lambda *seen: told.append(seen))
    assert told[-1] == (sum(map(len, STORIES)),) * 2
    assert [folder.name for folder in cache.iterdir()] == [first.folder.name]
    assert first.names == [f"stories.jsonl#{i + 1}" for i in range(len(STORIES))]
    encode = Text.encode_many
    monkeypatch.setattr(Text, "encode_many", lambda *_: pytest.fail("tokenised again"))
    again = prepare(stories, text, held_out=0.3, seed=5, cache=cache)
    assert again.tokens == first.tokens
    assert again.held_out.tokens > first.held_out.tokens
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(Text, "encode_many", encode)
    assert prepare(stories, text).folder == tmp_path / "other" / "data" / first.folder.name
    masked = Text(text.tokenizer.from_str(text.tokenizer.to_str()), special=text.special)
    masked.add_mask()
    monkeypatch.setattr(Text, "encode_many", lambda *_: pytest.fail("tokenised again"))
    assert prepare(stories, masked).folder.name == first.folder.name


def test_other_contents_or_tokenizers_are_other_files(stories, text, two, tmp_path):
    def folder(tokenizer, **options):
        return prepare(stories, tokenizer, cache=tmp_path / "cache", **options).folder

    found = [folder(text), folder(two), folder(text, close=True)]
    with open(stories, "a") as file:
        file.write('{"text": "one more"}\n')
    assert len({*found, folder(text)}) == 4


def test_damaged_and_unfinished_files_are_made_again(stories, text, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = prepare(stories, text, cache=cache)
    whole = (first.folder / "tokens.bin").read_bytes()
    (first.folder / "tokens.bin").write_bytes(whole[:-2])
    assert (prepare(stories, text, cache=cache).folder / "tokens.bin").read_bytes() == whole

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(stories, text, close=True, cache=cache)
    assert [folder.name for folder in cache.iterdir()] == [first.folder.name]


def test_wide_vocabularies_take_four_bytes(stories, text, tmp_path, monkeypatch):
    narrow = prepare(stories, text, cache=tmp_path / "narrow").train
    monkeypatch.setattr(Text, "vocab", 70_000)
    wide = prepare(stories, text, cache=tmp_path / "wide").train
    assert (narrow.data.dtype, wide.data.dtype) == (np.uint16, np.uint32)
    assert isinstance(wide.data, np.memmap)
    assert (narrow.data == wide.data).all()


def test_split_is_by_document(stories, text, tmp_path):
    def sides(seed, **options):
        found = prepare(stories, text, held_out=0.1, seed=seed, cache=tmp_path, **options)
        return [{tuple(side.document(i)) for i in range(len(side))} for side in (found.train, found.held_out)]

    train, away = sides(0)
    assert len(train) + len(away) == len(STORIES)
    assert not train & away
    share = sum(map(len, away)) / sum(map(len, train | away))
    assert 0.1 <= share < 0.13
    assert sides(0) == [train, away]
    assert sides(1) != [train, away]


def test_equal_documents_stay_together(text, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([s for s in STORIES[:10] for _ in range(3)]))
    for seed in range(5):
        found = prepare(str(tmp_path / "d.json"), text, held_out=0.3, seed=seed, cache=tmp_path / "c")
        train, away = ({tuple(s.document(i)) for i in range(len(s))} for s in (found.train, found.held_out))
        assert not train & away
        assert len(found.train) % 3 == len(found.held_out) % 3 == 0


def test_each_side_has_a_document(text, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([STORIES[39], STORIES[0]]))
    for share in (0.0001, 0.5, 0.999):
        found = prepare(str(tmp_path / "d.json"), text, held_out=share, cache=tmp_path / "c")
        assert len(found.train) == len(found.held_out) == 1
    (tmp_path / "same.json").write_text(json.dumps(["same"] * 4))
    with pytest.raises(ValueError, match="at least two different documents"):
        prepare(str(tmp_path / "same.json"), text, cache=tmp_path / "c")
    with pytest.raises(ValueError, match=r"held-out share lies in \[0, 1\), not 1"):
        prepare(str(tmp_path / "d.json"), text, held_out=1)


def test_a_lone_document_is_divided(text, tmp_path):
    whole = "".join(STORIES)
    (tmp_path / "one.txt").write_text(whole)
    found = prepare(str(tmp_path / "one.txt"), text, held_out=0.1, cache=tmp_path / "c")
    assert len(found.held_out) >= 1
    everything = prepare(str(tmp_path / "one.txt"), text, held_out=0, cache=tmp_path / "c").train
    parts = [text.decode(everything.document(i)) for i in range(len(everything))]
    assert "\n".join(parts) + "\n" == whole
    assert max(map(len, parts)) <= 512
    assert found.names[1] == "one.txt#1"
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ValueError, match="at least two different documents"):
        prepare(str(tmp_path / "short.txt"), text, cache=tmp_path / "c")
    assert list(corpus.chunks("a" * 25 + " b c", 10)) == ["a" * 10, "a" * 10, "aaaaa b c"]


def test_half_characters_are_refused(text, tmp_path):
    (tmp_path / "d.json").write_text('["fine", "a\\ud800b"]')
    with pytest.raises(ValueError, match="d.json#1 is not text: half a character at 1"):
        prepare(str(tmp_path / "d.json"), text, cache=tmp_path / "c")


# The order of batches


def test_order_is_a_function_of_seed_and_step(ready):
    steps = [ready.train.batch(step, 4, 32, seed=3) for step in range(2 * ready.train.count(32) // 4 + 2)]
    other = Packed(ready.train.data, np.load(ready.folder / "offsets.npy"), ready.names, np.arange(len(ready.names)))
    assert other.tokens == ready.tokens
    for step in (7, 0, len(steps) - 1, 3):  # in any order, without having read those before
        again = ready.train.batch(step, 4, 32, seed=3)
        for name in ("tokens", "answer", "documents", "ids"):
            assert torch.equal(getattr(again, name), getattr(steps[step], name))
        assert (again.seed, again.step) == (3, step)
        assert again.ids.tolist() == list(range(4 * step, 4 * step + 4))
    assert not torch.equal(ready.train.batch(0, 4, 32, seed=4).tokens, steps[0].tokens)


def test_samples_do_not_depend_on_the_batch(ready):
    whole = ready.train.batch(1, 6, 32, seed=1)
    halves = [ready.train.samples(first, 3, 32, seed=1) for first in (6, 9)]
    assert torch.equal(torch.cat([half.tokens for half in halves]), whole.tokens)
    assert torch.equal(torch.cat([half.ids for half in halves]), whole.ids)
    assert whole.answer.all()
    assert ready.train.samples(0, 1, 32, documents=False).documents is None


def test_the_permutation_stays_what_it_is():
    assert shuffle(8, 1, 2, 3).tolist() == [1, 2, 4, 6, 5, 0, 7, 3]
    assert sorted(shuffle(1000, 0)) == list(range(1000))


def test_an_epoch_reads_everything_once_and_the_next_cuts_elsewhere():
    stream = packed([7, 1, 30, 12, 14])
    assert stream.count(8) == 8
    first, second = (stream.samples(8 * epoch, 8, 8, seed=2).tokens for epoch in (0, 1))
    assert sorted(first.flatten().tolist()) == sorted(second.flatten().tolist()) == list(range(64))
    assert {int(row[0]) for row in first} != {int(row[0]) for row in second}


def test_document_numbers_change_with_the_document():
    lengths = [7, 1, 30, 12, 14]
    stream = packed(lengths)
    of = np.repeat(np.arange(5), lengths)
    found = stream.samples(0, 16, 20, seed=1)
    for row, numbers, i in zip(found.tokens, found.documents, found.ids, strict=True):
        held = of[row.numpy()]
        assert numbers.tolist() == np.cumsum([0, *(held[1:] != held[:-1])]).tolist()
        assert stream.origins([int(i)], 20, seed=1) == [f"d{k}" for k in dict.fromkeys(held)]
    assert stream.origins(range(16), 20, seed=1)


def test_a_document_longer_than_the_context_is_cut():
    found = packed([100]).windows(16)
    assert torch.equal(found.tokens, torch.arange(96).view(6, 16))
    assert not found.documents.any()


def test_windows_keep_the_order_and_spread_a_limit():
    stream = packed([10, 20, 14])
    assert stream.windows(8).tokens.flatten().tolist() == list(range(40))
    few = stream.windows(8, limit=2)
    assert few.ids.tolist() == [0, 2]
    assert few.tokens[:, 0].tolist() == [0, 16]
    assert few.documents[1].tolist() == [0] * 8
    assert stream.windows(8).documents[1].tolist() == [0, 0, *[1] * 6]
    assert stream.windows(8, documents=False).documents is None


def test_too_short_and_out_of_range():
    with pytest.raises(ValueError, match="text is too short: 5 tokens for windows of 8"):
        packed([2, 3]).batch(0, 1, 8)
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        packed([2, 3]).windows(0)
    with pytest.raises(ValueError, match="count from 0: 0 and -1 were given"):
        packed([2, 3]).batch(0, 1, 4, seed=-1)
