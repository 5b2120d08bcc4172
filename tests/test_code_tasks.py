"""Tasks whose answers are run: what counts as the program, what passes, and that the authors' own answers do."""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch

from unveil import cli, hub, spec
from unveil.canvas import Canvas
from unveil.cli.evaluate import confined
from unveil.evaluate.lengths import fit, searched
from unveil.evaluate.problems import Outcome, Setting, Subject
from unveil.evaluate.suite import summed
from unveil.programs import before, completed, fenced, pass_at
from unveil.sample import fill
from unveil.sandbox import guards
from unveil.tasks import Example

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "eval"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs are confined by means of Unix")
given = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/eval")
PROMPT = 'from math import pi\n\n\ndef area(r):\n    """Of a circle."""\n'
TEST = "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 1e-4\n    assert candidate(0) == 0\n"
ROW = {
    "task_id": "HumanEval/0",
    "prompt": PROMPT,
    "canonical_solution": "    return pi * r * r\n",
    "test": TEST,
    "entry_point": "area",
}
LINE = {
    **ROW,
    "prompt": PROMPT + "    x = r\n",
    "canonical_solution": "    x = x * r\n",
    "suffix": "    return pi * x\n",
}
PROBLEMS = [
    {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\r\n  return x + {number}",
        "test_setup_code": "one = 1",
        "test_list": [f"assert add(0) == {number}", f"assert add(one) == {number + 1}"],
    }
    for number in (2, 3, 4, 11, 12, 510, 601)
]


def task(kind: str, folder: Path, rows: list[dict], options: str = ""):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return spec.build("tasks", f"{kind}(data={str(folder / 'rows.jsonl')!r}{options})")


PASSING = {
    "the rest of the body": "    return pi * r ** 2\n",
    "and something new at the margin": "    return pi * r ** 2\n\n\ndef other(x:\n  oops",
    "a class, a comment, a condition, a print": "    return pi * r ** 2\n# end\nclass",
    "a fence with the whole function": "Sure!\n```python\ndef area(r):\n    return pi * r * r\n```\nThat is it.",
    "a fence with the body": "```\n    return pi * r * r\n```",
    "a fence left open": "```python\ndef area(r):\n    return pi * r * r",
    "the function again": "def area(r):\n    return square(r) * pi\n\ndef square(x):\n    return x * x\n",
}
FAILING = {
    "nothing": "",
    "words": "I do not know.",
    "a wrong answer": "    return 0\n",
    "leaving before the tests": "    return pi * r * r\nimport sys; sys.exit(0)",
    "leaving from inside": "    import sys; sys.exit(0)\n",
    "leaving without a word": "    import os; os._exit(0)\n",
    "printing a result": "    print('all tests passed')\n",
    "a loop that catches everything": "    while True:\n        try:\n            area(r)\n        except: pass\n",
}


def test_what_counts_as_the_program(tmp_path):
    found = task("humaneval", tmp_path, [ROW], ", seconds=1")
    example = found.examples(1)[0]
    assert example == Example(PROMPT, ROW["canonical_solution"])
    for name, completion in {"the authors'": example.answer, **PASSING}.items():
        assert found.score(example, completion) == 1, (name, found.tried(example, completion))
    for name, completion in FAILING.items():
        assert found.score(example, completion) == 0, name
    assert found.tried(example, FAILING["leaving from inside"]).reason == "exit"


def test_programs_are_cut_by_hand():
    assert before("a\nb\nc", ("\nc", "\nb")) == "a"
    assert before("abc", ()) == "abc"
    assert fenced("x") is None
    assert fenced("x\n``` python\ny\n```\n```\nz\n```") is None or fenced("```py\ny\n```\n```\nz\n```") == "y\n"
    assert fenced("- item\n  ```c++\n  y\n  ```") == "  y\n"
    assert completed("def f():\n", "    return 1\nprint(f())") == "def f():\n    return 1"
    assert completed("def f():\n", "\n    x = '''\nclass'''") == "def f():\n\n    x = '''"  # as Chen et al. cut it


