"""What there is to choose from, with its options, read from the source without running it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from string import ascii_lowercase

PACKAGE = Path(__file__).parent
LONGEST = 400  # characters of a spec that a stranger wrote
SPEC = r"\s*[a-z0-9_]+\s*(\([\s\S]*\))?\s*"  # how it looks
LARGEST = 10_000  # of a number in one
COUNT = 1_024  # of a whole number in one; they count steps, positions and predictions to remember
Field = tuple[ast.expr, ast.expr]  # how an option is annotated, and its default


def described(kind: str) -> dict[str, str]:
    """Each choice of a kind with its one line."""
    return {path.stem: sentence(tree(path)) for path in sorted((PACKAGE / kind).glob("[a-z]*.py"))}


def tree(path: Path) -> ast.Module:
    """A file of Python, read and not run."""
    return ast.parse(path.read_text(encoding="utf-8"))


def sentence(file: ast.Module) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(file) or "").split("\n")[0]


def options(kind: str, name: str) -> dict[str, str]:
    """The options of a choice that its own class adds, with their defaults as they are written there."""
    found = classes(tree(PACKAGE / kind / f"{name}.py")).get(name.replace("_", ""))
    return {} if found is None else {field: ast.unparse(default) for field, (_, default) in fields(found).items()}


def classes(file: ast.Module) -> dict[str, ast.ClassDef]:
    """The classes of a file by their names in small letters."""
    return {node.name.lower(): node for node in file.body if isinstance(node, ast.ClassDef)}


def fields(found: ast.ClassDef) -> dict[str, Field]:
    """The fields that a dataclass takes, each with its annotation and default; of other classes none."""
    taken: dict[str, Field] = {}
    if not any(ast.unparse(each).startswith("dataclass") for each in found.decorator_list):
        return taken
    for line in found.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name) or line.value is None:
            continue
        if ast.unparse(line.annotation).startswith("ClassVar"):
            continue
        value = line.value
        if isinstance(value, ast.Call):
            default = next((k.value for k in value.keywords if k.arg == "default"), None)
            if default is None or any(k.arg == "init" for k in value.keywords):
                continue
            value = default
        taken[line.target.id] = line.annotation, value
    return taken


def parsed(text: str) -> ast.Call:
    """The call that a spec is. ValueError where it is none."""
    try:
        call = ast.parse(text.strip() if "(" in text else f"{text.strip()}()", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        call = None
    named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    if isinstance(call, ast.Call) and named and not call.args and all(word.arg for word in call.keywords):
        return call
    raise ValueError(f"expected name(option=value, ...), got {text!r}")


def written(call: ast.Call) -> str:
    """A spec as everybody writes it."""
    return ast.unparse(call) if call.keywords else ast.unparse(call.func)


def reach(value: object) -> str:
    """What else there is to say of a number that does not fit."""
    return f", at most {COUNT} in whole numbers and {LARGEST} in others" if isinstance(value, int | float) else ""


def fits(value: object, annotation: ast.expr) -> bool:
    """Is it of a type that the annotation names, and of a size that costs nothing?"""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return fits(value, left) or fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Subscript():  # Sequence[int], tuple[float, ...]
            if not isinstance(value, list | tuple) or len(value) > LONGEST:
                return False
            return all(isinstance(each, int | float) and abs(each) <= 1e9 for each in value)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="str" | "Decoder" | "Guide"):
            return isinstance(value, str)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= COUNT
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
        case _:
            return False


def with_options(text: str, **given: float | None) -> str:
    """A spec with options put over its own; None leaves them as they are."""
    wanted = {name: value for name, value in given.items() if value is not None}
    if not wanted:
        return text
    call = parsed(text)
    call.keywords = [word for word in call.keywords if word.arg not in wanted]
    call.keywords += [ast.keyword(name, ast.Constant(value)) for name, value in wanted.items()]
    return written(call)


class Choices:
    """All choices of one kind with all their options, read once; what strangers write is held against them."""

    def __init__(self, kind: str):
        trees = {path.stem: tree(path) for path in sorted((PACKAGE / kind).glob("*.py"))}
        known = {name: found for each in trees.values() for name, found in classes(each).items()}
        self.kind = kind
        self.about = {name: sentence(each) for name, each in trees.items() if name[0] in ascii_lowercase}
        self.options = {name: inherited(known, name.replace("_", "")) for name in self.about}

    def safe(self, text: str) -> str:
        """A spec that a stranger wrote, as `spec.build` takes it and without surprises.

        ValueError where the name or an option is unknown, a value is of the wrong kind or very large, or an option
        names a file: which files are read is for whoever runs the server to say.
        """
        if len(text) > LONGEST:
            raise ValueError(f"a spec of {len(text)} characters; expected at most {LONGEST}")
        if not re.fullmatch(SPEC, text):
            raise ValueError(f"expected name(option=value, ...), got {text!r}")
        call = parsed(text)
        name = ast.unparse(call.func)
        if name not in self.options:
            raise ValueError(f"no {self.kind[:-1]} called {name!r}; there are: {', '.join(self.options)}")
        known = self.options[name]
        for word in call.keywords:
            assert word.arg is not None
            if word.arg not in known:
                listed = ", ".join(f"{each}={ast.unparse(default)}" for each, (_, default) in known.items()) or "none"
                raise ValueError(f"{name} has no option {word.arg!r}; its options are: {listed}")
            annotation, default = known[word.arg]
            if names_file(default):
                raise ValueError(f"{name}({word.arg}=...) names a file; those are chosen where the server is started")
            try:
                value = ast.literal_eval(word.value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                value = ...
            if not fits(value, annotation):
                raise ValueError(
                    f"{name}({word.arg}={ast.unparse(word.value)}) does not fit; "
                    f"expected {ast.unparse(annotation)}{reach(value)}"
                )
            if word.arg == "inner" and isinstance(value, str):
                word.value = ast.Constant(self.safe(value))
        return written(call)

    def shown(self, text: str) -> str:
        """A spec as strangers may see it: of files that it names, no more than that there is one."""
        call = parsed(text)
        known = self.options.get(ast.unparse(call.func), {})
        for word in call.keywords:
            if word.arg in known and names_file(known[word.arg][1]):
                word.value = ast.Constant("...")
            if word.arg == "inner" and isinstance(word.value, ast.Constant) and isinstance(word.value.value, str):
                word.value = ast.Constant(self.shown(word.value.value))
        return written(call)


def names_file(default: ast.expr) -> bool:
    """Options whose default is no name at all are names of files."""
    return isinstance(default, ast.Constant) and default.value == ""


def inherited(known: dict[str, ast.ClassDef], name: str) -> dict[str, Field]:
    """The fields of a class and of the classes before it."""
    found: dict[str, Field] = {}
    if name in known:
        for parent in known[name].bases:
            found |= inherited(known, ast.unparse(parent).lower())
        found |= fields(known[name])
    return found
