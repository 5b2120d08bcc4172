"""Where names lead: embedded models, recipes, and the one-line descriptions of what there is to choose from."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

from .. import choices

PACKAGE = Path(__file__).parent.parent
EMBEDDED = {
    "stdlib-ar": "unveil train --recipe stdlib-ar --out my-model",
    "stdlib-dlm": "unveil adapt my-ar --recipe stdlib-dlm --out my-model",
    "tasks-dlm": "unveil train --recipe tasks-full --parent PARENT --data ROWS --out my-model",
}  # and how each is made
KINDS = ("decoders", "caches", "guides", "objectives", "families", "tasks")


def model_place(name: str) -> str:
    """What the user calls a model, refused early where it is an embedded one that this build lacks."""
    if name in EMBEDDED and not (Path(name).exists() or (PACKAGE / "models" / name / "config.json").is_file()):
        raise ValueError(
            f"the embedded model {name} is not part of this build; name a folder or a hub id, or train it: "
            f"{EMBEDDED[name]}"
        )
    return name


def recipes() -> dict[str, Path]:
    """Recipe files by name: those in the package, or beside it in a checkout."""
    found: dict[str, Path] = {}
    for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes"):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def recipe_place(name: str) -> Path:
    """A recipe's file, by its path or by its name."""
    if name.endswith(".toml"):
        return Path(name)
    known = recipes()
    if name not in known:
        raise ValueError(f"no recipe called {name!r}; there are: {', '.join(known)}; or give the path of a .toml file")
    return known[name]


def described(kind: str) -> dict[str, str]:
    """Each choice of a kind with its one line, read from the source without running it."""
    if kind == "recipes":
        return {name: first_comment(path) for name, path in recipes().items()}
    return choices.described(kind)


def first_comment(path: Path) -> str:
    """What the comment at the top of a recipe says, or its objective."""
    text = path.read_text(encoding="utf-8")
    if text.startswith("#"):
        return text.split("\n")[0].lstrip("# ")
    return str(tomllib.loads(text).get("objective", ""))


def vacant(out: str, file: str, what: str, overwrite: bool) -> Path:
    """The folder of results, refused before anything is measured. What an unfinished run kept may lie there.

    file  the one by which a folder is known to hold results of this sort, called `what`
    """
    from ..evaluate.unfinished import FILE as KEPT
    from ..folder import recover

    place = Path(out).expanduser().resolve()
    recover(place)
    if place.is_file():
        raise ValueError(f"{out} is a file: expected a folder for the results")
    if place.is_dir() and any(not path.name.startswith((KEPT, f".{KEPT}.")) for path in place.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} exists and is not empty: choose another folder, or --overwrite")
        if not (place / file).is_file():
            raise ValueError(f"{out} holds something that no {what} left there: it will not be overwritten")
    return place


def whole(place: Path, contents: Mapping[str, str | bytes]) -> list[str]:
    """All files in a folder beside, and then the folder in its place; their names."""
    from ..folder import exchange

    part = place.with_name(f".{place.name}.{os.getpid()}.partial")
    part.mkdir(parents=True)
    try:
        for name, content in contents.items():
            (part / name).write_bytes(content.encode() if isinstance(content, str) else content)
        exchange(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(contents)