def test_one_line_is_judged_with_what_stands_around_it(tmp_path):
    found = task("humaneval_infill", tmp_path, [LINE])
    example = found.examples(1)[0]
    assert example.tail == LINE["suffix"]
    assert found.figures(example, example.answer) == {"pass": 1.0, "exact": 1.0}
    assert found.figures(example, "    x *= r\n") == {"pass": 1.0, "exact": 0.0}
    assert found.figures(example, "    x = 0\n") == {"pass": 0.0, "exact": 0.0}


def test_mbpp_asks_as_its_paper_does(tmp_path):
    found = task("mbpp", tmp_path, PROBLEMS, ", shots=2")
    assert found.available() == 3
    assert found.available("train") == 1
    first, last = found.examples(3)[::2]
    shown = first.prompt.split("You are an expert Python programmer, and here is your task: ")
    assert [part.split(".")[0] for part in shown[1:]] == [f"Write a function to add {n}" for n in (2, 3, 11)]
    assert "def add(x):\n  return x + 2\n[DONE]\n\n" in first.prompt
    assert first.prompt.endswith(
        "Write a function to add 11. Your code should pass these tests:\n\n"
        "assert add(0) == 11\nassert add(one) == 12\n[BEGIN]\n"
    )
    assert found.score(first, first.answer) == 1
    assert found.score(last, last.answer) == 1
    assert found.score(first, last.answer) == 0
    assert found.score(first, "[BEGIN]\ndef add(x): return x + 11\n[DONE]\nYou are an expert") == 1
    assert found.score(first, "Here:\n```python\ndef add(x): return 11 + x\n```") == 1
    assert task("mbpp", tmp_path, PROBLEMS, ", shots=0").examples(1)[0].prompt.startswith("You are an expert")


@pytest.mark.parametrize(
    ("kind", "rows", "options", "message"),
    [
        ("humaneval", [{**ROW, "test": None}], "", "expected text in the field 'test'"),
        ("humaneval", [{"prompt": "x"}], "", "the field 'canonical_solution' is missing; its fields are: prompt"),
        ("humaneval_infill", [ROW], "", "the field 'suffix' is missing"),
        ("humaneval_infill", [LINE], ", lengths=[0]", "expected numbers of blanks"),
        ("mbpp", PROBLEMS[1:], "", "no problem with the task_id 2"),
        ("mbpp", PROBLEMS[:3], "", "no problem numbered 11 to 510"),
        ("mbpp", [{**PROBLEMS[3], "test_list": []}], ", shots=0", "expected a list of texts in the field 'test_list'"),
        ("mbpp", PROBLEMS, ", shots=4", "shots is 4"),
        ("humaneval", [ROW], ", seconds=0", "seconds is 0"),
    ],
)
def test_files_and_options_that_do_not_fit(tmp_path, kind, rows, options, message):
    def scored():
        found = task(kind, tmp_path, rows, options)
        found.score(found.examples(1)[0], "")

    with pytest.raises(ValueError, match=message):
        scored()


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    for n, c, k in [(5, 2, 1), (5, 2, 3), (6, 1, 2), (4, 4, 2), (4, 0, 4), (5, 3, 3)]:
        drawn = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at(k, [c], n) == pytest.approx(sum(map(any, drawn)) / len(drawn))
    assert pass_at(1, [0, 1, 2], 2) == pytest.approx(0.5)
    assert 0 < pass_at(100, [1], 200) <= 0.5 + 1e-12


@pytest.mark.parametrize(("k", "right", "n"), [(0, [1], 2), (3, [1], 2), (1, [3], 2), (1, [], 2)])
def test_pass_at_k_of_nonsense(k, right, n):
    with pytest.raises(ValueError, match=r"pass@|right ones"):
        pass_at(k, right, n)


