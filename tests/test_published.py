"""Published tasks read their formats, say what is missing of them, and score as their papers do."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from unveil import records, spec
from unveil.records import Hub
from unveil.tasks import Example, to_be_written
from unveil.tasks.gsm8k import Gsm8k
from unveil.tasks.story_infill import sentences

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
CHOSEN = {
    "hellaswag": (
        {"ctx": "A man sits. he", "endings": ["stands up.", "is a hat."], "label": 1},
        {
            "ctx": "A man sits [title] He",
            "endings": ["stands [step] up.", "is."],
            "label": "1",
            "activity_label": "Chair",
        },
        ["A man sits. he", " stands up.", 1],
        ["Chair: A man sits. He", " stands up.", 1],
    ),
    "piqa": (
        {"query": "Question: open a jar\n", "choices": ["twist it", "shout"], "gold": 0},
        {"goal": "open a jar", "sol1": "twist it", "sol2": "shout", "label": 0},
        ["Question: open a jar\nAnswer:", " twist it", 0],
        ["Question: open a jar\nAnswer:", " twist it", 0],
    ),
    "arc_easy": (
        {"query": "Question: What is wet?", "choices": ["sand", "rain"], "gold": 1},
        {"question": "What is wet?", "choices": {"text": ["sand", "rain"], "label": ["1", "2"]}, "answerKey": "2"},
        ["Question: What is wet?\nAnswer:", " sand", 1],
        ["Question: What is wet?\nAnswer:", " sand", 1],
    ),
    "siqa": (
        {"query": "Context: C.\nQuestion: Q?\nChoices:\nA. one\nB. two\nAnswer:", "choices": ["A", "B"], "gold": 1},
        {"context": "C.", "question": "Q?", "answerA": "one", "answerB": "two", "answerC": "no", "label": "2"},
        ["Context: C.\nQuestion: Q?\nAnswer:", " one", 1],
        ["Context: C.\nQuestion: Q?\nAnswer:", " one", 1],
    ),
    "winogrande": (
        {"context_options": ["So Ann", "So Bea"], "continuation": "won.", "gold": 1},
        {"sentence": "So _ won.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        ["So Ann", " won.", 1],
        ["So Ann", " won.", 1],
    ),
}


def put(folder: Path, name: str, *rows: dict) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("form", [0, 1])
def test_both_formats_become_questions(name, form, tmp_path):
    put(tmp_path, f"{name}.jsonl", CHOSEN[name][form])
    task = spec.build("tasks", f"{name}(data={str(tmp_path)!r})")
    (question,) = task.questions(1)
    context, option, gold = CHOSEN[name][2 + form]
    assert [question.contexts[0], question.options[0], question.gold] == [context, option, gold]
    assert len(set(question.contexts)) == (2 if name == "winogrande" else 1)
    assert task.available() == 1
    with pytest.raises(ValueError, match="2 test problems of"):
        task.questions(2)


@pytest.mark.parametrize("name", [*CHOSEN, "lambada", "gsm8k", "story_infill", "wikitext"])
def test_a_file_of_another_format_is_told_its_missing_field(name, tmp_path):
    file = put(tmp_path, f"{name}.jsonl", {"id": 3})
    task = spec.build("tasks", f"{name}(data={str(file)!r})")
    ask = getattr(task, "questions", None) or getattr(task, "examples", None) or task.texts
    with pytest.raises(ValueError, match=rf"{name}.jsonl, line 1: the field '\w+' is missing; its fields are: id"):
        ask(1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ctx": "a", "endings": "b", "label": 0}, "a list in the field 'endings', got str"),
        ({"ctx": "a", "endings": [], "label": 0}, "a list of texts in the field 'endings'"),
        ({"ctx": 7, "endings": ["b"], "label": 0}, "text in the field 'ctx', got int"),
        ({"ctx": "a", "endings": ["b", "c"], "label": 2}, "'label' is 2; expected one of 2 options, counted from 0"),
        ({"ctx": "a", "endings": ["b", "c"], "label": "x"}, "a number in the field 'label'"),
        ({"ctx": "a", "endings": ["b", "c"], "label": True}, "in the field 'label', got bool"),
    ],
)
def test_fields_of_another_kind_are_refused(row, said, tmp_path):
    file = put(tmp_path, "hellaswag.jsonl", row)
    with pytest.raises(ValueError, match=said):
        spec.build("tasks", f"hellaswag(data={str(file)!r})").questions(1)


def test_files_that_hold_nothing_of_the_kind(tmp_path):
    build = lambda place: spec.build("tasks", f"piqa(data={str(place)!r})").questions(1)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text('{"query": 1}\n{"que')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "caf\xe9"}')
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "bad.jsonl.xz").write_bytes(b"no")
    for name, said in {
        "empty.jsonl": "is empty: it holds no rows",
        "broken.jsonl": "broken.jsonl, line 2 is not JSON",
        "list.jsonl": "expected one JSON object, got list",
        "latin.jsonl": "is not UTF-8 text: invalid continuation byte at byte 14",
        "object.json": "expected a JSON list of rows, got dict",
        "bad.jsonl.xz": "is no .xz file",
        "absent.jsonl": "no such file or folder",
    }.items():
        with pytest.raises(ValueError, match=said):
            build(tmp_path / name)
    (tmp_path / "inner").mkdir()
    with pytest.raises(ValueError, match="has no file of this task; expected one named piqa.jsonl or piqa_"):
        build(tmp_path / "inner")


def test_sets_on_the_hub_that_cannot_be_had(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(ValueError, match="the set unveil-nobody/nothing could not be had from the hub"):
        records.fetched(Hub("unveil-nobody/nothing"))


def test_seed_nought_is_the_files_own_order(tmp_path):
    put(tmp_path, "lambada_openai.jsonl", *({"context": f"the word {i} is", "continuation": str(i)} for i in range(9)))
    task = spec.build("tasks", f"lambada(data={str(tmp_path)!r})")
    assert [e.answer for e in task.examples(4)] == [" 0", " 1", " 2", " 3"]
    drawn = [e.answer for e in task.examples(9, seed=3)]
    assert drawn != [e.answer for e in task.examples(9)]
    assert sorted(drawn) == sorted(e.answer for e in task.examples(9))
    assert drawn == [e.answer for e in task.examples(9, seed=3)]
    with pytest.raises(ValueError, match="no problems for training"):
        task.examples(1, "train")


def test_lambada_wants_the_word_itself(tmp_path):
    put(tmp_path, "lambada.jsonl", {"text": "in my palm is a stone"})
    task = spec.build("tasks", f"lambada(data={str(tmp_path)!r})")
    (example,) = task.examples(1)
    assert example == Example("in my palm is a", " stone")
    assert [task.score(example, text) for text in (" stone", "stone\n", " stones", "")] == [1, 1, 0, 0]


def test_gsm8k_takes_the_number_behind_the_marks_or_the_last(tmp_path):
    task = Gsm8k()
    example = Example("Question: ?\nAnswer:", " 2*500=<<2*500=1000>>1,000\n#### 1,000")
    for written, figures in {
        " it is #### 1000": (1, 1),
        "#### 1,000 and 7": (1, 1),
        " so $1,000.": (1, 0),
        " 7 then 1000\n\nQuestion: next\nAnswer: 5": (1, 0),
        "#### 5, not 1000": (0, 0),
        " none": (0, 0),
        "": (0, 0),
    }.items():
        assert tuple(task.figures(example, written).values()) == figures, written
    rows = [{"question": f"q{i}?", "answer": f"a\n#### {i}"} for i in range(3)]
    put(tmp_path, "gsm8k_test.jsonl", *rows)
    put(tmp_path, "gsm8k_train.jsonl", {"question": "old?", "answer": "b\n#### 9"})
    shown = spec.build("tasks", f"gsm8k(shots=1, data={str(tmp_path)!r})").examples(1)
    assert shown[0].prompt == "Question: old?\nAnswer: b\n#### 9\n\nQuestion: q0?\nAnswer:"
    put(tmp_path, "gsm8k_test.jsonl", {"question": "q", "answer": "no marks"})
    with pytest.raises(ValueError, match="does not end with '#### ' and a number"):
        spec.build("tasks", f"gsm8k(data={str(tmp_path)!r})").examples(1)
    with pytest.raises(ValueError, match="0 to 64 solved problems"):
        Gsm8k(shots=-1)


def test_stories_come_in_every_form(tmp_path):
    pytest.importorskip("rouge_score")
    story = 'Ann had a dog. It ran! "Stop!" she said. He did not. They went home. The end.'
    assert sentences(story)[:3] == ["Ann had a dog.", "It ran!", '"Stop!"']
    columns = {f"sentence{i}": f"Line {i}." for i in range(1, 6)}
    (tmp_path / "a.csv").write_text(",".join(columns) + "\n" + ",".join(columns.values()) + "\n")
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(f"{story}\n\nToo short.\n\n{story}".encode()))
    (tmp_path / "c.json").write_text(json.dumps([story]))
    rows = put(tmp_path, "d.jsonl", columns)
    build = lambda name: spec.build("tasks", f"story_infill(data={str(tmp_path / name)!r})")
    for name in ("a.csv", rows.name):
        assert build(name).examples(1) == [Example("Line 1. Line 2.", " Line 3.", " Line 4. Line 5.")]
    assert build("b.txt.xz").available() == 2
    (example,) = build("c.json").examples(1)
    assert (example.prompt, example.answer) == ("Ann had a dog. It ran!", ' "Stop!"')
    longer = lambda name, asked: spec.build("tasks", f"story_infill(asked={asked}, data={str(tmp_path / name)!r})")
    (example,) = longer("c.json", 2).examples(1)
    assert (example.answer, example.tail) == (' "Stop!" she said.', " He did not. They went home.")
    (tmp_path / "e.txt").write_text("Short.")
    for wrong, said in (
        (lambda: build("e.txt").examples(1), "no story of 5 sentences"),
        (lambda: longer("c.json", 4).examples(1), "no story of 8 sentences"),
        (lambda: longer("a.csv", 2).examples(1), "five sentences leave one to be blank"),
        (lambda: longer("c.json", 0), "at least one sentence"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


def test_rouge_is_that_of_its_library():
    """By hand: three of four words in order, one pair of three."""
    pytest.importorskip("rouge_score")
    task = spec.build("tasks", "story_infill")
    found = task.figures(Example("", " the dog ran home"), " the dog walked home")
    assert found == pytest.approx({"rouge_l": 0.75, "rouge_1": 0.75, "rouge_2": 1 / 3, "exact": 0.0})
    assert task.figures(Example("", " the dog"), "the dog")["exact"] == 1.0


def test_wikitext_is_whole_articles(tmp_path):
    whole = " = One = \n\n first text \n = = Part = = \n more \n = Two = \n second \n"
    (tmp_path / "wikitext2.txt").write_text(whole)
    task = spec.build("tasks", f"wikitext(data={str(tmp_path)!r})")
    one, two = task.texts(2)
    assert one.startswith("= One =")
    assert "= = Part = =" in one
    assert two == "= Two = \n second"
    rows = put(tmp_path, "wikitext2.jsonl", *({"text": line} for line in whole.splitlines(keepends=True)))
    assert spec.build("tasks", f"wikitext(data={str(rows)!r})").texts(2) == [one, two]
    assert spec.build("tasks", f"wikitext(most=12, data={str(tmp_path)!r})").texts(1) == ["= One ="]
    (tmp_path / "wikitext2.txt").write_text(" \n")
    with pytest.raises(ValueError, match="holds no text"):
        task.texts(1)


def test_reversal_asks_what_was_never_asked():
    task = spec.build("tasks", "reversal(pairs=200)")
    train, test = task.pool("train"), task.pool("test")
    texts = [each for each in train if each.kind == "shown"]
    assert not any(each.prompt for each in texts), "a pair is a text that is learnt whole"
    shown = {each.answer.split()[1]: each.answer.split()[3] for each in texts}
    assert len(shown) == 200
    assert len(set(shown) | set(shown.values())) == 400
    for each in test:
        name = each.prompt.split()[1].rstrip(":")
        answer = each.answer.strip()
        left, right = (name, answer) if each.kind == "forward" else (answer, name)
        assert shown[left] == right
    assert not {each.prompt for each in test} & {each.prompt for each in train}
    assert {each.kind for each in test} == {"forward", "reverse"}
    assert [
        task.score(test[0], text) for text in (test[0].answer, f" {test[0].answer} x", "x", "\n" + test[0].answer)
    ] == [*(1, 1, 0, 0)]
    assert len(task.examples(1000, "train")) == 1000
    many = spec.build("tasks", "reversal(pairs=200, away=2, repeats=3)")
    asked = len(many.pool("test")) // 2
    assert 60 < asked < 140
    assert len(many.pool("train")) == 3 * 200 + 2 * (200 - asked)
    with pytest.raises(ValueError, match="away is at least 2 and repeats at least 1, got 1 and 1"):
        spec.build("tasks", "reversal(away=1)")
    one = spec.build("tasks", "reversal(pairs=200, direction='reverse')")
    assert {each.kind for each in one.pool("test")} == {"reverse"}
    with pytest.raises(ValueError, match="both, forward, reverse"):
        spec.build("tasks", "reversal(direction='up')")
    with pytest.raises(ValueError, match="8 to 1225 pairs"):
        spec.build("tasks", "reversal(pairs=5000, syllables=2)")


@pytest.mark.parametrize("count", [1, 4, 7, 20])
def test_reversal_asks_either_way_as_often_for_any_count(count):
    kinds = [each.kind for each in spec.build("tasks", "reversal(pairs=200)").examples(count, seed=count)]
    assert kinds.count("reverse") == count // 2
    every = spec.build("tasks", "reversal(pairs=200)")
    asked = every.examples(every.available())
    assert len({each.prompt for each in asked}) == len(asked)
    assert asked[0].answer in asked[1].prompt


def test_arithmetic_from_a_file(tmp_path):
    rows = [{"context": "25 - 759 =", "continuation": " -734"}, {"context": "17 * 94 =", "continuation": " 1598"}]
    put(tmp_path, "simple_arithmetic_withspaces.jsonl", *rows)
    task = spec.build("tasks", f"arithmetic(data={str(tmp_path)!r})")
    one, two = task.examples(task.available())
    assert (one.prompt, one.answer) == ("25 - 759 =", " -734")
    assert [task.score(two, text) for text in (" 1598", "1598\n3 + 3 = 6", " 15980", "")] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="3 problems were asked for"):
        task.examples(3)
    put(tmp_path, "simple_arithmetic_withspaces.jsonl", {"question": "1"})
    with pytest.raises(ValueError, match="line 1: the field 'context' is missing"):
        task.examples(1)


def test_what_is_weighed_is_not_decoded():
    with pytest.raises(ValueError, match="the answers of piqa are not written but weighed"):
        to_be_written(spec.build("tasks", "piqa"), "piqa")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_real_files_are_read():
    sizes = {"arc_easy": 2376, "hellaswag": 1000, "piqa": 1838, "siqa": 1954, "winogrande": 1267}
    for name, size in sizes.items():
        task = spec.build("tasks", f"{name}(data={str(SHARED / 'eval')!r})")
        assert task.available() == size
        found = task.questions(size)
        assert all(0 <= q.gold < len(q.options) == len(q.contexts) for q in found)
        assert all(option[0] == " " and option[1:].strip() for q in found for option in q.options)
    for name, size in {"lambada": 5153, "gsm8k": 1319}.items():
        task = spec.build("tasks", f"{name}(data={str(SHARED / 'eval')!r})")
        assert all(task.score(each, each.answer) == 1 for each in task.examples(size))
