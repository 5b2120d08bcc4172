"""Jobs over many rows: every id once, whatever is stopped, and a bad row costs nobody else anything."""

import json

import pytest
from models import tiny

from unveil import bulk
from unveil.codecs.train import train_tokenizer
from unveil.nn.grow import add_mask
from unveil.nn.transformer import Shape, Transformer


@pytest.fixture(scope="module")
def loaded():
    text = train_tokenizer(["tell me a number", "and another"], 280)
    model = Transformer(Shape(vocab=280, width=32, layers=1, heads=2, kv_heads=2, hidden=64, head_size=16, context=64))
    add_mask(model, used=280)
    model.attention = tiny().attention
    model.bos_id = text.start_id
    return model.eval(), text


def asked(n: int) -> list[tuple[str, dict]]:
    return [(f"rows.jsonl#{i}", {"id": i, "prompt": f"tell me a number {'again ' * (i % 3)}"}) for i in range(n)]


def job(rows, **options) -> bulk.Job:
    source, _ = bulk.survey(bulk.identified(rows))
    return bulk.Job(**{"model": "m", "source": source, "length": 6, "shard": 4, **options})


def run(loaded, rows, out, **options):
    return bulk.local(*loaded, job(rows, **options), bulk.identified(rows), out)


def read(out, kind: str = "part") -> list[dict]:
    return [json.loads(line) for file in sorted(out.glob(f"{kind}-*.jsonl")) for line in file.read_text().splitlines()]


def test_every_row_is_answered_once_in_order(loaded, tmp_path):
    assert run(loaded, asked(10), tmp_path / "a") == (10, 0)
    found = read(tmp_path / "a")
    assert [row["id"] for row in found] == list(range(10))
    assert all(isinstance(row["completion"], str) and row["finish"] in ("stop", "length") for row in found)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["job.json", *(f"part-00000{i}.jsonl" for i in range(3))]
    assert bulk.totals(tmp_path / "a") == {"rows": 10, "shards": 3, "errors": 0}


@pytest.mark.parametrize("options", [{}, {"decoder": "random(temperature=1.0)"}])
def test_a_stopped_job_does_only_what_is_missing(loaded, tmp_path, options):
    run(loaded, asked(10), tmp_path / "whole", **options)
    out, seen = tmp_path / "stopped", []

    def stop(done: int, failed: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk.local(*loaded, job(asked(10), **options), bulk.identified(asked(10)), out, stop)
    (out / ".part-000001.jsonl.17").write_text("half a sha")  # what a kill leaves
    assert seen == [4]
    assert run(loaded, asked(10), out, **options) == (6, 0)
    assert read(out) == read(tmp_path / "whole")
    assert run(loaded, asked(10), out, **options) == (0, 0)
    (out / "part-000001.jsonl").unlink()
    assert run(loaded, asked(10), out, **options) == (4, 0)
    assert read(out) == read(tmp_path / "whole")


def test_a_poisoned_row_is_set_aside_with_its_reason(loaded, tmp_path, monkeypatch):
    rows = asked(8)
    rows[1] = ("rows.jsonl#1", {"id": 1, "question": "what?"})
    rows[2] = ("rows.jsonl#2", {"id": 2, "prompt": "long " * 100})
    rows[6] = ("rows.jsonl#6", {"id": 6, "messages": [{"role": "user"}]})
    assert run(loaded, rows, tmp_path / "out") == (5, 3)
    errors = {row["id"]: row["error"] for row in read(tmp_path / "out", "errors")}
    assert sorted(errors) == [1, 2, 6]
    assert "expected a prompt as a text, or messages; its fields are id, question" in errors[1]
    assert "are more than the context of 64" in errors[2]
    assert "messages should be a list" in errors[6]
    clean = tmp_path / "clean"
    run(loaded, asked(8), clean)
    same = {row["id"]: row["completion"] for row in read(clean)}
    assert all(same[row["id"]] == row["completion"] for row in read(tmp_path / "out"))

    decoded = bulk.Answering.decoded

    def explode(self, ready):
        if any(row["id"] == 3 for row, _ in ready):
            raise RuntimeError("the device is out of memory")
        return decoded(self, ready)

    monkeypatch.setattr(bulk.Answering, "decoded", explode)
    assert run(loaded, asked(8), tmp_path / "late") == (7, 1)
    assert [row["id"] for row in read(tmp_path / "late")] == [0, 1, 2, 4, 5, 6, 7]
    assert read(tmp_path / "late", "errors")[0]["error"] == "RuntimeError: the device is out of memory"


def test_a_folder_belongs_to_one_job(loaded, tmp_path):
    run(loaded, asked(4), tmp_path / "out")
    with pytest.raises(ValueError, match=r"another job; it differs in length \(6 there, 7 here\)"):
        run(loaded, asked(4), tmp_path / "out", length=7)
    with pytest.raises(ValueError, match="another job; it differs in source"):
        run(loaded, asked(5), tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").write_text("private")
    with pytest.raises(ValueError, match="is no folder of shards"):
        run(loaded, asked(4), tmp_path / "other")
    with pytest.raises(ValueError, match="no decoder called 'best'"):
        run(loaded, asked(4), tmp_path / "none", decoder="best")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="at least 1 token"):
        job(asked(1), length=0)


def test_ids_are_found_or_refused():
    assert [row["id"] for row in bulk.identified([("a#1", {"prompt": "x"}), ("a#2", {"id": "two"})])] == ["a#1", "two"]
    with pytest.raises(ValueError, match="a#2: the id 1 comes twice"):
        list(bulk.identified([("a#1", {"id": 1}), ("a#2", {"id": "1"})]))
    with pytest.raises(ValueError, match="an id is a text or a whole number, not null"):
        list(bulk.identified([("a#1", {"id": None})]))
