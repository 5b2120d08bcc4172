"""Tasks with a right answer: the same for the same seed, never in both splits, and judged by what is right."""

import json
import lzma
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from commands import command

from unveil import spec
from unveil.data import corpus, read
from unveil.start import start
from unveil.tasks import Example, Task, held_out
from unveil.tasks.arithmetic import Arithmetic
from unveil.tasks.cloze import Cloze, asked
from unveil.tasks.countdown import Countdown
from unveil.tasks.infill import UNSEEN, Infill
from unveil.tasks.sudoku import Sudoku, solutions
from unveil.train import Recipe

TOP = Path(__file__).parent.parent
PUZZLES = TOP.parent / "shared/data/eval/sudoku_4x4_test.csv"
DRAWN = ["sudoku", "countdown", "arithmetic"]
PUBLISHED = [  # tested in test_published.py
    *("arc_easy", "gsm8k", "hellaswag", "lambada", "piqa"),
    *("reversal", "siqa", "story_infill", "wikitext", "winogrande"),
    *("humaneval", "humaneval_infill", "mbpp"),  # in test_code_tasks.py
]
TINY = {"width": 32, "layers": 1, "heads": 2, "hidden": 32, "rows": 4, "steps": 1}
STORY = (
    "{a} met {b}. They had a {c}. One day {a} gave {b} a hat. Then {b} saw the {c} again, and {a} smiled at it.\nEnd."
)


def stories(count: int) -> str:
    names = ["Lily", "Tom", "Sue", "Max", "Ben", "Anna"]
    pairs = [(a, b, c) for a, b in product(names, names) if a != b for c in ("ball", "kite", "frog", "drum")]
    return "<|endoftext|>\n".join(STORY.format(a=a, b=b, c=c) for a, b, c in pairs[:count])


