"""Exact classes of Python's own tokenizer: keyword, name, number, string, operator, comment, indentation."""

from __future__ import annotations

import io
import keyword
import token as kinds
import tokenize

from .labels import Labels, Span

PLAIN = {kinds.NUMBER: "number", kinds.STRING: "string", kinds.COMMENT: "comment", kinds.OP: "operator"}
OPEN, CLOSE = getattr(kinds, "FSTRING_START", -1), getattr(kinds, "FSTRING_END", -1)  # from Python 3.12 on


def spans(text: str) -> list[Span]:
    """The tokens of a file of Python. ValueError where it is none."""
    starts, total = [0], 0
    for line in io.StringIO(text, newline=""):
        total += len(line)
        starts.append(total)
    found: list[Span] = []
    depth, began = 0, 0
    try:
        for each in tokenize.generate_tokens(io.StringIO(text, newline="").readline):
            first, stop = (starts[row - 1] + column for row, column in (each.start, each.end))
            if each.type == OPEN:
                depth, began = depth + 1, first if depth == 0 else began
            elif each.type == CLOSE:
                depth -= 1
                if depth == 0:
                    found.append((began, stop, "string"))
            elif depth:
                continue  # an f-string is one string, whatever is computed inside
            elif each.type == kinds.NAME:
                found.append((first, stop, "keyword" if keyword.iskeyword(each.string) else "name"))
            elif each.type in PLAIN:
                found.append((first, stop, PLAIN[each.type]))
    except (tokenize.TokenError, SyntaxError, IndexError) as error:
        raise ValueError(f"no source of Python: {error}") from error
    return found


LABELS = Labels(
    name="python",
    about="exact: the classes of Python's own tokenizer",
    classes={
        "keyword": "syntax",
        "operator": "syntax",
        "name": "content",
        "number": "number",
        "string": "content",
        "comment": "content",
        "indentation": "layout",
    },
    spans=spans,
    whole=True,
    space="indentation",
    early="content",
    late="syntax",
)