def test_several_answers_give_pass_at_k(tmp_path):
    found = task("humaneval", tmp_path, [ROW])
    outs = [Outcome(float(i < 2), 1, 1, "", {"accuracy": float(i < 2)}) for i in range(5)]
    assert summed(found, outs) == {"accuracy": 0.4, "pass@2": pytest.approx(0.7), "pass@5": 1.0}
    assert summed(found, outs[:1]) == {"accuracy": 1.0}
    assert summed(task("humaneval_infill", tmp_path, [LINE]), outs[3:]) == {"accuracy": 0.0, "pass@2": 0.0}


def test_the_length_that_fits_best_is_kept(tmp_path):
    model, text = hub.load("stdlib-dlm")
    found = task("humaneval_infill", tmp_path, [LINE], ", lengths=[3, 6]")
    example = found.examples(1)[0]
    subject, setting = Subject(model, text, found), Setting("confidence")
    out = searched(subject, example, setting, 0, found.rooms())
    front, behind = [text.start_id, *text.encode(example.prompt)], text.encode(example.tail)
    by_hand = {}
    for count in found.rooms():
        row = torch.tensor([*front, *[model.mask_id] * count, *behind])
        canvas = Canvas.filling([row], model.mask_id, torch.tensor([0]), subject.look(True))
        canvas.tokens = fill(model, [row], seed=0)[0][None]
        by_hand[fit(model, canvas, 0)[0]] = text.decode(canvas.tokens[0, len(front) : len(front) + count])
    assert out.completion == by_hand[min(by_hand)]
    assert out.forwards == 3 + 6 + 2 * 8
    with pytest.raises(ValueError, match="nothing follows them"):
        searched(subject, Example("a", "b"), setting, 0, [1])


def test_the_command_runs_code_only_where_it_may(tmp_path, monkeypatch, capsys):
    (tmp_path / "humaneval.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8")

    def ours(*words):
        monkeypatch.setattr("sys.argv", ["unveil", "eval", "stdlib-dlm", "--tasks-dir", str(tmp_path), *words])
        with pytest.raises(SystemExit) as found:
            cli.main()
        return found.value.code, capsys.readouterr()

    code, said = ours("--tasks", "humaneval")
    assert code == 2
    assert "--allow-code" in said.err
    code, said = ours("--tasks", "humaneval", "--allow-code", "--samples", "2")
    assert code == 2
    assert "at temperature 0 are one and the same" in said.err
    several = ["--samples", "2", "--decoder", "confidence(temperature=1.0)"]
    code, said = ours("--tasks", "humaneval(length=8)", "--allow-code", *several, "--json")
    assert not code
    found = json.loads(said.out.splitlines()[-1])
    assert [line["figure"] for line in found["lines"]] == ["accuracy", "pass@2"]
    held = ", ".join(name for name, on in guards().items() if on)
    assert found["sandbox_guards"] == (held or "none")
    assert bool(found["sandbox_guards_missing"]) == (not all(guards().values()))
    assert confined([spec.build("tasks", "sudoku")]) == {}


@given
@pytest.mark.parametrize(("kind", "count"), [("humaneval", 12), ("mbpp", 12), ("humaneval_infill", 8)])
def test_the_authors_own_answers_pass(kind, count):
    found = spec.build("tasks", f"{kind}(data={str(SHARED)!r})")
    for example in found.examples(count, seed=5):
        assert found.score(example, example.answer) == 1, (example.prompt, found.tried(example, example.answer))


@given
def test_the_whole_sets_are_read():
    sizes = {"humaneval": 164, "mbpp": 500, "humaneval_infill": 1033}
    for kind, size in sizes.items():
        found = spec.build("tasks", f"{kind}(data={str(SHARED)!r})")
        assert found.available() == size
        assert len(set(found.examples(size))) == size
        assert len(found.tests) >= size
