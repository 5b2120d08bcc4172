"""Infilling code: a statement or more in the middle of a function of the Python standard library is blank."""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from . import Example, Listed, held_out

# Of the files that the training of stdlib-ar and stdlib-dlm held out, those whose functions no other file repeats.
UNSEEN = (
    "_bootsubprocess.py",
    "asyncio/format_helpers.py",
    "distutils/text_file.py",
    "doctest.py",
    "http/client.py",
    "http/cookies.py",
)
ASIDE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
JUDGES = ("program", "similarity")
SIMPLE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Raise, ast.Assert, ast.Delete, ast.Expr)


@dataclass
class Infill(Listed):
    """A statement of each function or method, one line long, or several lines from it on; never the first or the last.

    The prompt is the function's lines before it, the tail those behind. Right is what makes the same program (the same
    syntax tree), spaces, quotes and comments aside. A model that gets few right can still be told from another by the
    similarity: the share of characters in common (2 M / T of difflib, after Ratcliff and Obershelp). Without `data`,
    test problems are from the files in UNSEEN, which the embedded models have not been trained on, and training
    problems from all others.

    data            a file or folder of Python source instead; a hash of a function's text then says its split
    shortest, most  lines of a function
    widest          characters of a statement
    lines           how many are asked
    judge           what is the score: program (1 or 0) or similarity
    """

    data: str = ""
    shortest: int = 5
    most: int = 24
    widest: int = 60
    lines: int = 1
    judge: str = "program"
    length: int = field(default=24, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not 3 <= self.shortest <= self.most:
            raise ValueError(f"expected 3 <= shortest <= most lines, got shortest={self.shortest}, most={self.most}")
        if self.lines < 1:
            raise ValueError(f"lines is {self.lines}; expected at least one line to be asked")
        if self.judge not in JUDGES:
            raise ValueError(f"no judge called {self.judge!r}; there are: {', '.join(JUDGES)}")
        if self.data and not Path(self.data).exists():
            raise ValueError(f"no such file or folder: {self.data}")

    def pool(self, split: str, numbers: np.random.Generator) -> list[Example]:
        return list(dict.fromkeys(self.problems(split, numbers)))

    def problems(self, split: str, numbers: np.random.Generator) -> Iterator[Example]:
        root = Path(self.data or sysconfig.get_path("stdlib"))
        if self.data:
            names = sources(root)
        elif split == "test":
            names = [name for name in UNSEEN if (root / name).is_file()]
        else:
            names = sorted(set(sources(root)) - set(UNSEEN))
        for name in names:
            source = opened(root / name)
            lines = source.split("\n")
            for function in functions(parsed(source)):
                whole = "\n".join(lines[function.lineno - 1 : function.end_lineno])
                if self.data and held_out(whole) != (split == "test"):
                    continue
                asked = self.statements(function, lines)
                if asked:
                    chosen = asked[numbers.integers(len(asked))] - function.lineno + 1
                    yield blanked(whole.split("\n"), chosen, self.lines)

    def statements(self, function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> list[int]:
        """Where the lines asked may begin, counted from 0; nowhere if the function is too short or long."""
        last = function.end_lineno or function.lineno
        if not self.shortest <= last - function.lineno + 1 <= self.most:
            return []
        found = []
        for node in ast.walk(function):
            if not isinstance(node, SIMPLE) or isinstance(getattr(node, "value", None), ast.Constant):
                continue  # a constant alone is a docstring or tells little
            line = lines[node.lineno - 1].strip()
            alone = (
                node.lineno == node.end_lineno and len(line.encode()) == (node.end_col_offset or 0) - node.col_offset
            )
            if alone and function.lineno < node.lineno <= last - self.lines and 8 <= len(line) <= self.widest:
                found.append(node.lineno - 1)
        return sorted(set(found))

    def score(self, example: Example, completion: str) -> float:
        return next(iter(self.figures(example, completion).values()))

    def figures(self, example: Example, completion: str) -> dict[str, float]:
        """Both, the one that judges first."""
        found = {"program": self.same(example, completion), "similarity": similarity(example.answer, completion)}
        return {name: found[name] for name in sorted(JUDGES, key=lambda name: name != self.judge)}

    def same(self, example: Example, completion: str) -> float:
        ours, right = (program(example.prompt + text + example.tail) for text in (completion, example.answer))
        return float(ours is not None and ours == right)


def similarity(right: str, ours: str) -> float:
    """From 0 to 1, spaces around aside."""
    return SequenceMatcher(None, right.strip(), ours.strip(), autojunk=False).ratio()


def blanked(lines: list[str], row: int, count: int = 1) -> Example:
    """Lines of a function asked, with the last character of their indentation: tokenizers put them together."""
    line = lines[row]
    cut = max(len(line) - len(line.lstrip()) - 1, 0)
    before, behind = "\n".join([*lines[:row], line[:cut]]), "\n".join(["", *lines[row + count :]])
    asked = "\n".join([line[cut:], *lines[row + 1 : row + count]])
    return Example(before, asked.rstrip(), behind)


def sources(root: Path) -> list[str]:
    """The names of a folder's Python files, tests and installed packages aside; of a file "" alone."""
    if root.is_file():
        return [""]
    names = []
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if name not in ASIDE]
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in files if name.endswith(".py")]
    if not names:
        raise ValueError(f"{root} is a folder without any .py file")
    return sorted(names)


def opened(file: Path) -> str:
    """The text of a file. ValueError when it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def functions(tree: ast.AST | None) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods, not those inside of others."""
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node)


def program(function: str) -> str | None:
    """What a function means, however it is spelled; None when it is none."""
    tree = parsed(f"if 1:\n{function}" if re.match("[ \t]", function) else function)
    return None if tree is None else ast.dump(tree)


def parsed(source: str) -> ast.Module | None:
    """The syntax tree, without a warning; None for what is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
