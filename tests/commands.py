"""Commands run in this process, as a shell would start them."""

from __future__ import annotations

import sys

import pytest

from unveil import cli


def command(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The exit code of `unveil WORDS`, its output and its errors."""
    capsys.readouterr()
    patch.setattr(sys, "argv", ["unveil", *words])
    with pytest.raises(SystemExit) as found:
        cli.main()
    code = found.value.code
    return (code if isinstance(code, int) else 0), *capsys.readouterr()