def code(count: int) -> str:
    body = "def area{i}(x):\n    y = x + {i}\n    y = [y, 'a']\n    if x:\n        y *= {i}\n    return y\n\n\n"
    return "".join(body.format(i=i) for i in range(count))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Task]:
    """Every task, those on texts with texts of ours."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "stories.txt.xz").write_bytes(lzma.compress(stories(120).encode()))
    (folder / "code.py").write_text(code(200), encoding="utf-8")
    return {
        **{name: spec.build("tasks", name) for name in DRAWN},
        "infill": spec.build("tasks", f"infill(data='{folder}')"),
        "cloze": spec.build("tasks", f"cloze(data='{folder / 'stories.txt.xz'}')"),
    }


def every(task: Task, split: str, seed: int = 0) -> list[Example]:
    """Hundreds where problems are drawn, and a few where they are listed."""
    return task.examples({"train": 12, "test": 3}[split] * (1 if task.length in (6, 24) else 60), split, seed)


def test_every_task_is_tested(made):
    assert sorted([*made, *PUBLISHED]) == spec.names("tasks")


@pytest.mark.parametrize("name", [*DRAWN, "infill", "cloze"])
def test_examples_are_a_function_of_the_seed(made, name):
    task = made[name]
    for split in ("train", "test"):
        found = every(task, split)
        assert found == every(task, split)
        assert found != every(task, split, seed=1)
        assert found[:2] == task.examples(2, split)


@pytest.mark.parametrize("name", [*DRAWN, "infill", "cloze"])
def test_no_problem_is_in_both_splits(made, name):
    train = [example for seed in range(3) for example in every(made[name], "train", seed)]
    test = [example for seed in range(3) for example in every(made[name], "test", seed)]
    assert not {replace(e, answer="") for e in train} & {replace(e, answer="") for e in test}
    if name in DRAWN:
        assert not {e.prompt for e in train} & {e.prompt for e in test}
        assert all(held_out(e.prompt) for e in test)
    first = every(made[name], "test")
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("name", ["countdown", "arithmetic"])
def test_thousands_of_problems_are_in_one_split(made, name):
    train = {e.prompt for e in made[name].examples(4000, "train", 5)}
    test = {e.prompt for e in made[name].examples(300, "test", 6)}
    assert len(test) == 300
    assert not train & test


@pytest.mark.parametrize("name", [*DRAWN, "infill", "cloze"])
def test_the_answer_is_right_and_others_are_wrong(made, name):
    task = made[name]
    for example in every(task, "test"):
        assert task.score(example, example.answer) == 1
        assert task.score(example, example.answer + "\n") == 1
        for wrong in ("", "\n", "0", "x(", "\0", "٣" * 4, example.answer[:-1], example.answer + "\n1", example.prompt):
            assert task.score(example, wrong) == 0, (example, wrong)
        for i, letter in enumerate(example.answer):
            if letter.isdigit() and name in ("sudoku", "countdown"):
                other = example.answer[:i] + str((int(letter) + 1) % 10) + example.answer[i + 1 :]
                assert task.score(example, other) == 0


@pytest.mark.parametrize("name", DRAWN)
def test_a_row_fits_80_bytes(made, name):
    for example in every(made[name], "train"):
        row = (example.prompt + example.answer).encode()
        assert len(row) <= 78  # and a token before it and one behind
        assert len(example.answer.encode()) < made[name].length
        assert example.prompt.startswith(f"{name}\n")
        assert example.prompt.endswith("\n")
        assert not example.tail


def test_a_sudoku_has_one_solution(made):
    grids = {"".join(map(str, row)) for row in solutions().tolist()}
    assert len(grids) == 288
    clues = set()
    for example in every(made["sudoku"], "test"):
        puzzle = "".join(example.prompt.split("\n")[1:5])
        found = [grid for grid in completed(puzzle) if grid in grids]
        assert found == [example.answer.replace("\n", "")]
        clues.add(16 - puzzle.count("."))
    assert clues == set(range(6, 13))


def completed(puzzle: str, at: int = 0) -> list[str]:
    """Every grid, found cell by cell, in which no row, column or quarter has a number twice."""
    if at == 16:
        return [puzzle]
    row, column = divmod(at, 4)
    near = [
        r * 4 + c
        for r in range(4)
        for c in range(4)
        if r * 4 + c != at and (r == row or c == column or (r // 2, c // 2) == (row // 2, column // 2))
    ]
    found = []
    for number in "1234" if puzzle[at] == "." else puzzle[at]:
        if all(puzzle[i] != number for i in near):
            found += completed(puzzle[:at] + number + puzzle[at + 1 :], at + 1)
    return found


def test_any_grid_with_these_clues_is_right():
    blank = Example("sudoku\n1...\n....\n....\n....\n=\n", "1234\n3412\n2143\n4321")
    task = Sudoku()
    assert task.score(blank, "1234\n3412\n2143\n4321") == task.score(blank, "1342\n2413\n3124\n4231") == 1
    assert task.score(blank, "2134\n3412\n1243\n4321") == 0  # another clue
    assert task.score(blank, "1234\n2143\n3412\n4321") == 0  # quarters hold numbers twice
    assert task.score(blank, "1234\n3412\n2143") == 0


def test_puzzles_can_be_read(tmp_path):
    path = tmp_path / "puzzles.csv"
    path.write_text("Puzzle,Solution\n1000000000000000,1234341221434321\n", encoding="utf-8")
    task = Sudoku(data=str(path))
    assert task.examples(1) == [Example("sudoku\n1...\n....\n....\n....\n=\n", "1234\n3412\n2143\n4321")]
    with pytest.raises(ValueError, match="2 puzzles were asked for; .* has 1"):
        task.examples(2)
    seen = Sudoku().examples(60, "train")
    path.write_text(
        "Puzzle,Solution\n"
        + "".join(
            f"{''.join(e.prompt.split(chr(10))[1:5]).replace('.', '0')},{e.answer.replace(chr(10), '')}\n"
            for e in seen[:30]
        ),
        encoding="utf-8",
    )
    assert Sudoku(data=str(path)).examples(30, "train") == seen[30:]
    for bad, said in {
        "": "is empty",
        "Puzzle\n1\n": "line 2, should give Puzzle and Solution",
        "Puzzle,Solution\n1000000000000000,1234341221434312\n": "no valid grid",
        "Puzzle,Solution\n2000000000000000,1234341221434321\n": "no valid grid",
    }.items():
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            Sudoku(data=str(path))


@pytest.mark.skipif(not PUZZLES.is_file(), reason=f"the puzzles are not there: {PUZZLES}")
def test_published_puzzles_can_be_read():
    task = Sudoku(data=str(PUZZLES))
    found = task.examples(500)
    assert len(set(found)) == 500
    assert all(task.score(example, example.answer) == 1 for example in found)
    assert not {e.prompt for e in found} & {e.prompt for e in task.examples(500, "train")}


def test_any_two_steps_to_the_target_are_right():
    task, example = Countdown(), Example("countdown\n3 5 7 > 16\n", "7*3=21\n21-5=16")
    for right in ("7*3=21\n21-5=16", "3*7=21\n21-5=16", " 3*7=21\n21-5=16\n"):
        assert task.score(example, right) == 1
    for wrong in (
        "7*3=22\n22-5=17",  # false
        "7*3=21\n21-4=17",  # no such number
        "7+5=12\n7+9=16",  # used twice
        "7*3=21\n16-0=16",
        "7*3=21",
        "7*3=21\n21-5=16\n16+0=16",
        "7*3=21\n5-21=-16",
        "7*3 = 21\n21-5=16",
        "7+3=10\n10+5=15",  # another target
    ):
        assert task.score(example, wrong) == 0, wrong
    twice = Example("countdown\n4 4 4 > 12\n", "4+4=8\n8+4=12")
    assert task.score(twice, "4+4=8\n4+8=12") == 1
    assert task.score(twice, "4+8=12\n12+0=12") == 0


def test_only_the_answer_of_a_chain_counts():
    task, example = Arithmetic(), Example("arithmetic\n7+5-2+1=\n", "7+5=12\n12-2=10\n10+1=11\nanswer: 11")
    assert task.anchor in example.answer
    assert task.score(example, "answer: 11") == task.score(example, "7+5=13\nanswer: 11") == 1
    assert task.score(example, "answer: 12") == task.score(example, "11") == task.score(example, "answer:11") == 0
    assert task.steps_right(example, example.answer) == 1
    assert task.steps_right(example, "7+5=12\n12-2=11\n10+1=11\nanswer: 11") == 0.75
    assert task.steps_right(example, "") == 0
    for found in task.examples(200):
        chain = found.prompt.split("\n")[1].rstrip("=")
        assert eval(chain) == int(found.answer.rpartition(" ")[2])
        for line in found.answer.split("\n")[:-1]:
            left, _, right = line.partition("=")
            assert eval(left) == int(right)
            assert 0 <= int(right) <= 99


def test_the_same_program_is_right(made):
    example = next(e for e in made["infill"].examples(20) if e.answer == " y = [y, 'a']")
    for right in (' y = [y, "a"]', " y=[y,'a']  # so", " (y) = [y, 'a',]\n"):
        assert made["infill"].score(example, right) == 1
    for wrong in (" y = [y, 'b']", " y = [y, 'a']; pass", "y = [y, 'a']\n    z = 1", " y = ["):
        assert made["infill"].score(example, wrong) == 0


def test_several_lines_may_be_asked_and_judged_by_what_they_share():
    task = Infill(lines=3, judge="similarity")
    found = task.examples(20)
    for e in found:
        assert e.answer.count("\n") == 2
        assert e.tail.count("\n") >= 1
        assert task.figures(e, e.answer) == {"similarity": 1, "program": 1}
        assert Infill(lines=3).score(e, " pass") == 0
    assert task.score(Example("", " abcd", ""), " bcde ") == 0.75  # by hand: 2 * 3 / 8
    assert list(Infill().figures(found[0], "")) == ["program", "similarity"]


def test_the_standard_library_has_unseen_functions():
    task = Infill()
    found = task.examples(60)
    assert len({e.prompt.split("\n")[0] + e.tail for e in found}) == 60
    assert all(task.score(e, e.answer) == 1 and task.score(e, " pass") == 0 for e in found)


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="the embedded models learnt another standard library")
def test_the_embedded_models_have_not_seen_what_is_asked():
    """Their held-out share was counted in tokens; in characters it ends one small file earlier or later."""
    documents = list(read("stdlib"))
    away = corpus.split(
        [corpus.digest(one.text) for one in documents], np.array([len(one.text) for one in documents]), 0.02, 0
    )
    assert set(UNSEEN) <= {one.name for one, chosen in zip(documents, away, strict=True) if chosen}


def test_a_cloze_asks_for_a_word_that_was_there(made):
    found = made["cloze"].examples(8)
    for example in found:
        word = example.answer.strip()
        assert example.answer == f" {word}"
        assert f" {word}" in f" {example.prompt}"
        assert "\n" not in example.tail
        assert not made["cloze"].score(example, word.lower() + "s")
    words = [found[0] for found in asked(STORY.format(a="Lily", b="Tom", c="ball"))]
    assert words == ["Lily", "Tom", "Tom", "ball", "Lily"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "no task called 'nonsense'; there are: arc_easy, arithmetic, cloze"),
        ("sudoku(size=9)", "its options are: "),
        ("sudoku(least=3)", "4 <= least"),
        ("sudoku(data='missing.csv')", "no such file: missing.csv"),
        ("sudoku(length=0)", "at least one token"),
        ("countdown(largest=1)", "largest from 2 to 20"),
        ("arithmetic(least=5)", "least <= most"),
        ("arithmetic(largest=0)", "largest from 1 to 50"),
        ("infill(data='missing')", "no such file or folder: missing"),
        ("infill(shortest=1)", "3 <= shortest"),
        ("infill(lines=0)", "at least one line"),
        ("infill(judge='eye')", "no judge called 'eye'; there are: program, similarity"),
        ("cloze", "cloze needs stories"),
        ("cloze(data='a', before=0)", "room before the word"),
    ],
)
def test_what_a_task_cannot_be_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        spec.build("tasks", text)


def test_what_is_not_there_cannot_be_asked(made, tmp_path):
    with pytest.raises(ValueError, match="no split called 'dev'; there are: train, test"):
        made["sudoku"].examples(1, "dev")
    with pytest.raises(ValueError, match="count of at least 1"):
        made["cloze"].examples(0)
    with pytest.raises(ValueError, match="seed of at least 0"):
        made["countdown"].examples(1, seed=-1)
    with pytest.raises(ValueError, match="test problems of cloze were asked for; there are"):
        made["cloze"].examples(1000)
    with pytest.raises(ValueError, match="different test problems of countdown were asked for; found"):
        Countdown(largest=2).examples(100)
    with pytest.raises(ValueError, match="no such file: missing"):
        Cloze(data="missing").examples(1)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        Cloze(data=str(tmp_path / "a.txt")).examples(1)
    with pytest.raises(ValueError, match="without any .py file"):
        Infill(data=str(tmp_path)).examples(1)
    (tmp_path / "b.py").write_bytes(b"# \xff\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        Infill(data=str(tmp_path)).examples(1)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`unveil task` in an empty folder: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    return partial(command, monkeypatch, capsys, "task")


def test_rows_are_written_and_trained_on(run, tmp_path):
    code, out, _ = run(*DRAWN, "--rows", "40", "--out", "rows/train.jsonl", "--json")
    assert code == 0
    about = json.loads(out.splitlines()[-1])
    assert about["tasks"] == {"sudoku": 14, "countdown": 13, "arithmetic": 13}
    assert about["longest"] <= 78
    rows = [json.loads(line) for line in (tmp_path / "rows/train.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    assert [row["prompt"].split("\n")[0] for row in rows[:4]] == [*DRAWN, "sudoku"]
    assert [(row["prompt"], row["response"]) for row in rows[1::3]] == [
        (example.prompt, example.answer) for example in Countdown().examples(13, "train")
    ]
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["train.jsonl"]
    recipe = Recipe.read(TOP / "recipes/tasks-ar.toml", data="rows/train.jsonl", tokens=0, **TINY)
    found = start(recipe)
    batch = found.corpus.train.batch(0, 4, recipe.length)
    assert found.text.vocab == 257
    assert found.objective(found.model, batch).total > 0
    for tokens, answer in zip(batch.tokens, batch.answer, strict=True):
        whole = found.text.decode(tokens)
        assert any(row["prompt"] + row["response"] == whole for row in rows)
        assert any(row["response"] == found.text.decode(tokens[answer]) for row in rows)


def test_rows_of_text_hold_what_is_asked(run, tmp_path):
    (tmp_path / "s.txt").write_text(stories(80), encoding="utf-8")
    code, out, _ = run("cloze(data='s.txt')", "--rows", "20", "--out", "a.jsonl")
    assert code == 0
    assert "20, train split" in out
    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        assert json.loads(line)["text"] in stories(80)


def test_bad_rows_are_refused(run, tmp_path):
    (tmp_path / "s.txt").write_text(stories(80), encoding="utf-8")
    (tmp_path / "there.jsonl").write_text("kept")
    for words, said in {
        ("nonsense", "--out", "a.jsonl"): "no task called 'nonsense'; there are: arc_easy, arithmetic, cloze",
        ("sudoku", "--out", "a.txt"): "written to a .jsonl file, not a.txt",
        ("sudoku", "--out", "there.jsonl"): "is there already",
        ("sudoku", "sudoku", "--out", "a.jsonl"): "each task is named once",
        ("sudoku", "countdown", "--rows", "1", "--out", "a.jsonl"): "at least one row of each of 2 tasks",
        ("sudoku", "--split", "dev", "--out", "a.jsonl"): "no split called 'dev'",
        ("sudoku", "cloze(data='s.txt')", "--rows", "4", "--out", "a.jsonl"): "rows of text, the others of prompt",
    }.items():
        code, out, error = run(*words)
        assert code == 2, words
        assert said in error
        assert error.count("\n") == 1
        assert not out
    assert (tmp_path / "there.jsonl").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.txt", "there.jsonl"]
    code, _, _ = run("sudoku", "--rows", "3", "--out", "there.jsonl", "--overwrite")
    assert code == 0
    assert len((tmp_path / "there.jsonl").read_text().splitlines()) == 3
