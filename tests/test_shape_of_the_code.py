"""The code's own rules: imports point one way, files stay short, every file says what it is for."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
ROOT = TOP / "unveil"
LAYERS = [
    {
        *("attention", "canvas", "choices", "confine", "context", "denoiser", "guidance"),
        *("history", "noise", "prediction", "rules", "sandbox", "spec", "whole"),
    },
    {"nn", "processes"},
    {"caches", "decoders", "guides"},
    {"sample", "flows"},
    {"together"},
    {"objectives", "programs", "rewards", "codecs", "records"},
    {"tasks"},
    {"families"},
    {"folder"},
    {"adapter"},
    {"hub", "data"},
    {"evaluate"},
    {"train"},
    {"start", "bulk"},
    {"cluster"},
    {"serve", "watch"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LIBRARY = sorted(ROOT.rglob("*.py"))
EVERYTHING = [*LIBRARY, *sorted((TOP / "tests").rglob("*.py")), *sorted((TOP / "benchmarks").rglob("*.py"))]
OPTIONAL = {"datasets", "rouge_score", "matplotlib", "peft", "pyarrow", "tensorboard", "torch.utils.tensorboard"}
NAMES = re.compile(
    r"Manager|Factory|Runner|Handler|Helper|Utils?($|[A-Z_])|^_?Base[A-Z]|_?v2$|[Ll]egacy|[Hh]elper|_utils?$"
)
TEXT = re.compile(
    r"except Exception|except:|type: ignore|noqa|kwargs\.get|torch\.(load|save)\(|import pickle|from pickle"
)


def name(path: Path) -> str:
    return str(path.relative_to(TOP))


def part(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path, node: ast.AST) -> list[str]:
    """The parts of the library that one import statement reaches."""
    if isinstance(node, ast.Import):
        return [a.name.split(".")[1] for a in node.names if a.name.startswith("unveil.")]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level == 0:
        inside = node.module is not None and node.module.split(".")[0] == "unveil"
        return [(node.module or "").split(".")[1]] if inside and "." in (node.module or "") else []
    if node.level != len(path.relative_to(ROOT).parts):
        return []
    found = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
    return [one for one in found if one != "__version__"]


def test_every_part_has_a_layer():
    assert {part(path) for path in LIBRARY} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", [p for p in LIBRARY if part(p) != "__init__"], ids=name)
def test_imports_point_down(path):
    here = part(path)
    for node in ast.walk(ast.parse(path.read_text())):
        for there in imported(path, node):
            down = LEVEL[there] < LEVEL[here] or LEVEL[there] == LEVEL[here] == 0
            assert there == here or down, f"{name(path)}:{node.lineno} reaches across or up to {there}"


@pytest.mark.parametrize("path", [p for p in LIBRARY if part(p) != "cli"], ids=name)
def test_imports_stand_at_the_top(path):
    """The command line imports late, to start fast; the rest of the library only what an extra installs."""
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    for node in (inner for function in functions for inner in ast.walk(function)):
        if isinstance(node, ast.Import):
            names = {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "."} if node.level == 0 else {"." * node.level + (node.module or "")}
        else:
            continue
        late = {n for n in names if n not in OPTIONAL and n.split(".")[0] not in OPTIONAL}
        assert not late, f"{name(path)}:{node.lineno} imports {', '.join(late)} inside a function"


@pytest.mark.parametrize("path", [p for p in EVERYTHING if p.read_text().strip()], ids=name)
def test_files_are_short_and_say_what_they_are(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    assert max(map(len, text.splitlines())) <= 120
    assert ast.get_docstring(ast.parse(text)), f"{name(path)} does not open with a sentence"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_names_and_habits(path):
    text = path.read_text()
    found = TEXT.search(text)
    assert not found, f"{name(path)}: {found and found[0]!r}"
    kinds = (ast.ClassDef, ast.FunctionDef)
    names = [n.name for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)] + [path.stem]
    assert not [n for n in names if NAMES.search(n)]
